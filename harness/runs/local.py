"""Runs on the devices of this machine: one at a time on each, or on each group of them. Imports no torch."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from harness.record_environment import Environment
from harness.runs.children import Stop
from harness.runs.claims import Claims
from harness.runs.executor import Runs, Tally, Watcher
from harness.runs.process import Interrupted, launch
from harness.runs.queue import RunQueue
from harness.runs.settling import Ledger
from harness.runs.starting import Hurried, Process, Start, Template, start_anew
from harness.task import RunTask

POLL_SECONDS = 1.0
"""How often runs that other processes have claimed are looked at."""

_Start = Callable[..., Process]
"""As :class:`harness.runs.starting.Start`, with ``last``: whether no other run is to begin."""


@dataclass(frozen=True)
class Device:
    """What one run at a time has to itself: a device, or as many as a run has ranks."""

    environment: Environment
    """As a run on it sees."""
    variables: tuple[Mapping[str, str], ...] = ({},)
    """Environment variables of each rank of a run, which show it its device and no other."""

    def holds(self, task: RunTask) -> bool:
        """Return whether a run's predicted peak fits; what is not known does."""
        return task.prediction is None or self.environment.holds(task.prediction)


class LocalMachine:
    """The devices of this machine, of one kind; satisfies :class:`harness.runs.executor.Executor`."""

    def __init__(self, devices: Sequence[Device], start: Start = start_anew) -> None:
        """Take the devices, at least one.

        A run goes to the first that is free and holds its predicted peak, to any where none does.

        Args:
            devices: Of one kind.
            start: What starts a run's children where no template forks them.
        """
        assert devices
        self._devices = tuple(devices)
        self._anew = start
        self._template: Template | None = None

    def expect(self, architectures: Iterable[str]) -> None:
        """Hear that runs on models of these architectures will come: on a CPU a template begins to import for them.

        A GPU's libraries cannot be forked once they have looked at it: there each run is started anew.
        """
        alike = all(device.variables == ({},) and not device.environment.on_cuda for device in self._devices)
        if alike and Template.is_possible():
            self.close()
            self._template = Template(sorted(set(architectures)))

    def close(self) -> None:
        """End the template, if there is one."""
        if self._template is not None:
            self._template.close()
            self._template = None

    def environment(self) -> Environment:
        """Return the environment of a run on the first device."""
        return self._devices[0].environment

    def run(self, runs: Runs, watcher: Watcher) -> Tally:
        """Do runs, one at a time on each device; see :meth:`harness.runs.executor.Executor.run`."""
        stop = Stop()
        with Claims(runs.store.folder) as claims, _asked_by_signals(stop):
            queue = RunQueue(runs, claims, at_once=len(self._devices) > 1)
            return _Session(self._devices, runs, watcher, queue=queue, stop=stop, start=self._start).do()

    def _start(self, variables: Mapping[str, str], hurried: Hurried, last: bool) -> Process:
        """Begin a run's child; the template ends with the last, whose memory it need not hold."""
        start = self._anew if self._template is None else self._template.start
        try:
            return start(variables, hurried)
        finally:
            if last:
                self.close()


class _Session:
    """One call: a thread for each device, which takes runs from one queue."""

    def __init__(
        self,
        devices: Sequence[Device],
        runs: Runs,
        watcher: Watcher,
        *,
        queue: RunQueue,
        stop: Stop,
        start: _Start,
    ) -> None:
        self._start = start
        self._devices = devices
        self._limits = runs.limits
        self._watcher = watcher
        self._observer = runs.observer
        self._queue = queue
        self._stop = stop
        self._ledger = Ledger(runs, queue, watcher)
        self._lock = threading.RLock()
        self._cut_by_budget: list[RunTask] = []

    def do(self) -> Tally:
        """Do what is to be done, and return how it went."""
        with ThreadPoolExecutor(len(self._devices)) as pool:
            for worker in [pool.submit(self._serve, device) for device in self._devices]:
                worker.result()
        cut, queue, stopped = self._cut_by_budget, self._queue, self._stop.asked
        in_time = not cut and not (queue.pending and self._limits.over)
        left = None if stopped or in_time else queue.num_left(*cut) or None
        return self._ledger.tally(interrupted=stopped, left_by_budget=left)

    def _serve(self, device: Device) -> None:
        """Do what suits a device until nothing is left; where that fails, the others are stopped."""
        whole = waiting = False
        try:
            while self._queue.waiting and not self._stop.asked and not self._limits.over:
                task = self._next(device, waiting)
                waiting = task is None
                if task is not None:
                    self._do(task, device)
                elif self._queue.waiting:
                    time.sleep(POLL_SECONDS)
            whole = True
        finally:
            if not whole:
                self._stop.ask()

    def _next(self, device: Device, waiting: bool) -> RunTask | None:
        """Take the next run that suits a device and say that it begins, or once that only others' runs are left."""
        with self._lock:
            task = self._queue.next(lambda task: self._suits(task, device))
            if task is not None:
                self._watcher.run_begins(task)
            elif self._queue.waiting and not waiting and len(self._devices) == 1:
                self._watcher.waits(len(self._queue.pending))
            return task

    def _do(self, task: RunTask, device: Device) -> None:
        if task.cannot_begin:
            with self._lock:
                self._ledger.keep_refusal(task, device.environment)
            return
        self._observer.begins(task)
        try:
            record = launch(
                task,
                device.environment,
                self._watcher.progress,
                self._limits,
                stop=self._stop,
                variables=device.variables,
                start=partial(self._start, last=not self._queue.pending),
                tell=partial(self._observer.told, task),
            )
        except Interrupted as cut:
            record = cut.record
            if not cut.by_user:
                self._cut_by_budget.append(task)
        with self._lock:
            self._ledger.keep(task, record)

    def _suits(self, task: RunTask, device: Device) -> bool:
        """Return whether a run may go to a device: it holds the predicted peak, or none does."""
        return device.holds(task) or not any(other.holds(task) for other in self._devices)


@contextlib.contextmanager
def _asked_by_signals(stop: Stop) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM ask to stop as long as this lasts: nothing is cut off halfway, no child orphaned."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: stop.ask()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
