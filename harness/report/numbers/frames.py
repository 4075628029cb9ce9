"""scores.csv and runs.csv: every number in full, of every run's newest record, in the tables or not."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import StringIO
from math import isnan
from operator import attrgetter, is_, itemgetter, ne
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from harness import quantities
from harness.readings import FACTS, IDENTITY, live_parts, live_peak, predicted_parts, step_peak
from harness.record import Record
from harness.record_training import MemoryBreakdown, OutOfMemoryAt, Phase, Prediction, TrackedPeak, TrainResult
from harness.report.reading.summary import Run, Summary
from harness.spec import RunSpec
from harness.stand_ins import called, told_by

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
OF_RECORD = COLUMNS_OF_IDENTITY[:-1]
"""Of these what a record says by itself."""
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


@dataclass(frozen=True)
class _Columns:
    """Some columns of runs.csv: their names, and what they hold of a record."""

    names: tuple[str, ...]
    read: Callable[[Record], tuple[Any, ...]]


def _part(
    prefix: str, part: type[BaseModel], value: Callable[[Record], BaseModel | None], without: str = ""
) -> _Columns:
    """Return the columns of the numbers of a part of a record, None where the record lacks it."""
    names = _numbers(part, without)
    numbers, nothing = attrgetter(*names), (None,) * len(names)

    def read(record: Record) -> tuple[Any, ...]:
        found = value(record)
        return nothing if found is None else numbers(found)

    return _Columns(tuple(f"{prefix}{name}" for name in names), read)


def _each(reads: Mapping[str, Callable[[Record], Any]]) -> _Columns:
    """Return a column for each reading."""
    readings = tuple(reads.values())
    return _Columns(tuple(reads), lambda record: tuple([read(record) for read in readings]))


def score_frame(summary: Summary) -> pd.DataFrame:
    """Return one row a run, task and metric; missing values are None."""
    return _frame(score_rows(summary), SCORE_COLUMNS)


def run_frame(summary: Summary) -> pd.DataFrame:
    """Return one row a run, runs that the suite asks for and nobody recorded among them (status ``absent``)."""
    return _frame(run_rows(summary), run_columns())


def score_rows(summary: Summary) -> Iterator[tuple[Any, ...]]:
    """Yield the values of ``SCORE_COLUMNS`` for each run, task and metric."""
    numbers, identity = attrgetter(*SCORE_FIELDS), _Identity(summary)
    for run, in_table in _runs(summary):
        if run.record is None:
            continue
        # Scores of a run that is no result, as an unproven one's, are in no table.
        head = identity(run, in_table and run.status == "ok")
        evaluation = run.record.evaluation_settings
        limit, rows = evaluation.limit, evaluation.rows
        for score in (*run.scores, *run.judged_scores()):
            yield (*head, *numbers(score), limit, rows, len(score.subtasks))


def run_columns() -> tuple[str, ...]:
    """Return the columns of runs.csv: what a run is, what its record holds, and every quantity."""
    return tuple(dict.fromkeys(_names(_parts())))


def _names(parts: Iterable[_Columns]) -> tuple[str, ...]:
    """Return the name of each value of a run, in order; two parts may have one of the same name."""
    of_parts = (name for part in parts for name in part.names)
    return (*COLUMNS_OF_IDENTITY, *of_parts, *(quantities.ALL[i].column_of_runs for i in _measured_places()))


def _measured_places() -> tuple[int, ...]:
    """Return where in ``quantities.ALL`` those stand that have a column."""
    return tuple(i for i, one in enumerate(quantities.ALL) if "csv" in one.shown.places)


def run_rows(summary: Summary) -> Iterator[tuple[Any, ...]]:
    """Yield the values of :func:`run_columns` for each run."""
    columns, parts = run_columns(), _parts()
    place = {name: i for i, name in enumerate(_names(parts))}  # of a name that two parts have, the later
    chosen, reads = itemgetter(*(place[name] for name in columns)), [part.read for part in parts]
    status, identity, measured = columns.index("status"), _Identity(summary), _measured_places()
    for run, in_table in _runs(summary):
        values = list(identity(run, in_table))
        if run.record is None:
            values += [None] * (len(columns) - len(values))
            values[status] = run.status
            yield tuple(values)
        else:
            for read in reads:
                values += read(run.record)
            of_run = run.measured
            values += [of_run[i] for i in measured]
            yield chosen(values)


def record_columns() -> tuple[str, ...]:
    """Return what :func:`record_values` has: the columns of runs.csv from a run's record alone."""
    return tuple(dict.fromkeys((*OF_RECORD, *(name for part in _parts_of_record() for name in part.names))))


def record_values(records: Iterable[Record]) -> Iterator[tuple[Any, ...]]:
    """Yield the values of :func:`record_columns` for each record, as runs.csv has them."""
    columns, parts = record_columns(), _parts_of_record()
    place = {name: i for i, name in enumerate((*OF_RECORD, *(name for part in parts for name in part.names)))}
    chosen, reads = itemgetter(*(place[name] for name in columns)), [part.read for part in parts]
    for record in records:
        values = list(identity_of(record))
        for read in reads:
            values += read(record)
        yield chosen(values)


def record_kinds() -> dict[str, type]:
    """Return of each of :func:`record_columns` what its values are: int, float, bool or str, where they are there.

    Columns of FACTS and of IDENTITY are left out: their readings have no declared type.
    """
    declared: dict[str, tuple[type[BaseModel], ...]] = {
        "": (TrainResult,),
        "train_": (Phase,),
        "tracked_peak_": (TrackedPeak, MemoryBreakdown),
        "predicted_peak_": (MemoryBreakdown,),
        "prediction_": (Prediction,),
        "out_of_memory_": (OutOfMemoryAt,),
    }
    kinds = {
        f"{prefix}{name}": _kind(model.model_fields[name].annotation)
        for prefix, group in declared.items()
        for model in group
        for name in _numbers(model)
    }
    kinds |= {"allocated_peak_step": int, "allocated_peak_moment": str}
    for one in quantities.ALL:
        kinds.setdefault(one.column_of_runs, int if one.unit == "bytes" else float)
    return {name: kinds[name] for name in record_columns() if name in kinds}


def _kind(annotation: Any) -> type:
    """Return the type of a number, word or truth value that may be None."""
    kinds = {kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType}
    if all(isinstance(kind, str) for kind in kinds) or str in kinds:
        return str
    return next(kind for kind in (float, int, bool) if kind in kinds)


def identity_of(record: Record) -> tuple[Any, ...]:
    """Return the values of ``OF_RECORD``."""
    own = {"model": called(record.spec), "label": record.label, "seed": record.seed}
    return tuple(own[name] if name in own else IDENTITY[name](record) for name in OF_RECORD)


def score_values(records: Iterable[Record]) -> Iterator[tuple[Any, ...]]:
    """Yield for each score of each record ``OF_RECORD``, then what follows it in ``SCORE_COLUMNS``."""
    numbers = attrgetter(*SCORE_FIELDS)
    for record in records:
        head, evaluation = identity_of(record), record.evaluation_settings
        for score in record.scores:
            yield (*head, *numbers(score), evaluation.limit, evaluation.rows, len(score.subtasks))


def _runs(summary: Summary) -> Iterator[tuple[Run, bool]]:
    for row in summary.rows:
        for run in row.runs:
            yield run, True
    for run in summary.left_out:
        yield run, False


class _Identity:
    """The values of ``COLUMNS_OF_IDENTITY``, run after run."""

    def __init__(self, summary: Summary) -> None:
        self._suite = summary.suite
        self._last: tuple[object, ...] = ()
        self._called = ""

    def __call__(self, run: Run, in_table: bool) -> tuple[Any, ...]:
        """Return those of a run."""
        record = run.record
        if record is None:
            suite = self._suite
            own = {"suite": suite.name, "suite_version": suite.version, "protocol": suite.protocol, "model": run.model}
        else:
            own = {name: read(record) for name, read in IDENTITY.items()} | {"model": self._name(record.spec)}
        own |= {"label": run.label, "seed": run.seed, "in_table": in_table}
        return tuple(map(own.get, COLUMNS_OF_IDENTITY))

    def _name(self, spec: RunSpec) -> str:
        """Return what a run's base model is called: as that of the last run, where nothing else can be told."""
        told = told_by(spec)
        if len(self._last) != len(told) or not all(map(is_, told, self._last)):
            self._last, self._called = told, called(spec)
        return self._called


def _parts() -> tuple[_Columns, ...]:
    """Return the columns of what happened to a run, of training, memory and prediction: all but the quantities."""
    peak = ("allocated_peak_step", "allocated_peak_moment")
    return (
        _each(FACTS),
        _part("", TrainResult, attrgetter("train")),
        _part("train_", Phase, lambda record: record.phase("train"), without="name"),
        _Columns(peak, _step_peak),
        _part("tracked_peak_", TrackedPeak, live_peak),
        _part("tracked_peak_", MemoryBreakdown, live_parts),
        _part("predicted_peak_", MemoryBreakdown, predicted_parts),
        _part("prediction_", Prediction, attrgetter("prediction"), without="peak_bytes"),
        _part("out_of_memory_", OutOfMemoryAt, attrgetter("out_of_memory_at")),
    )


def _parts_of_record() -> tuple[_Columns, ...]:
    """Return the same and the quantities, which of a run are read once for all tables."""
    return (*_parts(), _each({quantities.ALL[i].column_of_runs: quantities.ALL[i].read for i in _measured_places()}))


def _step_peak(record: Record) -> tuple[int | None, str | None]:
    peak = step_peak(record)
    return (None, None) if peak is None else (peak.at_step, peak.during)


def csv_rows(columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> Iterator[Sequence[Any]]:
    """Yield what ``csv.writer`` writes of a table as pandas does of its frame: what is not a number is no value."""
    yield columns
    for row in rows:
        yield [None if _is_nan(value) else value for value in row] if any(map(ne, row, row)) else row


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and isnan(value)


MOST_WRITTEN = 100_000
"""Lines of scores that are held on to, should few of them be alike."""


def score_csv_lines(summary: Summary) -> Iterator[str]:
    """Yield the lines of scores.csv, as :func:`csv_rows` of :func:`score_rows` gives them.

    A run's columns are written once for all its scores, and a score's once for all runs that have the same.
    """
    yield csv_line(SCORE_COLUMNS)
    written: dict[tuple[int, int], str] = {}
    numbers, identity = attrgetter(*SCORE_FIELDS), _Identity(summary)
    for run, in_table in _runs(summary):
        if run.record is None:
            continue
        head = csv_line(identity(run, in_table and run.status == "ok"))[:-1]
        evaluation = run.record.evaluation_settings
        for score in (*run.scores, *run.judged_scores()):
            key = id(score), id(evaluation)  # the summary holds both
            if key not in written:
                if len(written) > MOST_WRITTEN:
                    written.clear()
                told = (*numbers(score), evaluation.limit, evaluation.rows, len(score.subtasks))
                written[key] = csv_line([None if _is_nan(value) else value for value in told])
            yield f"{head},{written[key]}"


def csv_line(values: Sequence[Any]) -> str:
    """Return a line of CSV with its end."""
    line = StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def _frame(rows: Iterable[tuple[Any, ...]], columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    # object: a missing count must not turn the others into floats
    return pd.DataFrame(list(rows), columns=list(columns), dtype=object)
