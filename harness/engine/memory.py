"""Memory and time of each phase of a run, under a meter of its own.

CUDA figures are None without CUDA. The allocated and reserved peaks are read in laps (``peak_laps``): within the train
phase one at every moment of every step, warm-up included, and the phase's figure is the largest of them. What
interrupts a phase, as a look at the validation loss, is set aside as a phase of its own. The device figure is sampled
through NVML in a thread (extra ``gpu``); None where NVML is not installed.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from harness.engine.peak_laps import AllocatorCounters, CudaCounters, PeakLaps, Peaks
from harness.record_training import Phase

DEVICE_SAMPLE_SECONDS = 0.05


class PhaseMeter:
    """Collects one :class:`Phase` per ``with meter.phase(name)``."""

    def __init__(self, device: torch.device, counters: AllocatorCounters | None = None) -> None:
        """Take the device of a run.

        Args:
            device: Where it runs.
            counters: Of its allocator; None: the device's own, or nothing on a CPU.
        """
        self._device = device
        if counters is None and device.type == "cuda":
            counters = CudaCounters(device)
        self._phases: list[Phase] = []
        self._reading: _Reading | None = None
        self._asides: dict[str, _Reading] = {}
        self.laps = None if counters is None else PeakLaps(counters)
        """Who reads the allocator's peaks inside a phase goes through these laps; None without CUDA."""
        self.current: str | None = None
        """The phase under way, or the last one begun."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Return the phases that have ended, in order."""
        return tuple(self._phases)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what happens inside; the phase is kept also when it raises."""
        self.current = name
        self._reading, self._asides = _Reading(self._device, self.laps), {}
        self._reading.begin()
        try:
            yield
        finally:
            self._reading.end()
            readings = {name: self._reading, **self._asides}
            self._phases += [reading.phase(name) for name, reading in readings.items()]

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Measure an interruption of the phase under way, in whose seconds and peaks it is not.

        All interruptions of one name are one phase, kept behind the one that they interrupt. Memory that the allocator
        reserved for it alone is given back, so that the interrupted phase does not go on with it.
        """
        outer, phase = self._reading, self.current
        assert outer is not None and phase is not None
        inner = self._asides.setdefault(name, _Reading(self._device, self.laps))
        outer.end()
        self.current = name
        inner.begin()
        try:
            yield
        finally:
            inner.end()
            if self.laps is not None and inner.has_reserved_more:
                self.laps.counters.release_unused()
            outer.begin()
        self.current = phase


class _Reading:
    """What one phase took, over as many stretches as it was cut into."""

    def __init__(self, device: torch.device, laps: PeakLaps | None) -> None:
        self._device = device
        self._laps = laps
        self._seconds = 0.0
        self._peaks = Peaks(0, 0)
        self._retries = 0
        self._device_peak: int | None = None
        self._sampled = False
        self._sampler: _DeviceSampler | None = None
        self._retries_before = self._reserved_before = 0
        self.has_reserved_more = False
        """Whether the allocator reserved more during the last stretch than it held at its begin."""

    def begin(self) -> None:
        """Begin a stretch."""
        if self._laps is not None:
            self._laps.counters.synchronize()
            self._retries_before = self._laps.counters.num_retries()
            self._laps.begin()
            self._reserved_before = self._laps.counters.reserved_bytes()
        self._sampler = _DeviceSampler(self._device) if self._device.type == "cuda" else None
        self._start = time.perf_counter()

    def end(self) -> None:
        """End the stretch."""
        if self._laps is not None:
            self._laps.counters.synchronize()
        self._seconds += time.perf_counter() - self._start
        if self._laps is not None:
            peaks = self._laps.end()
            self.has_reserved_more = peaks.reserved_bytes > self._reserved_before
            self._peaks = self._peaks.largest(peaks)
            self._retries += self._laps.counters.num_retries() - self._retries_before
        if self._sampler is not None:
            peak, self._sampled = self._sampler.stop(), self._sampler.available
            self._device_peak = max((p for p in (peak, self._device_peak) if p is not None), default=None)

    def phase(self, name: str) -> Phase:
        """Return what was measured."""
        measured = self._laps is not None
        return Phase(
            name=name,
            seconds=self._seconds,
            allocated_peak_bytes=self._peaks.allocated_bytes if measured else None,
            reserved_peak_bytes=self._peaks.reserved_bytes if measured else None,
            allocator_retries=self._retries if measured else None,
            device_peak_bytes=self._device_peak,
            device_sample_seconds=DEVICE_SAMPLE_SECONDS if self._sampled else None,
            host_peak_bytes=host_peak_bytes(),
        )


def host_peak_bytes() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _DeviceSampler:
    """Samples the used memory of the whole device in a thread, that of every process on it.

    The process's own share (``nvmlDeviceGetComputeRunningProcesses``) is not taken: NVML gives it by the host's process
    ids, which a container does not know. What another process holds is thus in the figure; ``Environment.device_busy``
    says whether one was there when the run began.
    """

    def __init__(self, device: torch.device) -> None:
        self._peak: int | None = None
        self._stop = threading.Event()
        self._handle: Any = None
        self._thread: threading.Thread | None = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml = pynvml
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        except ImportError:
            return
        except pynvml.NVMLError:
            return
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    @property
    def available(self) -> bool:
        return self._handle is not None

    def _sample(self) -> None:
        while True:
            try:
                used = int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)
            except self._nvml.NVMLError:
                self._peak = self._handle = None  # what follows would be missing: no figure rather than half of one
                return
            self._peak = max(self._peak or 0, used)
            if self._stop.wait(DEVICE_SAMPLE_SECONDS):
                return

    def stop(self) -> int | None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
        return self._peak
