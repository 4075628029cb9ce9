"""Memory and time of each phase of a run, under a meter of its own.

CUDA figures are None without CUDA. The allocated and reserved peaks are reset at the start of a phase and nowhere else,
so the train phase's peak is the largest over all of its steps, warm-up included. The device figure is sampled through
NVML in a thread (extra ``gpu``); None where NVML is not installed.
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

from harness.record import Phase

DEVICE_SAMPLE_SECONDS = 0.05


class PhaseMeter:
    """Collects one :class:`Phase` per ``with meter.phase(name)``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._phases: list[Phase] = []
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
        cuda = self._device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            retries = _retries(self._device)
        sampler = _DeviceSampler(self._device) if cuda else None
        start = time.perf_counter()
        try:
            yield
        finally:
            if cuda:
                torch.cuda.synchronize(self._device)
            seconds = time.perf_counter() - start
            self._phases.append(
                Phase(
                    name=name,
                    seconds=seconds,
                    allocated_peak_bytes=torch.cuda.max_memory_allocated(self._device) if cuda else None,
                    reserved_peak_bytes=torch.cuda.max_memory_reserved(self._device) if cuda else None,
                    allocator_retries=_retries(self._device) - retries if cuda else None,
                    device_peak_bytes=sampler.stop() if sampler else None,
                    device_sample_seconds=DEVICE_SAMPLE_SECONDS if sampler and sampler.available else None,
                    host_peak_bytes=host_peak_bytes(),
                )
            )


def host_peak_bytes() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _retries(device: torch.device) -> int:
    return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0))


class _DeviceSampler:
    """Samples the device's used memory in a thread."""

    def __init__(self, device: torch.device) -> None:
        self._peak: int | None = None
        self._stop = threading.Event()
        self._handle: Any = None
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
            used = int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)
            self._peak = max(self._peak or 0, used)
            if self._stop.wait(DEVICE_SAMPLE_SECONDS):
                return

    def stop(self) -> int | None:
        if self._handle is not None:
            self._stop.set()
            self._thread.join()
        return self._peak
