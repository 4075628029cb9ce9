"""What an executor is: it does runs somewhere, within limits, and tells how they go. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from harness.progress import Facts
from harness.record import Record
from harness.record_environment import Environment
from harness.runs.describing import Card
from harness.runs.failing import NotStarted
from harness.store import Store
from harness.task import RunTask


@dataclass(frozen=True)
class Limits:
    """How long runs may take, and how many may fail."""

    timeout_seconds: float | None = None
    """Of each run; None: as long as it likes."""
    stop_at: float | None = None
    """Time of ``time.monotonic()`` after which no run starts and at which those under way are interrupted."""
    max_failures: int | None = None
    """So many failures, and no further run starts; those under way come to their end. None: as many as there are."""

    @property
    def over(self) -> bool:
        """Return whether the time of all runs is up."""
        return self.stop_at is not None and time.monotonic() >= self.stop_at


NO_LIMITS = Limits()


def always(task: RunTask) -> bool:
    """Want every run."""
    return True


class Observer(Protocol):
    """Hears of each run by itself while it goes on. It may be called from several threads, and raises nothing."""

    def begins(self, task: RunTask) -> None:
        """A run starts."""

    def told(self, task: RunTask, facts: Facts) -> None:
        """A run has taken a step, or its held-out loss is known; the last ones may stand in its record alone."""

    def ended(self, task: RunTask, record: Record) -> None:
        """A run has its record, appended already; one that cannot begin has it without a start."""


class Nobody:
    """An observer that does nothing."""

    def begins(self, task: RunTask) -> None:
        """Pass it over."""

    def told(self, task: RunTask, facts: Facts) -> None:
        """Pass it over."""

    def ended(self, task: RunTask, record: Record) -> None:
        """Pass it over."""


NOBODY = Nobody()


@dataclass(frozen=True)
class Runs:
    """What an executor is asked to do."""

    tasks: Sequence[RunTask]
    """In the order of the suite, in which they start one at a time; several at once start longest first."""
    store: Store
    """Where each record goes as soon as it is there."""
    limits: Limits = NO_LIMITS
    wanted: Callable[[RunTask], bool] = always
    """Asked right before a run starts, so that work another process has done meanwhile is not done twice."""
    tried: frozenset[str] = frozenset()
    """Statuses of which every seed is tried; of others, a run that would end as another seed's did is not started."""
    recorded: Sequence[Record] = ()
    """What ran before on devices like these: it tells how long a run will take."""
    card: Card | None = None
    """What writes the card of kept weights; None: they have none."""
    observer: Observer = NOBODY
    """Hears what each run says of itself."""
    patient: bool = True
    """Whether runs that other processes do are waited for, and done where those give them up; else they are left."""


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
    left_by_failures: int | None = None
    """Runs still to do when so many had failed that no further one was started; None: it did not come to that."""
    not_started: tuple[NotStarted, ...] = ()
    """Runs that would have ended as another seed's did."""

    @property
    def exit_code(self) -> int:
        """Return 0 when every run has an outcome that counts, 1 when one failed, timed out or is unproven.

        3 when the budget ended first, 130 after an interrupt.
        """
        if self.interrupted:
            return 130
        if self.left_by_budget is not None:
            return 3
        return 0 if all(record.has_outcome() and not record.is_unproven for record in self.records) else 1


class Executor(Protocol):
    """Does runs somewhere, each under its claim in the results folder."""

    def environment(self) -> Environment:
        """Return the environment that runs have there.

        Raises:
            HarnessError: it cannot be told.
        """

    def run(self, runs: Runs, watcher: Watcher) -> Tally:
        """Do each run that is wanted and that no other process does, and store its record as it comes.

        A task that cannot begin is recorded and starts nothing. An interrupt, and the end of the time, leave a record
        of what was under way.

        Raises:
            HarnessError: a record cannot be stored, or a run cannot be started; what ran beside it is interrupted.
        """
