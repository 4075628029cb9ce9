"""The processes of a run that is planned: this one alone, as the first of so many, in a group that moves nothing.

The first one holds the largest parts. What it would be told by others it does not wait for, so no number is right, and
sizes are. torch's group is one of the whole process, so it is left as soon as the prediction is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.engine.ranks import ALONE, Ranks


@contextmanager
def fake_ranks(size: int) -> Iterator[Ranks]:
    """Be the first of so many processes of a run; 1: nothing is done.

    Args:
        size: Of them all.
    """
    if size == 1:
        yield ALONE
        return
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh

    assert not torch.distributed.is_initialized(), "a process of a run on several devices does not plan"
    init_process_group("fake", rank=0, world_size=size)
    try:
        yield Ranks(0, size, init_device_mesh("cpu", (size,)))
    finally:
        destroy_process_group()
