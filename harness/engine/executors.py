"""Runs a list of tasks, one child process at a time, and appends each record as it comes. Imports no torch itself."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from harness.engine.launch import Interrupted, keep_files, launch
from harness.engine.task import RunTask
from harness.record import OUTCOMES, Environment, Record
from harness.store import Store


class Watcher(Protocol):
    """What shows the user how a suite goes."""

    def run_begins(self, task: RunTask) -> None:
        """A run is about to start."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Something went on inside the run under way."""

    def run_ended(self, record: Record) -> None:
        """A run has its record, appended already."""


@dataclass(frozen=True)
class Tally:
    """How a call of ``harness run`` went."""

    records: tuple[Record, ...]
    interrupted: bool = False
    left_by_budget: int | None = None
    """Runs still to do when the budget ended, the one that it cut among them; None: it did not end first."""

    @property
    def exit_code(self) -> int:
        """Return 0 when every run has an outcome, 1 when one failed or timed out, 3 when the budget ended first.

        130 after an interrupt.
        """
        if self.interrupted:
            return 130
        if self.left_by_budget is not None:
            return 3
        return 0 if all(record.status in OUTCOMES for record in self.records) else 1


def run_locally(
    tasks: Sequence[RunTask],
    *,
    store: Store,
    environment: Environment,
    watcher: Watcher,
    timeout_seconds: float | None = None,
    stop_at: float | None = None,
    wanted: Callable[[RunTask], bool] = lambda task: True,
) -> Tally:
    """Execute tasks one after the other on this machine.

    Args:
        tasks: In the order in which they run.
        store: Where each record goes as soon as it is there.
        environment: The parent's.
        watcher: Is told how it goes.
        timeout_seconds: Of each run.
        stop_at: Time of ``time.monotonic()`` after which no run starts and at which the one under way is interrupted.
        wanted: Asked right before a run starts, so that work another process has done meanwhile is not done twice.

    Raises:
        HarnessError: a record cannot be stored, or a child cannot be started.
    """
    records: list[Record] = []

    def keep(task: RunTask, record: Record) -> None:
        kept = keep_files(task, record, store.folder)
        store.append(kept)
        records.append(kept)
        if kept.status in OUTCOMES and task.checkpoint_folder is not None:
            shutil.rmtree(task.checkpoint_folder, ignore_errors=True)
        watcher.run_ended(kept)

    def left(position: int) -> Tally:
        """Return the tally of a budget that ended before the task at a position was done."""
        return Tally(tuple(records), left_by_budget=sum(map(wanted, tasks[position:])) or None)

    for position, task in enumerate(tasks):
        if not wanted(task):
            continue
        if stop_at is not None and time.monotonic() >= stop_at:
            return left(position)
        watcher.run_begins(task)
        if task.refusal is not None:
            keep(task, task.record(environment, datetime.now(UTC), "refused", task.refusal))
            continue
        try:
            keep(task, launch(task, environment, watcher.progress, timeout_seconds, stop_at))
        except Interrupted as stop:
            keep(task, stop.record)
            return Tally(tuple(records), interrupted=True) if stop.by_user else left(position)
    return Tally(tuple(records))


def work_folder(store: Store, run_id: str, uuid: str) -> Path:
    """Return where a run leaves its files until they are moved beside its record."""
    return store.folder / ".work" / f"{run_id}-{uuid}"
