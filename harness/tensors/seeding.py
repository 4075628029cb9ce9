"""Named random streams: every draw of a run comes from a generator made by hashing (seed, name).

A new stream never shifts an old one. Libraries that draw from the global generators (dropout, peft's first weights) are
fenced: :func:`seeded_globally` seeds them from a stream inside a ``with`` and restores them after it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stream_seed(seed: int, stream: str) -> int:
    """Return a seed in [0, 2**63) for one named stream of a run."""
    digest = hashlib.sha256(f"{seed}:{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(seed: int, stream: str) -> torch.Generator:
    """Return a fresh CPU generator of a stream."""
    return torch.Generator().manual_seed(stream_seed(seed, stream))


def numpy_generator(seed: int, stream: str) -> np.random.Generator:
    """Return a fresh numpy generator of a stream."""
    return np.random.default_rng(stream_seed(seed, stream))


@contextmanager
def seeded_globally(seed: int, stream: str) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global generators from a stream; restore them at the end."""
    with fenced(stream_seed(seed, stream)):
        yield


@contextmanager
def fenced(seed: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global generators with a number itself; restore them at the end."""
    with restored():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        yield


@contextmanager
def restored() -> Iterator[None]:
    """Leave Python's, numpy's and torch's global generators as they are now, whatever is drawn inside the ``with``."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    cuda = torch.cuda.is_available()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else ()):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
