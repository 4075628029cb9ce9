"""How long runs will take, as far as that can be told before they start, and which of them start first.

Where several runs go on at once, the one that is foretold to take longest starts first: what ends last is then short,
and the whole is done soon after the last device has nothing new to begin. With true lengths that is at most 4/3 of the
best schedule (Graham 1969, SIAM Journal on Applied Mathematics 17:416-429).

A run is held to take as long as those of its model and label did on devices like these. Of a label without one, the
operations that were predicted for its training are taken at the rate of the runs that have ended; before any has, at
a nominal one, which orders them among each other just as well. A run that trains and of which nothing is predicted may
be the longest, and is held to be; one that only scores is short beside those that train.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from harness.readings import seconds_taken, steps_done
from harness.record import Record
from harness.record_training import Prediction
from harness.settings import TrainSettings
from harness.task import RunTask

NOMINAL_RATE = 1e12
"""Operations a second, of a device of which nothing is known: no order of predicted runs depends on it."""
NOMINAL_ROWS = 50_000
"""Rows of an epoch, whose number is known once they are read: it puts epochs beside numbers of steps, roughly."""


class Lengths:
    """What is known of the lengths of runs."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        """Take the records of runs on devices like those that the next ones will have."""
        self._took: dict[tuple[str, str], tuple[float, int]] = {}
        """Of a model and label the seconds of all runs, and how many they were."""
        self._per_operation: list[float] = []
        self._rate: float | None = None
        for record in records:
            self.note(record)

    def note(self, record: Record) -> bool:
        """Take in how a run ended; return whether that says how long others will take: not where it was cut off."""
        if not record.is_run or not (record.is_ok or record.is_unproven):
            return False
        seconds, kind = seconds_taken(record), (record.model_name, record.label)
        total, number = self._took.get(kind, (0.0, 0))
        self._took[kind] = total + seconds, number + 1
        operations = None if record.train is None else _operations(record.prediction, steps_done(record))
        if operations:
            self._per_operation.append(seconds / operations)
            self._rate = None
        return True

    def of(self, task: RunTask) -> float:
        """Return how many seconds a run will take; infinity where it trains and nothing is known."""
        if task.cannot_begin:
            return 0.0
        spec = task.spec
        if took := self._took.get((spec.model_name, spec.label)):
            return took[0] / took[1]
        if spec.train is None or task.finishes is not None:
            return 0.0
        operations = _operations(task.prediction, _steps(spec.train, spec.max_steps))
        if not operations:
            return math.inf
        if self._rate is None:
            self._rate = median(self._per_operation) if self._per_operation else 1 / NOMINAL_RATE
        return operations * self._rate

    def longest_first(self, tasks: Sequence[RunTask]) -> list[RunTask]:
        """Return runs with the longest first; of equal ones the order stays."""
        return sorted(tasks, key=self.of, reverse=True)  # with reverse the sort is stable too


def _operations(prediction: Prediction | None, num_steps: float) -> float | None:
    """Return the predicted operations of a run's training; None where nothing was predicted."""
    if prediction is None:
        return None
    return (prediction.flops_per_step + prediction.recomputed_flops_per_step) * num_steps


def _steps(train: TrainSettings, max_steps: int | None) -> float:
    """Return how many steps a training will take at most."""
    steps: float | None = train.num_steps
    if steps is None:
        steps = (train.num_epochs or 1) * NOMINAL_ROWS / (train.batch_size * train.gradient_accumulation_steps)
    return steps if max_steps is None else min(steps, max_steps)
