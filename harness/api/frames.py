"""Records as frames of pandas: columns named as in runs.csv and scores.csv, each of one dtype whatever there is.

Whole numbers are ``Int64``, truth values ``boolean`` and words ``string``, where what is missing is ``NA``; other
numbers are ``float64``, where it is NaN; times are ``datetime64[us, UTC]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from harness.readings import all_scores, newest_runs, scored_run
from harness.record import Record
from harness.report.numbers.frames import (
    OF_RECORD,
    SCORE_COLUMNS,
    SCORE_FIELDS,
    record_columns,
    record_kinds,
    record_values,
    score_values,
)

WHOLE, TRUTH, NUMBER, WORD, TIME = "Int64", "boolean", "float64", "string", "datetime64[us, UTC]"
DTYPES: Mapping[type, str] = {int: WHOLE, bool: TRUTH, float: NUMBER, str: WORD}
OWN: Mapping[str, str] = {
    **dict.fromkeys(("suite_version", "seed", "max_steps", "limit", "num_threads", "num_ranks"), WHOLE),
    **dict.fromkeys(("n", "num_fewshot", "num_subtasks"), WHOLE),
    **dict.fromkeys(("newest", "dirty", "device_busy", "higher_is_better", "headline"), TRUTH),
    **dict.fromkeys(("value", "stderr"), NUMBER),
    **dict.fromkeys(("started_at", "finished_at"), TIME),
}
"""Of the columns that no declaration types; every other of them is a word."""
NEWEST, RUN_UUID = "newest", "run_uuid"


def runs_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row for each recorded run, every attempt among them, in the order of time.

    Beside the columns of runs.csv it has ``newest``: whether no later record is of the same run in the same
    environment.
    """
    runs = [record for record in records if record.is_run]
    newest = newest_runs(runs)
    kinds = {name: DTYPES[kind] for name, kind in record_kinds().items()}
    frame = _frame(record_values(runs), record_columns(), kinds)
    frame.insert(len(OF_RECORD), NEWEST, _column([scored_run(record) in newest for record in runs], TRUTH))
    return frame


def scores_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row for each score of each record, in the order of time.

    Beside the columns of scores.csv it has ``run_uuid``, the ``uuid`` of the run that was scored, which is another than
    its own where scores were added later; and ``newest``, whether that run is the newest.
    """
    runs = [record for record in records if record.is_run]
    newest = newest_runs(runs)
    scored = [scored_run(record) for record in records for _ in all_scores(record)]
    columns = (*OF_RECORD, *SCORE_COLUMNS[SCORE_COLUMNS.index(SCORE_FIELDS[0]) :])
    frame = _frame(score_values(records), columns, {})
    frame.insert(len(OF_RECORD), RUN_UUID, _column(scored, WORD))
    frame.insert(len(OF_RECORD) + 1, NEWEST, _column([uuid in newest for uuid in scored], TRUTH))
    return frame


def _frame(rows: Iterable[tuple[Any, ...]], columns: Sequence[str], kinds: Mapping[str, str]) -> pd.DataFrame:
    values: list[Sequence[Any]] = list(zip(*rows, strict=True)) or [() for _ in columns]
    return pd.DataFrame(
        {name: _column(own, kinds.get(name) or OWN.get(name, WORD)) for name, own in zip(columns, values, strict=True)}
    )


def _column(values: Sequence[Any], dtype: str) -> pd.Series[Any]:
    kind: Any = dtype  # a name that is not written here, which the stubs of pandas cannot know
    given: Any = pd.to_datetime(list(values), utc=True, format="ISO8601") if dtype == TIME else list(values)
    column: pd.Series[Any] = pd.Series(given, dtype=kind)
    return column
