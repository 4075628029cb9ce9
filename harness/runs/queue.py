"""The runs still to do, handed out one at a time, each under its claim. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from harness.runs.claims import Claims
from harness.runs.executor import Runs, always
from harness.task import RunTask


class RunQueue:
    """The runs still to do."""

    def __init__(self, runs: Runs, claims: Claims) -> None:
        self.pending = list(runs.tasks)
        self.num_by_others = 0
        """Runs that other processes were found to have done."""
        self._claims = claims
        self._wanted = runs.wanted

    def next(self, suits: Callable[[RunTask], bool] = always) -> RunTask | None:
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
