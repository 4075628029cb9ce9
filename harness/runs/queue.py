"""The runs still to do, handed out one at a time, each under its claim. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from harness.record import Record
from harness.runs.claims import Claims
from harness.runs.executor import Runs, always
from harness.runs.failing import Endings, NotStarted, is_failure
from harness.task import RunTask


class RunQueue:
    """The runs still to do."""

    def __init__(self, runs: Runs, claims: Claims) -> None:
        self.pending = list(runs.tasks)
        self.num_by_others = 0
        """Runs that other processes were found to have done."""
        self.not_started: list[NotStarted] = []
        """Runs that would end as another seed's did."""
        self._claims = claims
        self._wanted = runs.wanted
        self._endings = Endings(runs.tried)
        self._failures_left = runs.limits.max_failures

    @property
    def waiting(self) -> bool:
        """Return whether there is a run that may still start."""
        return bool(self.pending) and not self.closed

    @property
    def closed(self) -> bool:
        """Return whether so many runs have failed that no further one starts."""
        return self._failures_left is not None and self._failures_left <= 0

    def note(self, record: Record) -> None:
        """Take in how a run ended: it may keep others from being started."""
        self._endings.note(record)
        if self._failures_left is not None and is_failure(record):
            self._failures_left -= 1

    def is_off(self, task: RunTask) -> bool:
        """Return whether a run is not to begin any more, because of how others ended."""
        return self.closed or self._ending_for(task) is not None

    def take_back(self, task: RunTask) -> None:
        """Take a run that was handed out and did not begin: it is still to do, or left out."""
        self.release(task)
        if not self._spared(task):
            self.pending.append(task)

    def next(self, suits: Callable[[RunTask], bool] = always) -> RunTask | None:
        """Claim and return the first run that suits and that nobody does, or None where there is none at present.

        Raises:
            HarnessError: claims cannot be written.
        """
        for task in () if self.closed else tuple(self.pending):
            if self._spared(task):
                self.pending.remove(task)
                continue
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

    def _ending_for(self, task: RunTask) -> Record | None:
        """Return how a run would end as another seed's did; one that is refused beforehand has its own word."""
        return None if task.refusal is not None else self._endings.of(task.spec)

    def _spared(self, task: RunTask) -> bool:
        """Note and return that a run is left out, where it would end as another seed's did."""
        ending = self._ending_for(task)
        if ending is not None:
            self.not_started.append(NotStarted(task.spec, ending))
        return ending is not None

    def _claim(self, task: RunTask) -> bool:
        return self._claims.take(task.claim or task.uuid, task.work_folder.name)
