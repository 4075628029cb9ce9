"""How long a step's updates take: on CUDA by events on the stream, which the host never waits for inside a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class OptimizerClock:
    """Adds up the time of updates, wherever in a step they are made, projector refreshes among them."""

    def __init__(self, device: torch.device) -> None:
        """Take the device that updates run on."""
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._spare: list[torch.cuda.Event] = []
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens inside."""
        if not self._cuda:
            begin = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begin
            return
        pair = self._event(), self._event()
        pair[0].record()
        yield
        pair[1].record()
        self._pairs.append(pair)

    def take(self) -> float:
        """Return the seconds since the last call; the device is synchronised."""
        seconds, self._seconds = self._seconds, 0.0
        for begin, end in self._pairs:
            seconds += begin.elapsed_time(end) / 1e3  # given in milliseconds
            self._spare += [begin, end]
        self._pairs.clear()
        return seconds

    def _event(self) -> torch.cuda.Event:
        return self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
