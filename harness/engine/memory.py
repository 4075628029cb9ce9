"""Memory and time of each phase of a run, under a meter of its own.

CUDA figures are None without CUDA. The allocated and reserved peaks are read in laps (``peak_laps``): within the train
phase one at every moment of every step, warm-up included, and the phase's figure is the largest of them. The device
figure is sampled through NVML in a thread (extra ``gpu``); None where NVML is not installed.
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

from harness.engine.peak_laps import AllocatorCounters, CudaCounters, PeakLaps
from harness.record import Phase

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
        laps, retries = self.laps, 0
        if laps is not None:
            laps.counters.synchronize()
            retries = laps.counters.num_retries()
            laps.begin()
        sampler = _DeviceSampler(self._device) if self._device.type == "cuda" else None
        start = time.perf_counter()
        try:
            yield
        finally:
            if laps is not None:
                laps.counters.synchronize()
            seconds = time.perf_counter() - start
            peaks = None if laps is None else laps.end()
            self._phases.append(
                Phase(
                    name=name,
                    seconds=seconds,
                    allocated_peak_bytes=peaks.allocated_bytes if peaks else None,
                    reserved_peak_bytes=peaks.reserved_bytes if peaks else None,
                    allocator_retries=laps.counters.num_retries() - retries if laps else None,
                    device_peak_bytes=sampler.stop() if sampler else None,
                    device_sample_seconds=DEVICE_SAMPLE_SECONDS if sampler and sampler.available else None,
                    host_peak_bytes=host_peak_bytes(),
                )
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on the device or on the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
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
