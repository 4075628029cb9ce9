"""What the runs of a row say together: an estimate of a score, or one value of a quantity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from harness import quantities
from harness.quantity import Quantity
from harness.record import Score
from harness.report.reading.chosen import ScoreKey
from harness.report.reading.items import ItemKey, outcomes_of
from harness.report.reading.summary import Row, ScoreColumn, Summary
from harness.report.statistics.intervals import Estimate, Interval, estimate_average, estimate_score
from harness.report.statistics.means import mean_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NORMALISED = "acc_norm"
OUTCOMES = "outcomes"
"""Place of a row's outcomes item by item among its estimates."""


def over_seeds(row: Row, quantity: Quantity) -> float | None:
    """Return a quantity of a row in one value over its seeds; a mean is None unless every finished run has it."""
    if quantity not in row.estimates:
        row.estimates[quantity] = _over_seeds(row, quantity)
    found: float | None = row.estimates[quantity]
    return found


def _over_seeds(row: Row, quantity: Quantity) -> float | None:
    values = _measured(row, quantity)
    known = [value for value in values if value is not None]
    if quantity.over_seeds == "mean":
        return fmean(known) if known and len(known) == len(values) else None
    return max(known, key=abs if quantity.over_seeds == "farthest" else None, default=None)


def _measured(row: Row, quantity: Quantity) -> Sequence[float | None]:
    """Return a quantity of each run that counts for it, in the order of the row."""
    key = "measured", quantity.of_any_run
    if key not in row.estimates:
        runs = row.runs if quantity.of_any_run else row.finished
        read = [run.measured for run in runs if run.record is not None]
        columns = zip(quantities.ALL, zip(*read, strict=True), strict=True) if read else ()
        row.estimates[key] = {one: values for one, values in columns if one.of_any_run == quantity.of_any_run}
    found: dict[Quantity, Sequence[float | None]] = row.estimates[key]
    if quantity in found or quantity in quantities.ALL:
        return found.get(quantity, ())
    runs = row.runs if quantity.of_any_run else row.finished
    return [quantity.read(run.record) for run in runs if run.record is not None]


def score_of_row(row: Row, column: ScoreColumn) -> tuple[Estimate, str] | None:
    """Return the estimate of one metric over a row's finished runs and its unit; None unless all have it."""
    if column not in row.estimates:
        row.estimates[column] = _estimate_of_row(row, column)
    found: tuple[Estimate, str] | None = row.estimates[column]
    return found


def _estimate_of_row(row: Row, column: ScoreColumn) -> tuple[Estimate, str] | None:
    scores = row.scores(column)
    known = [score for score in scores if score is not None]
    if not known or len(known) < len(scores):
        return None
    return estimate_score(known, _by_item(row, [column])), known[0].unit


def _by_item(row: Row, columns: Sequence[ScoreColumn]) -> Interval | None:
    """Return the interval of a row's mean over tasks from its items; None where any are missing.

    One run needs its items only where its scores are not enough, as those of a group that weighs its tasks.
    """
    if not row.finished:
        return None
    lone = row.finished[0].score(columns[0]) if len(row.finished) == 1 and len(columns) == 1 else None
    if len(row.finished) == 1 and (lone is None or not lone.subtasks):
        return None
    found = [_outcomes(row, column) for column in columns]
    known = [outcomes for outcomes in found if outcomes is not None]
    return mean_interval(known) if len(known) == len(found) else None


def _outcomes(row: Row, column: ScoreColumn) -> NDArray[np.float64] | None:
    """Return what each run scored on each item of a task, (num_seeds, num_items); None unless all have the same."""
    if OUTCOMES not in row.estimates:
        row.estimates[OUTCOMES] = _read_outcomes(row)
    found: dict[ScoreKey, NDArray[np.float64]] = row.estimates[OUTCOMES]
    return found.get((column.task, column.metric or "", column.subtasks))


def _read_outcomes(row: Row) -> dict[ScoreKey, NDArray[np.float64]]:
    """Return the outcomes behind every score that all runs of a row have, from each file of items read once.

    Of a run only the numbers are held on to, in the order of the first run's items.
    """
    import numpy as np

    items: dict[ScoreKey, tuple[ItemKey, ...]] = {}
    found: dict[ScoreKey, list[NDArray[np.float64]]] = {score.key: [] for score in row.finished[0].scores}
    for run in row.finished:
        scores = {score.key: score for score in run.scores}
        for key in tuple(found):
            name = run.files.get(key)
            file = None if name is None else row.read_items(name)
            outcomes = None if key not in scores or file is None else outcomes_of(scores[key], file)
            if outcomes is None or outcomes.keys() != set(items.setdefault(key, tuple(outcomes))):
                del found[key]
            else:
                found[key].append(np.array([outcomes[item] for item in items[key]]))
    return {key: np.array(rows) for key, rows in found.items()}


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
    known = _known([row.scores(column) for column in entering])
    return None if known is None else _average(list(zip(*known, strict=True)), _by_item(row, entering))


def _known(columns: Sequence[Sequence[Score | None]]) -> list[list[Score]] | None:
    """Return the scores of each task where every run has all of them and there are any; else None."""
    known = [[score for score in scores if score is not None] for scores in columns]
    whole = all(len(found) == len(scores) for found, scores in zip(known, columns, strict=True))
    return known if known and known[0] and whole else None


def normalised_average_of_row(row: Row, columns: Sequence[ScoreColumn]) -> tuple[Estimate, str] | None:
    """Return the same mean with ``acc_norm`` for the tasks that have it; None where the mean itself is none."""
    if average_of_row(row, columns) is None:
        return None
    entering = [column for column in columns if column.in_average]
    chosen = [_normalised(row, column) for column in entering]
    metrics = [{score.metric for score in scores} for scores in chosen]
    alike = [replace(column, metric=min(found)) for column, found in zip(entering, metrics, strict=True)]
    by_item = _by_item(row, alike) if all(len(found) == 1 for found in metrics) else None
    return _average(list(zip(*chosen, strict=True)), by_item)


def has_normalised(summary: Summary) -> bool:
    """Return whether a task of the average has ``acc_norm`` beside ``acc``."""
    normalised = [
        replace(column, metric=NORMALISED) for column in summary.columns if column.in_average and column.metric == "acc"
    ]
    return any(score is not None for column in normalised for row in summary.rows for score in row.scores(column))


def _normalised(row: Row, column: ScoreColumn) -> list[Score]:
    """Return each finished run's score of a task, all of which have one: ``acc_norm`` where there is such."""
    own = row.scores(column)
    if column.metric == "acc":
        others = row.scores(replace(column, metric=NORMALISED))
        own = [score if other is None else other for score, other in zip(own, others, strict=True)]
    known = [score for score in own if score is not None]
    assert len(known) == len(own)
    return known


def _average(runs: Sequence[Sequence[Score]], by_item: Interval | None) -> tuple[Estimate, str] | None:
    units = {score.unit for run in runs for score in run}
    return (estimate_average(runs, by_item), units.pop()) if len(units) == 1 else None


def column_title(column: ScoreColumn) -> str:
    """Return how a task's column is called: the metric is named where it is not accuracy, of a group how many tasks.

    So is what it was scored on where that is not lm-eval's.
    """
    name = column.task if column.metric in {None, "acc"} else f"{column.task} {column.metric}"
    name += " on rows of a file" * column.on_files
    if not column.subtasks:
        return name
    count = len(column.subtasks)
    return f"{name}{' overall' * column.in_average} ({count} {'task' if count == 1 else 'tasks'})"


def average_title(summary: Summary) -> str:
    """Return the heading of the average; of one group alone it is the group's overall score."""
    if summary.lone_group is not None:
        return column_title(summary.lone_group)
    number = sum(column.in_average for column in summary.columns)
    return f"average of {number} task{'s' * (number != 1)}"
