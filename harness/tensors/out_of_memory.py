"""Tells errors that say that memory ran out from all others."""

from __future__ import annotations

import torch

SAID = ("DefaultCPUAllocator: can't allocate memory", "Cuda failure 'out of memory'", "Cuda failure 2 'out of memory'")
"""By torch's allocator of the host, and by NCCL, which allocates by itself: sources, src/include/checks.h."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on the device or on the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)
    )
