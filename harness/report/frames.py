"""scores.csv and runs.csv: every number in full, of every run's newest record, in the tables or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from harness.readings import prediction_difference
from harness.record import Record
from harness.report.summary import Run, Summary

if TYPE_CHECKING:
    import pandas as pd

IDENTITY = (
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
SCORE_COLUMNS = (*IDENTITY, *SCORE_FIELDS, "limit", "evaluation_rows", "num_subtasks")
"""``num_subtasks``: of a group's score the tasks that it is over; 0 of a task's own."""
TRAIN_COLUMNS = (
    "num_steps",
    "step_seconds_mean",
    "step_seconds_median",
    "num_timed_steps",
    "covers_refresh_cycle",
    "refresh_seconds",
    "data_seconds",
    "trainable_params_mean",
    "trainable_params_ever",
    "total_params",
    "num_blocks",
    "peak_optimizer_state_bytes",
    "validation_loss_before",
    "validation_loss_after",
    "validation_tokens",
    "general_loss_before",
    "general_loss_after",
    "general_tokens",
)
PHASE_COLUMNS = (
    "allocated_peak_bytes",
    "reserved_peak_bytes",
    "allocator_retries",
    "device_peak_bytes",
    "device_sample_seconds",
    "host_peak_bytes",
)
PREDICTION_COLUMNS = (
    "device",
    "horizon",
    "peak_step",
    "peak_phase",
    "reserved_bytes",
    "weights_bytes",
    "gradients_bytes",
    "optimizer_state_bytes",
)
BREAKDOWN_COLUMNS = (
    "weights_bytes",
    "gradients_bytes",
    "optimizer_state_bytes",
    "activations_bytes",
    "other_bytes",
)
OUT_OF_MEMORY_COLUMNS = (
    "phase",
    "step",
    "moment",
    "weights_bytes",
    "gradients_bytes",
    "optimizer_state_bytes",
    "rest_bytes",
)
RUN_COLUMNS = (
    *IDENTITY,
    "status",
    "reason",
    "started_at",
    "finished_at",
    "max_steps",
    "limit",
    "device_type",
    "device_name",
    "num_threads",
    "python",
    "packages",
    "commit",
    "dirty",
    *TRAIN_COLUMNS,
    *(f"train_{name}" for name in PHASE_COLUMNS),
    "train_seconds",
    "evaluate_seconds",
    "device_busy",
    "allocated_peak_step",
    "allocated_peak_moment",
    "tracked_peak_bytes",
    "tracked_peak_step",
    "tracked_peak_moment",
    *(f"tracked_peak_{name}" for name in BREAKDOWN_COLUMNS),
    "predicted_peak_bytes",
    *(f"predicted_peak_{name}" for name in BREAKDOWN_COLUMNS),
    *(f"prediction_{name}" for name in PREDICTION_COLUMNS),
    "prediction_error",
    "predicted_against_measured",
    *(f"out_of_memory_{name}" for name in OUT_OF_MEMORY_COLUMNS),
)
"""``predicted_against_measured``: a fraction of the measured peak, on CUDA the allocated, else the tracked one."""


def score_frame(summary: Summary) -> pd.DataFrame:
    """Return one row a run, task and metric; missing values are None."""
    return _frame(score_rows(summary), SCORE_COLUMNS)


def run_frame(summary: Summary) -> pd.DataFrame:
    """Return one row a run, runs that the suite asks for and nobody recorded among them (status ``absent``)."""
    return _frame(run_rows(summary), RUN_COLUMNS)


def score_rows(summary: Summary) -> list[tuple[Any, ...]]:
    """Return the values of ``SCORE_COLUMNS`` for each run, task and metric."""
    rows: list[tuple[Any, ...]] = []
    for run, in_table in _runs(summary):
        if run.record is None:
            continue
        identity = _identity(summary, run, in_table)
        head = tuple(identity[name] for name in IDENTITY)
        evaluation = run.record.spec.evaluation
        rows += [
            (
                *head,
                *(getattr(score, name) for name in SCORE_FIELDS),
                evaluation.limit,
                evaluation.rows,
                len(score.subtasks),
            )
            for score in (*run.scores, *(score for judged in run.judgings for score in judged.scores))
        ]
    return rows


def run_rows(summary: Summary) -> list[tuple[Any, ...]]:
    """Return the values of ``RUN_COLUMNS`` for each run."""
    rows = []
    for run, in_table in _runs(summary):
        row = {**_identity(summary, run, in_table), "status": run.status}
        if run.record is not None:
            row |= _measured(run.record)
        rows.append(tuple(row.get(name) for name in RUN_COLUMNS))
    return rows


def _runs(summary: Summary) -> Iterator[tuple[Run, bool]]:
    for row in summary.rows:
        for run in row.runs:
            yield run, True
    for run in summary.left_out:
        yield run, False


def _identity(summary: Summary, run: Run, in_table: bool) -> dict[str, Any]:
    own = {"model": run.model, "label": run.label, "seed": run.seed, "in_table": in_table}
    if run.record is None:
        suite = summary.suite
        return {"suite": suite.name, "suite_version": suite.version, "protocol": suite.protocol, **own}
    record, spec = run.record, run.record.spec
    return {
        "suite": spec.suite,
        "suite_version": spec.suite_version,
        "protocol": spec.protocol,
        "method": spec.method,
        "run_id": record.run_id,
        "environment_id": record.environment_id,
        "uuid": record.uuid,
        **own,
    }


def _measured(record: Record) -> dict[str, Any]:
    where, train, phase = record.environment, record.train, record.phase("train")
    evaluate = record.phase("evaluate")
    row: dict[str, Any] = {
        "reason": record.reason,
        "started_at": record.started_at.isoformat(),
        "finished_at": record.finished_at.isoformat(),
        "max_steps": record.spec.max_steps,
        "limit": record.spec.evaluation.limit,
        "device_type": where.device_type,
        "device_name": where.device_name,
        "num_threads": where.num_threads,
        "python": where.python,
        "packages": "; ".join(f"{name}=={version}" for name, version in sorted(where.packages.items())),
        "commit": where.commit,
        "dirty": where.dirty,
        "device_busy": where.device_busy,
        "prediction_error": record.prediction_error,
        "predicted_against_measured": prediction_difference(record),
        **_memory(record),
    }
    if train is not None:
        row |= {name: getattr(train, name) for name in TRAIN_COLUMNS}
    if phase is not None:
        row |= {f"train_{name}": getattr(phase, name) for name in PHASE_COLUMNS}
        row["train_seconds"] = phase.seconds
    if evaluate is not None:
        row["evaluate_seconds"] = evaluate.seconds
    return row


def _memory(record: Record) -> dict[str, Any]:
    """Return where the peaks came and what they were made of."""
    row: dict[str, Any] = {}
    train, prediction, out = record.train, record.prediction, record.out_of_memory_at
    if train is not None and train.curve.allocated_peak_bytes:
        step = max(range(len(train.curve.allocated_peak_bytes)), key=train.curve.allocated_peak_bytes.__getitem__)
        row |= {"allocated_peak_step": step, "allocated_peak_moment": train.curve.peak_moments[step]}
    if train is not None and (tracked := train.tracked_peak) is not None:
        row |= {"tracked_peak_step": tracked.step, "tracked_peak_moment": tracked.moment}
        row |= {"tracked_peak_bytes": tracked.at_peak.total_bytes}
        row |= {f"tracked_peak_{name}": getattr(tracked.at_peak, name) for name in BREAKDOWN_COLUMNS}
    if prediction is not None:
        row |= {"predicted_peak_bytes": prediction.peak_bytes}
        row |= {f"predicted_peak_{name}": getattr(prediction.at_peak, name) for name in BREAKDOWN_COLUMNS}
        row |= {f"prediction_{name}": getattr(prediction, name) for name in PREDICTION_COLUMNS}
    if out is not None:
        row |= {f"out_of_memory_{name}": getattr(out, name) for name in OUT_OF_MEMORY_COLUMNS}
    return row


def _frame(rows: list[tuple[Any, ...]], columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    # object: a missing count must not turn the others into floats
    return pd.DataFrame(rows, columns=list(columns), dtype=object)
