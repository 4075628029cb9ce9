"""The peaks of CUDA's allocator, read in laps: by moment and by step, without losing the peak of the whole phase.

``torch.cuda.max_memory_allocated`` is bookkeeping on the host: reading and resetting it waits for no kernel, and the
allocator has served every tensor of a moment when the moment ends, whether or not the kernels have run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Peaks:
    """The largest allocated and reserved bytes since a reset."""

    allocated_bytes: int
    reserved_bytes: int

    def largest(self, other: Peaks) -> Peaks:
        """Return the larger of each figure: they need not come from one lap."""
        return Peaks(max(self.allocated_bytes, other.allocated_bytes), max(self.reserved_bytes, other.reserved_bytes))


class AllocatorCounters(Protocol):
    """What is asked of the allocator of one device."""

    def peaks(self) -> Peaks:
        """Return the peaks since the last reset."""

    def reset_peaks(self) -> None:
        """Begin the peaks anew, at what is allocated and reserved now."""

    def allocated_bytes(self) -> int:
        """Return what is allocated now."""

    def reserved_bytes(self) -> int:
        """Return what is reserved now."""

    def num_retries(self) -> int:
        """Return how often an allocation succeeded only after cached blocks were freed, since the process began."""

    def release_unused(self) -> None:
        """Give cached memory that no tensor holds back to the device."""

    def synchronize(self) -> None:
        """Wait for the device."""


class CudaCounters:
    """The counters of a CUDA device.

    One reading of the nested statistics is what ``max_memory_allocated`` and ``max_memory_reserved`` make a flat copy
    of, each for itself (torch/cuda/memory.py, ``memory_stats``).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def peaks(self) -> Peaks:
        """Return the peaks since the last reset."""
        stats = torch.cuda.memory_stats_as_nested_dict(self._device)
        return Peaks(stats["allocated_bytes"]["all"]["peak"], stats["reserved_bytes"]["all"]["peak"])

    def reset_peaks(self) -> None:
        """Begin the peaks anew."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def allocated_bytes(self) -> int:
        """Return what is allocated now."""
        return int(torch.cuda.memory_allocated(self._device))

    def reserved_bytes(self) -> int:
        """Return what is reserved now."""
        return int(torch.cuda.memory_reserved(self._device))

    def num_retries(self) -> int:
        """Return the allocator's retries since the process began."""
        return int(torch.cuda.memory_stats(self._device).get("num_alloc_retries", 0))

    def release_unused(self) -> None:
        """Empty the cache."""
        torch.cuda.empty_cache()

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self._device)


class PeakLaps:
    """Reads and resets the peaks, and keeps the largest of all laps since :meth:`begin`."""

    def __init__(self, counters: AllocatorCounters) -> None:
        self.counters = counters
        self._largest = Peaks(0, 0)

    def begin(self) -> None:
        """Forget what was, and begin the first lap."""
        self.counters.reset_peaks()
        self._largest = Peaks(0, 0)

    def lap(self) -> Peaks:
        """Return the peaks of the lap that ends here, and begin the next."""
        peaks = self.counters.peaks()
        self.counters.reset_peaks()
        self._largest = self._largest.largest(peaks)
        return peaks

    def end(self) -> Peaks:
        """End the last lap; return the peaks over all of them."""
        self.lap()
        return self._largest
