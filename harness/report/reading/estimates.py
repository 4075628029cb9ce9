"""What the runs of a row say together: an estimate of a score, or one value of a quantity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from harness.quantity import Quantity
from harness.record import Score
from harness.report.reading.summary import Row, Run, ScoreColumn, Summary
from harness.report.statistics.intervals import Estimate, estimate_average, estimate_score

NORMALISED = "acc_norm"


def over_seeds(row: Row, quantity: Quantity) -> float | None:
    """Return a quantity of a row in one value over its seeds; a mean is None unless every finished run has it."""
    if quantity not in row.estimates:
        row.estimates[quantity] = _over_seeds(row, quantity)
    found: float | None = row.estimates[quantity]
    return found


def _over_seeds(row: Row, quantity: Quantity) -> float | None:
    runs = row.runs if quantity.of_any_run else row.finished
    values = [quantity.read(run.record) for run in runs if run.record is not None]
    known = [value for value in values if value is not None]
    if quantity.over_seeds == "mean":
        return fmean(known) if known and len(known) == len(values) else None
    return max(known, key=abs if quantity.over_seeds == "farthest" else None, default=None)


def score_of_row(row: Row, column: ScoreColumn) -> tuple[Estimate, str] | None:
    """Return the estimate of one metric over a row's finished runs and its unit; None unless all have it."""
    if column not in row.estimates:
        row.estimates[column] = _estimate_of_row(row, column)
    found: tuple[Estimate, str] | None = row.estimates[column]
    return found


def _estimate_of_row(row: Row, column: ScoreColumn) -> tuple[Estimate, str] | None:
    scores = [run.score(column) for run in row.finished]
    known = [score for score in scores if score is not None]
    if not known or len(known) < len(scores):
        return None
    return estimate_score(known), known[0].unit


def average_of_row(row: Row, columns: Sequence[ScoreColumn]) -> tuple[Estimate, str] | None:
    """Return the mean of the headline metrics over the suite's tasks and its unit.

    None where a task is missing in a finished run, or where the metrics have different units: such a mean is not one.
    """
    entering = tuple(column for column in columns if column.in_average)
    if entering not in row.estimates:
        row.estimates[entering] = _average_of_row(row, entering)
    found: tuple[Estimate, str] | None = row.estimates[entering]
    return found


def _average_of_row(row: Row, entering: Sequence[ScoreColumn]) -> tuple[Estimate, str] | None:
    runs: list[list[Score]] = []
    for run in row.finished:
        scores = [run.score(column) for column in entering]
        known = [score for score in scores if score is not None]
        if not known or len(known) < len(scores):
            return None
        runs.append(known)
    return _average(runs)


def normalised_average_of_row(row: Row, columns: Sequence[ScoreColumn]) -> tuple[Estimate, str] | None:
    """Return the same mean with ``acc_norm`` for the tasks that have it; None where the mean itself is none."""
    if average_of_row(row, columns) is None:
        return None
    entering = [column for column in columns if column.in_average]
    return _average([[_normalised(run, column) for column in entering] for run in row.finished])


def has_normalised(summary: Summary) -> bool:
    """Return whether a task of the average has ``acc_norm`` beside ``acc``."""
    return any(
        run.score(replace(column, metric=NORMALISED)) is not None
        for column in summary.columns
        if column.in_average and column.metric == "acc"
        for row in summary.rows
        for run in row.finished
    )


def _normalised(run: Run, column: ScoreColumn) -> Score:
    score = run.score(replace(column, metric=NORMALISED)) if column.metric == "acc" else None
    own = run.score(column) if score is None else score
    assert own is not None
    return own


def _average(runs: Sequence[Sequence[Score]]) -> tuple[Estimate, str] | None:
    units = {score.unit for run in runs for score in run}
    return (estimate_average(runs), units.pop()) if len(units) == 1 else None


def column_title(column: ScoreColumn) -> str:
    """Return how a task's column is called: the metric is named where it is not accuracy, of a group how many tasks."""
    name = column.task if column.metric in {None, "acc"} else f"{column.task} {column.metric}"
    if not column.subtasks:
        return name
    count = len(column.subtasks)
    return f"{name}{' overall' * column.in_average} ({count} {'task' if count == 1 else 'tasks'})"


def average_title(summary: Summary) -> str:
    """Return the heading of the average; of one group alone it is the group's overall score."""
    if summary.lone_group is not None:
        return column_title(summary.lone_group)
    return f"average of {sum(column.in_average for column in summary.columns)} tasks"
