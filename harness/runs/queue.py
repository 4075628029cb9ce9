"""The runs still to do, handed out one at a time, each under its claim. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from harness.record import Record
from harness.runs.claims import Claims
from harness.runs.executor import Runs, always
from harness.runs.failing import Endings, NotStarted, is_failure
from harness.runs.lengths import Lengths
from harness.task import RunTask


class RunQueue:
    """The runs still to do."""

    def __init__(self, runs: Runs, claims: Claims, *, at_once: bool = False) -> None:
        """Take what is to be done.

        Args:
            runs: In the order of the suite.
            claims: Of this process.
            at_once: Whether several runs go on at once: then the longest start first. Else the order stays, unless
                other processes are found to do runs in the same results folder.
        """
        self.pending = list(runs.tasks)
        self.num_by_others = 0
        """Runs that other processes were found to have done."""
        self.not_started: list[NotStarted] = []
        """Runs that would end as another seed's did."""
        self._claims = claims
        self._wanted = runs.wanted
        self._patient = runs.patient
        self._endings = Endings(runs.tried)
        self._failures_left = runs.limits.max_failures
        self._lengths = Lengths(runs.recorded)
        self._place = {task.uuid: place for place, task in enumerate(runs.tasks)}
        self._at_once = at_once
        self._is_ordered = not at_once

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
        if self._lengths.note(record):
            self._is_ordered = not self._at_once
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
            self._is_ordered = not self._at_once

    def next(self, suits: Callable[[RunTask], bool] = always) -> RunTask | None:
        """Claim and return the first run that suits and that nobody does, or None where there is none at present.

        The first is the longest where several go on at once, here or in other processes.

        Raises:
            HarnessError: claims cannot be written.
        """
        elsewhere = self._claims.of_others()
        self._put_in_order(beside_others=bool(elsewhere))
        for task in () if self.closed else tuple(self.pending):
            if self._spared(task):
                self._drop(task)
                continue
            if not suits(task) or (task.claimed_as in elsewhere and self._claims.was_held(task.claimed_as)):
                continue
            if self._wanted(task):
                if not self._claim(task):
                    if not self._patient:
                        self._leave(task)
                    continue
                # Asked again under the claim: whoever held it before may have done the run.
                if self._wanted(task):
                    self._drop(task)
                    return task
                self.release(task)
            self._leave(task)
        return None

    def release(self, task: RunTask) -> None:
        """Give up the claim on a run."""
        self._claims.release(task.claimed_as)

    def num_left(self, *begun: RunTask) -> int:
        """Return how many runs are still to do, those that were begun and cut off among them."""
        return sum(map(self._wanted, (*begun, *self.pending)))

    def _put_in_order(self, *, beside_others: bool) -> None:
        """Put the longest runs first where several go on at once; of equal ones the order of the suite stays."""
        if not self._at_once and beside_others:
            self._at_once, self._is_ordered = True, False
        if not self._is_ordered:
            self.pending.sort(key=lambda task: self._place[task.uuid])
            self.pending = self._lengths.longest_first(self.pending)
            self._is_ordered = True

    def _ending_for(self, task: RunTask) -> Record | None:
        """Return how a run would end as another seed's did; one that is refused beforehand has its own word."""
        return None if task.refusal is not None else self._endings.of(task.spec)

    def _spared(self, task: RunTask) -> bool:
        """Note and return that a run is left out, where it would end as another seed's did."""
        ending = self._ending_for(task)
        if ending is not None:
            self.not_started.append(NotStarted(task.spec, ending))
        return ending is not None

    def _leave(self, task: RunTask) -> None:
        self._drop(task)
        self.num_by_others += 1

    def _claim(self, task: RunTask) -> bool:
        return self._claims.take(task.claimed_as, task.work_folder.name)

    def _drop(self, task: RunTask) -> None:
        self.pending = [other for other in self.pending if other is not task]
