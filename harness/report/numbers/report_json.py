"""report.json: a summary for machines. Numbers are not rounded, and null stands for what was not measured.

``labels`` holds what a row of the tables rests on; ``scores`` and ``runs`` hold scores.csv and runs.csv as ``columns``
and ``rows``. A number that is not finite, which JSON has no word for, is the text "nan", "inf" or "-inf".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from harness import quantities
from harness.readings import is_short
from harness.report.numbers.frames import SCORE_COLUMNS, run_columns, run_rows, score_rows
from harness.report.reading.estimates import average_of_row, normalised_average_of_row, over_seeds, score_of_row
from harness.report.reading.proofs import proofs_json
from harness.report.reading.remarks import remarks_json
from harness.report.reading.summary import Row, Summary
from harness.report.reading.words import is_busy
from harness.report.statistics.intervals import LEVEL, Estimate

SCHEMA = "finetune-harness/report"
SCHEMA_VERSION = 1
"""Raised when a name goes away or changes its meaning; names may be added without."""


def report_json(summary: Summary, notes: Iterable[str]) -> str:
    """Return the summary as JSON, with the notes that stand with its tables."""
    suite, view = summary.suite, summary.view
    value = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "suite": {"name": suite.name, "version": view.suite_version, "description": suite.description},
        "protocol": view.protocol,
        "evaluation": view.evaluation.model_dump(
            mode="json", exclude={"metrics"} if view.evaluation.metrics is None else None
        ),
        "max_steps": view.max_steps,
        "environment_id": view.environment_id,
        "environment": view.environment.model_dump(mode="json", exclude={"training_checksum"}),
        "interval_level": LEVEL,
        "notes": list(notes),
        "labels": [_label(summary, row) for row in summary.rows],
        "proofs": proofs_json(summary),
        "remarks": remarks_json(summary),
        "failed_evaluations": [
            {"uuid": run.uuid, "of": of, "status": run.status, "reason": run.reason}
            for of, run in summary.failed_evaluations
        ],
    }
    head = json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
    scores, runs = _rows(SCORE_COLUMNS, score_rows(summary)), _rows(run_columns(), run_rows(summary))
    return f'{head},\n "scores": {scores},\n "runs": {runs}\n}}\n'


def _rows(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in JSON, a row a line: names in every row would make it five times as large."""
    lines = ",\n   ".join(_line(row) for row in rows)
    return f'{{\n  "columns": {_line(columns)},\n  "rows": [\n   {lines}\n  ]\n }}'


def _line(values: Sequence[Any]) -> str:
    try:
        return json.dumps(values, ensure_ascii=False, allow_nan=False)
    except ValueError:  # a number that is not finite
        return json.dumps(_finite(values), ensure_ascii=False, allow_nan=False)


def _label(summary: Summary, row: Row) -> dict[str, Any]:
    tasks = [
        {"task": column.task, "metric": column.metric, "in_average": column.in_average}
        | _estimate(score_of_row(row, column))
        for column in summary.columns
    ]
    return {
        "model": row.model,
        **({"stands_in": mark.strip(" ()")} if (mark := summary.stand_ins(row.model)) else {}),
        "label": row.label,
        "trains": row.trains,
        "tuned_learning_rate": None if row.choice is None else row.choice.learning_rate,
        "device_busy": is_busy(row),
        "seeds": [{"seed": run.seed, "status": run.status} for run in row.runs],
        "average": _estimate(average_of_row(row, summary.columns)),
        "normalised_average": _estimate(normalised_average_of_row(row, summary.columns)),
        "tasks": tasks,
        "cost": _cost(row),
    }


def _cost(row: Row) -> dict[str, Any]:
    """Return every quantity over the seeds, and whether a run was shorter than one refresh cycle."""
    costs = {q.name: over_seeds(row, q) for q in quantities.ALL if "json" in q.shown.places}
    return {**costs, "shorter_than_refresh_cycle": any(is_short(record) for record in row.records)}


def _estimate(found: tuple[Estimate, str] | None) -> dict[str, Any]:
    """Return an estimate by name; every value null where there is none."""
    if found is None:
        return dict.fromkeys(("mean", "low", "high", "covers", "unit", "num_items", "num_seeds"))
    estimate, unit = found
    low, high = (None, None) if estimate.interval is None else estimate.interval
    return {
        "mean": estimate.mean,
        "low": low,
        "high": high,
        "covers": estimate.basis,
        "unit": unit,
        "num_items": list(estimate.num_items),
        "num_seeds": estimate.num_seeds,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
