"""What a part is given, and what it returns."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch.profiler import ProfilerActivity, profile

from harness.calibration_log import Reading, Sizes
from harness.engine.peak_laps import CudaCounters
from harness.engine.ranks import ALONE, Deserted, Ranks, joined
from harness.tensors.storage_tracker import StorageTracker

Precision = Literal["fp32", "bf16"]
ROUNDS = 7
"""Measurements of a rate, whose median counts."""
ROUND_SECONDS = {"full": 0.05, "smoke": 0.002}
"""How long one of them takes at least."""


class Skip(Exception):
    """A part that cannot be asked here; the message says why."""


@dataclass(frozen=True)
class Found:
    """The answer of a part."""

    readings: tuple[Reading, ...] = ()
    sentence: str | None = None
    facts: dict[str, str | int | float | bool | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """The device under test."""

    device: torch.device
    sizes: Sizes
    rank: int = 0
    """Which process this is of those that share a part, from 0 on."""
    num_ranks: int = 1
    folder: Path = Path()
    """Where they meet."""

    @property
    def cuda(self) -> bool:
        """Return whether it is a CUDA device."""
        return self.device.type == "cuda"

    @contextmanager
    def joined(self, name: str) -> Iterator[Ranks]:
        """Meet the other processes that share a part, under a name that each meeting of theirs has to itself.

        Raises:
            Deserted: one of them is gone.
        """
        place = self.folder / name
        place.mkdir(exist_ok=True)
        met = ALONE
        try:
            with joined(self.num_ranks, self.rank, place) as met:
                yield met
        except RuntimeError as error:
            if met.left(error):
                raise Deserted(None) from error
            raise

    def own(self, sentence: str) -> str:
        """Return a sentence, said by this one of several processes."""
        return sentence if self.num_ranks == 1 else f"rank {self.rank} of {self.num_ranks}: {sentence}"

    def pick(self, full: int, smoke: int) -> int:
        """Return a size."""
        return full if self.sizes == "full" else smoke

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def random(self, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
        """Return normal random numbers on the device; a device works faster on zeros than on these."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*shape, dtype=dtype, device=self.device, generator=generator)

    def seconds_of(self, call: Callable[[], object]) -> float:
        """Return the median time of a call, synchronised, each measurement over as many calls as fill its time."""
        call()
        number, least = 1, ROUND_SECONDS[self.sizes]
        while (took := self._time(call, number)) < least:
            number = max(2 * number, min(1 << 20, int(number * least / max(took, 1e-9))))
        return statistics.median(self._time(call, number) for _ in range(ROUNDS)) / number

    def _time(self, call: Callable[[], object], number: int) -> float:
        self.synchronize()
        begin = time.perf_counter()
        for _ in range(number):
            call()
        self.synchronize()
        return time.perf_counter() - begin

    def counters(self) -> CudaCounters:
        """Return the allocator's counters.

        Raises:
            Skip: the device is a CPU.
        """
        if not self.cuda:
            raise Skip("a CPU has no caching allocator")
        return CudaCounters(self.device)

    @contextmanager
    def watching(self) -> Iterator[Watched]:
        """Yield what happens to the memory inside the ``with``, by the device's allocator."""
        watched = Watched()
        if not self.cuda:
            with _watching_cpu(watched):
                yield watched
            return
        counters = self.counters()
        counters.synchronize()
        before = counters.allocated_bytes()
        counters.reset_peaks()
        yield watched
        watched.peak_bytes = counters.peaks().allocated_bytes - before
        watched.left_bytes = counters.allocated_bytes() - before


@dataclass
class Watched:
    """Bytes of the device's memory, over what was there before."""

    peak_bytes: int = 0
    left_bytes: int = 0


@contextmanager
def _watching_cpu(watched: Watched) -> Iterator[None]:
    """Follow the CPU's allocator by torch's profiler, which sees what an operation makes inside itself too."""
    with warnings.catch_warnings(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        warnings.simplefilter("ignore")
        yield
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((one.start_ns(), i, one.nbytes()) for i, one in enumerate(events) if one.name() == "[memory]")
    for _, _, num_bytes in changes:
        watched.left_bytes += num_bytes
        watched.peak_bytes = max(watched.peak_bytes, watched.left_bytes)


@contextmanager
def watching_fakes(*there: torch.Tensor) -> Iterator[Watched]:
    """Yield what happens to storages inside the ``with``, of tensors that take no memory.

    Args:
        there: Tensors that are used inside and were made before; the tracker would take them for new ones.
    """
    watched = Watched()
    tracker = StorageTracker("cpu")
    tracker.adopt(there, "other")
    before = sum(tracker.alive().values())
    tracker.take()
    with tracker:
        yield watched
        watched.left_bytes = sum(tracker.alive().values()) - before
    watched.peak_bytes = tracker.take().peak.num_bytes - before
