"""scores.csv and runs.csv: every number in full, of every run's newest record, in the tables or not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from harness import quantities
from harness.readings import FACTS, IDENTITY, live_parts, live_peak, predicted_parts, step_peak
from harness.record import Record
from harness.record_training import MemoryBreakdown, OutOfMemoryAt, Phase, Prediction, TrackedPeak, TrainResult
from harness.report.reading.summary import Run, Summary
from harness.stand_ins import called

if TYPE_CHECKING:
    import pandas as pd

COLUMNS_OF_IDENTITY = (
    "suite",
    "suite_version",
    "protocol",
    "model",
    "label",
    "method",
    "seed",
    "run_id",
    "environment_id",
    "uuid",
    "in_table",
)
SCORE_FIELDS = (
    "task",
    "metric",
    "value",
    "stderr",
    "n",
    "unit",
    "higher_is_better",
    "headline",
    "task_version",
    "num_fewshot",
)
SCORE_COLUMNS = (*COLUMNS_OF_IDENTITY, *SCORE_FIELDS, "limit", "evaluation_rows", "num_subtasks")
"""``num_subtasks``: of a group's score the tasks that it is over; 0 of a task's own."""


@cache
def _numbers(part: type[BaseModel], without: str = "") -> tuple[str, ...]:
    """Return the names of what a part of a record holds in one number, word or truth value each."""
    return tuple(name for name, field in part.model_fields.items() if name != without and _is_scalar(field.annotation))


def _is_scalar(annotation: Any) -> bool:
    if get_origin(annotation) not in (None, Union, UnionType, Literal):
        return False
    kinds = get_args(annotation) or (annotation,)
    return all(isinstance(kind, str) or kind in (int, float, bool, str, NoneType) for kind in kinds)


def _part(prefix: str, part: type[BaseModel], value: BaseModel | None, without: str = "") -> dict[str, Any]:
    """Return the numbers of a part of a record, None where the record lacks it."""
    return {f"{prefix}{name}": getattr(value, name, None) for name in _numbers(part, without)}


def score_frame(summary: Summary) -> pd.DataFrame:
    """Return one row a run, task and metric; missing values are None."""
    return _frame(score_rows(summary), SCORE_COLUMNS)


def run_frame(summary: Summary) -> pd.DataFrame:
    """Return one row a run, runs that the suite asks for and nobody recorded among them (status ``absent``)."""
    return _frame(run_rows(summary), run_columns())


def score_rows(summary: Summary) -> list[tuple[Any, ...]]:
    """Return the values of ``SCORE_COLUMNS`` for each run, task and metric."""
    rows: list[tuple[Any, ...]] = []
    for run, in_table in _runs(summary):
        if run.record is None:
            continue
        # Scores of a run that is no result, as an unproven one's, are in no table.
        identity = _identity(summary, run, in_table and run.status == "ok")
        head = tuple(identity[name] for name in COLUMNS_OF_IDENTITY)
        evaluation = run.record.evaluation_settings
        rows += [
            (
                *head,
                *(getattr(score, name) for name in SCORE_FIELDS),
                evaluation.limit,
                evaluation.rows,
                len(score.subtasks),
            )
            for score in (*run.scores, *run.judged_scores())
        ]
    return rows


def run_columns() -> tuple[str, ...]:
    """Return the columns of runs.csv: what a run is, what its record holds, and every quantity."""
    return tuple(dict.fromkeys((*COLUMNS_OF_IDENTITY, *FACTS, *_details(None), *_measured(None))))


def run_rows(summary: Summary) -> list[tuple[Any, ...]]:
    """Return the values of :func:`run_columns` for each run."""
    columns, rows = run_columns(), []
    for run, in_table in _runs(summary):
        row = {**_identity(summary, run, in_table), "status": run.status}
        if run.record is not None:
            row |= (
                {name: read(run.record) for name, read in FACTS.items()} | _details(run.record) | _measured(run.record)
            )
        rows.append(tuple(row.get(name) for name in columns))
    return rows


def _runs(summary: Summary) -> Iterator[tuple[Run, bool]]:
    for row in summary.rows:
        for run in row.runs:
            yield run, True
    for run in summary.left_out:
        yield run, False


def _identity(summary: Summary, run: Run, in_table: bool) -> dict[str, Any]:
    model = run.model if run.record is None else called(run.record.spec)
    own = {"model": model, "label": run.label, "seed": run.seed, "in_table": in_table}
    if run.record is None:
        suite = summary.suite
        return {"suite": suite.name, "suite_version": suite.version, "protocol": suite.protocol, **own}
    return {name: read(run.record) for name, read in IDENTITY.items()} | own


def _details(record: Record | None) -> dict[str, Any]:
    """Return what a record holds of training, memory and prediction, by column; of None the columns alone."""
    train = tracked = prediction = out = phase = peak = None
    if record is not None:
        train, prediction, out = record.train, record.prediction, record.out_of_memory_at
        tracked, phase, peak = live_peak(record), record.phase("train"), step_peak(record)
    return {
        **_part("", TrainResult, train),
        **_part("train_", Phase, phase, without="name"),
        "allocated_peak_step": None if peak is None else peak.at_step,
        "allocated_peak_moment": None if peak is None else peak.during,
        **_part("tracked_peak_", TrackedPeak, tracked),
        **_part("tracked_peak_", MemoryBreakdown, None if record is None else live_parts(record)),
        **_part("predicted_peak_", MemoryBreakdown, None if record is None else predicted_parts(record)),
        **_part("prediction_", Prediction, prediction, without="peak_bytes"),
        **_part("out_of_memory_", OutOfMemoryAt, out),
    }


def _measured(record: Record | None) -> dict[str, Any]:
    """Return every quantity of a record by column; of None the columns alone."""
    shown = [quantity for quantity in quantities.ALL if "csv" in quantity.shown.places]
    return {quantity.column_of_runs: None if record is None else quantity.read(record) for quantity in shown}


def _frame(rows: list[tuple[Any, ...]], columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    # object: a missing count must not turn the others into floats
    return pd.DataFrame(rows, columns=list(columns), dtype=object)
