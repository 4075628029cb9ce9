"""What bitsandbytes' updates allocate inside theirs, which no operation on a fake tensor shows.

On CUDA nothing: each is one kernel over the numbers, in registers and shared memory. That was read, not measured:
bitsandbytes 0.50.2 passes its kernels the addresses of what it is given, and no other. On a CPU it is operations in
fp32: backends/cpu/ops.py, counted below in tensors of the update's size that are alive together.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

FP32_TENSORS = {"bitsandbytes::optimizer_update_8bit_blockwise": 5, "bitsandbytes::optimizer_update_32bit": 3}
"""For fp32 weights. In 8 bits: both moments, the gradient times its scale, the root of the second moment and the
denominator made of it. In 32: the gradient, and two of root, denominator and update. Of other weights there is a copy,
one more."""


def update_temporaries(func: Any, args: tuple[Any, ...]) -> list[int]:
    """Return the temporaries of an update on a CPU in bytes; empty for other calls."""
    tensors = _tensors(func)
    if not tensors:
        return []
    weights: torch.Tensor = args[2]
    return [4 * weights.numel() * (tensors + (weights.dtype != torch.float32))]


@cache
def _tensors(func: Any) -> int:
    return FP32_TENSORS.get(func._schema.name, 0)
