"""Runs a list of tasks, one child process a device at a time, and appends each record as it comes. Imports no torch.

Each run is claimed in the results folder before it starts, so that other processes on the same folder do other runs.
The files of a run stay in its work folder until its record is appended; what a parent that was killed before that has
left there is taken up by the next.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from harness.engine.claims import Claims
from harness.engine.launch import Interrupted, Stop, keep_files, launch, left_record
from harness.engine.task import RunTask
from harness.record import OUTCOMES, Environment, Record
from harness.store import Store

WORK = ".work"
POLL_SECONDS = 1.0
"""How often runs that other processes have claimed are looked at."""


class Watcher(Protocol):
    """What shows the user how a suite goes."""

    def run_begins(self, task: RunTask) -> None:
        """A run is about to start."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Something went on inside the run under way."""

    def run_ended(self, record: Record) -> None:
        """A run has its record, appended already."""

    def waits(self, num_runs: int) -> None:
        """Nothing is left to start but runs that other processes are doing."""


@dataclass(frozen=True)
class Tally:
    """How a call of ``harness run`` went."""

    records: tuple[Record, ...]
    interrupted: bool = False
    left_by_budget: int | None = None
    """Runs still to do when the budget ended, the one that it cut among them; None: it did not end first."""
    num_by_others: int = 0
    """Runs that other processes did meanwhile."""

    @property
    def exit_code(self) -> int:
        """Return 0 when every run has an outcome that counts, 1 when one failed, timed out or is unproven.

        3 when the budget ended first, 130 after an interrupt.
        """
        if self.interrupted:
            return 130
        if self.left_by_budget is not None:
            return 3
        return 0 if all(record.status in OUTCOMES - {"unproven"} for record in self.records) else 1


@dataclass(frozen=True)
class Device:
    """What one run at a time has to itself."""

    environment: Environment
    """As a run on it sees."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that show a run this device and no other."""

    def holds(self, task: RunTask) -> bool:
        """Return whether a run's predicted peak fits; what is not known does."""
        memory = self.environment.device_memory_bytes
        return memory is None or task.prediction is None or task.prediction.peak_bytes <= memory


class RunQueue:
    """The runs still to do, handed out one at a time, each under its claim."""

    def __init__(self, tasks: Sequence[RunTask], claims: Claims, wanted: Callable[[RunTask], bool]) -> None:
        self.pending = list(tasks)
        self.num_by_others = 0
        self._claims = claims
        self._wanted = wanted

    def next(self, suits: Callable[[RunTask], bool] = lambda task: True) -> RunTask | None:
        """Claim and return the first run that suits and that nobody does, or None where there is none at present.

        Raises:
            HarnessError: claims cannot be written.
        """
        for task in tuple(self.pending):
            if not suits(task) or (self._wanted(task) and not self._claim(task)):
                continue
            self.pending.remove(task)
            # Asked again under the claim: whoever held it before may have done the run.
            if self._wanted(task):
                return task
            self.release(task)
            self.num_by_others += 1
        return None

    def release(self, task: RunTask) -> None:
        """Give up the claim on a run."""
        self._claims.release(task.claim or task.uuid)

    def num_left(self, *begun: RunTask) -> int:
        """Return how many runs are still to do, those that were begun and cut off among them."""
        return sum(map(self._wanted, (*begun, *self.pending)))

    def _claim(self, task: RunTask) -> bool:
        return self._claims.take(task.claim or task.uuid, task.work_folder.name)


def run_locally(
    tasks: Sequence[RunTask],
    *,
    store: Store,
    environment: Environment,
    watcher: Watcher,
    timeout_seconds: float | None = None,
    stop_at: float | None = None,
    wanted: Callable[[RunTask], bool] = lambda task: True,
    devices: Sequence[Device] = (),
) -> Tally:
    """Execute tasks on this machine, one at a time on each device.

    Args:
        tasks: In the order in which they run.
        store: Where each record goes as soon as it is there.
        environment: The parent's.
        watcher: Is told how it goes.
        timeout_seconds: Of each run.
        stop_at: Time of ``time.monotonic()`` after which no run starts and at which the one under way is interrupted.
        wanted: Asked right before a run starts, so that work another process has done meanwhile is not done twice.
        devices: A run goes to the first that is free and holds its predicted peak, to any where none does. Empty: the
            one of the environment.

    Raises:
        HarnessError: a record cannot be stored, or a child cannot be started; what ran beside it is interrupted.
    """
    devices = devices or (Device(environment),)
    stop, lock = Stop(), threading.RLock()
    records: list[Record] = []
    cut_by_budget: list[RunTask] = []

    def keep(task: RunTask, record: Record) -> None:
        with lock:
            records.append(settle(task.work_folder, record, store, task.checkpoint_folder))
            queue.release(task)
            watcher.run_ended(records[-1])

    def run(task: RunTask, device: Device) -> None:
        if task.refusal is not None:
            keep(task, task.record(device.environment, datetime.now(UTC), "refused", task.refusal))
            return
        try:
            record = launch(
                task,
                device.environment,
                watcher.progress,
                timeout_seconds,
                stop_at,
                stop=stop,
                variables=device.variables,
            )
            keep(task, record)
        except Interrupted as cut:
            keep(task, cut.record)
            if not cut.by_user:
                cut_by_budget.append(task)

    def work(device: Device) -> None:
        """Do what suits a device until nothing is left."""
        waiting = False
        while queue.pending and not stop.asked and not _is_over(stop_at):
            with lock:
                task = queue.next(lambda task: _suits(task, device, devices))
                if task is None and queue.pending and not waiting:
                    waiting = True
                    if len(devices) == 1:
                        watcher.waits(len(queue.pending))
                if task is not None:
                    waiting = False
                    watcher.run_begins(task)
            if task is not None:
                run(task, device)
            elif queue.pending:
                time.sleep(POLL_SECONDS)

    def guarded(device: Device) -> None:
        whole = False
        try:
            work(device)
            whole = True
        finally:
            if not whole:
                stop.ask()

    with Claims(store.folder) as claims, _asked_by_signals(stop), ThreadPoolExecutor(len(devices)) as pool:
        queue = RunQueue(tasks, claims, wanted)
        for worker in [pool.submit(guarded, device) for device in devices]:
            worker.result()
    ended = cut_by_budget or (queue.pending and _is_over(stop_at))
    return Tally(
        tuple(records),
        interrupted=stop.asked,
        left_by_budget=queue.num_left(*cut_by_budget) or None if ended and not stop.asked else None,
        num_by_others=queue.num_by_others,
    )


def _suits(task: RunTask, device: Device, devices: Sequence[Device]) -> bool:
    """Return whether a run may go to a device: it holds the predicted peak, or none does."""
    return device.holds(task) or not any(other.holds(task) for other in devices)


def _is_over(stop_at: float | None) -> bool:
    return stop_at is not None and time.monotonic() >= stop_at


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


def settle(work: Path, record: Record, store: Store, checkpoints: Path | None) -> Record:
    """Move a run's files beside the records, append its record, and then remove what the run left; return the record.

    In this order a parent may be killed at any moment: the work folder, with the child's record in it, is there until
    the record is in the store. See ``recover``.

    Raises:
        HarnessError: the files cannot be moved or the record cannot be stored; the work folder stays.
    """
    kept = keep_files(work, record, store.folder)
    store.append(kept)
    if checkpoints is not None and kept.status in OUTCOMES:
        shutil.rmtree(checkpoints, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
    return kept


def recover(store: Store) -> int:
    """Take up what processes that are gone have left: append the records of their finished runs, remove the rest.

    Return how many records were appended.

    Raises:
        HarnessError: claims or records cannot be written.
    """
    recovered = 0
    with Claims(store.folder) as claims, claims.abandoned(store.folder / WORK) as folders:
        for folder in folders:
            record = left_record(folder)
            if record is None or not folder.name.endswith(record.uuid):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            if all(record.uuid != known.uuid for known in store.read(record.spec.suite).records):
                settle(folder, record, store, checkpoint_folder(store, record.run_id, record.environment_id))
                recovered += 1
            shutil.rmtree(folder, ignore_errors=True)
    return recovered


def checkpoint_folder(store: Store, run_id: str, environment_id: str) -> Path:
    """Return where the checkpoints of a run lie, whichever process attempts it."""
    return store.folder / "checkpoints" / f"{run_id}-{environment_id}"


def work_folder(store: Store, run_id: str, uuid: str) -> Path:
    """Return where a run leaves its files until they are moved beside its record."""
    return store.folder / WORK / f"{run_id}-{uuid}"
