"""The tables of a report: scores and cost, a row a label, in plain text that any page can set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness.record import Environment, Record, Score
from harness.report.layout import Column, Table
from harness.report.quantities import (
    BUSY,
    NO_CUDA,
    NO_TRAINING,
    best_prediction,
    estimate_text,
    general_losses,
    has_general_loss,
    has_held_out_loss,
    held_out_losses,
    host_peak_bytes,
    is_busy,
    label_text,
    largest_difference,
    largest_tracked_peak,
    mean_of,
    mean_of_records,
    model_flops_utilization,
    row_status,
    status_words,
    step_flops,
    tokens_per_second,
    train_peak_bytes,
)
from harness.report.statistics import Estimate, estimate_average, estimate_score
from harness.report.summary import ABSENT, Row, Run, ScoreColumn, Summary
from harness.report.units import NOTHING, gib, percent, signed_percent, significant
from harness.spec import RunSpec
from harness.tuned import mean_losses

NOT_SCORED = "not scored"
NO_RECORD = "no record yet"
AVERAGE = "average"
HELD_OUT = "held-out loss, before -> after (nats)"
GENERAL = "general text loss, before -> after (nats)"
COST_COLUMNS = (
    "label",
    AVERAGE,
    "peak memory (GiB)",
    "tracked peak (GiB)",
    "predicted peak (GiB)",
    "predicted against measured (%)",
    "host peak RSS (GiB)",
    "step time, mean (s)",
    "step time, median (s)",
    "tokens a second",
    "operations a step (TFLOP)",
    "MFU (%)",
    "trainable parameters a step",
    "trainable parameters ever",
    "optimizer state, peak (GiB)",
    HELD_OUT,
    GENERAL,
)
MOST_REASONS = 8
"""Runs without a result that are named behind one row."""
NORMALISED = "acc_norm"
SHORT_RUN = "*"
"""Marks a step time taken over less than one refresh cycle."""


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


def score_table(summary: Summary, model: str) -> Table:
    """Return the scores of one model: a row a label, a column a task, the average last."""
    columns = [Column("label", "left"), *(Column(column_title(column)) for column in summary.columns)]
    averaged = summary.lone_group is None
    if averaged:
        columns.append(Column(average_title(summary)))
    normalised = has_normalised(summary)
    if normalised:
        columns.append(Column(f"{average_title(summary)}, acc_norm where a task has it"))
    rows = []
    for row in summary.rows_of(model):
        if not row.finished:
            rows.append((row.label, *[row_status(row)] * (len(columns) - 1)))
            continue
        cells = [score_of_row(row, column) for column in summary.columns]
        if averaged:
            cells.append(average_of_row(row, summary.columns))
        if normalised:
            cells.append(normalised_average_of_row(row, summary.columns))
        rows.append((label_text(row), *(NOT_SCORED if cell is None else estimate_text(*cell) for cell in cells)))
    return Table(tuple(columns), tuple(rows))


def average_title(summary: Summary) -> str:
    """Return the heading of the average; of one group alone it is the group's overall score."""
    if summary.lone_group is not None:
        return column_title(summary.lone_group)
    return f"average of {sum(column.in_average for column in summary.columns)} tasks"


def cost_table(summary: Summary, model: str) -> Table:
    """Return what each label of one model cost, beside its average and held-out loss where the suite takes them."""
    columns = (Column(COST_COLUMNS[0], "left"), *(Column(title) for title in COST_COLUMNS[1:]))
    rows = tuple(
        (label_text(row) + (f" {BUSY}" if is_busy(row) else ""), *_cost_cells(summary, row))
        if row.finished
        else (row.label, *[row_status(row)] * (len(columns) - 1))
        for row in summary.rows_of(model)
    )
    present = {
        AVERAGE: bool(summary.columns),
        HELD_OUT: has_held_out_loss(summary.rows),
        GENERAL: has_general_loss(summary.rows),
    }
    shown = [i for i, title in enumerate(COST_COLUMNS) if present.get(title, True)]
    return Table(tuple(columns[i] for i in shown), tuple(tuple(row[i] for i in shown) for row in rows))


def _cost_cells(summary: Summary, row: Row) -> list[str]:
    average = average_of_row(row, summary.columns)
    first = NOT_SCORED if average is None else estimate_text(*average)
    trained = [record.train for record in row.records if record.train is not None]
    if not trained:
        return [first, *[NO_TRAINING] * (len(COST_COLUMNS) - 2)]
    total = trained[0].total_params
    a_step = mean_of(row, lambda train: train.trainable_params_mean)
    ever = max(train.trainable_params_ever for train in trained)
    tracked, prediction = largest_tracked_peak(row), best_prediction(row)
    flops, mfu = mean_of_records(row, step_flops), mean_of_records(row, model_flops_utilization)
    short = any(train.covers_refresh_cycle is False for train in trained)
    return [
        first,
        peak_text(summary, row),
        gib(None if tracked is None else tracked.at_peak.total_bytes),
        gib(None if prediction is None else prediction.peak_bytes),
        signed_percent(largest_difference(row)),
        gib(host_peak_bytes(row)),
        _seconds(mean_of(row, lambda train: train.step_seconds_mean), short),
        _seconds(mean_of(row, lambda train: train.step_seconds_median), short),
        _seconds(mean_of(row, tokens_per_second), short),
        NOTHING if flops is None else significant(flops / 1e12),
        NOTHING if mfu is None else percent(mfu) + (SHORT_RUN if short else ""),
        parameters_text(a_step, total),
        parameters_text(ever, total),
        gib(max(train.peak_optimizer_state_bytes for train in trained)),
        held_out_losses(row),
        general_losses(row),
    ]


def peak_text(summary: Summary, row: Row) -> str:
    """Return the headline peak in GiB, or why there is none."""
    peak = train_peak_bytes(row)
    if peak is None and summary.view.environment.device_type != "cuda":
        return NO_CUDA
    return gib(peak)


def parameters_text(count: float | None, total: int) -> str:
    """Return a number of parameters in millions and its share of the model's."""
    if count is None:
        return NOTHING
    share = f" ({significant(100 * count / total)}%)" if total else ""
    return f"{significant(count / 1e6)} M{share}"


def _seconds(value: float | None, short: bool) -> str:
    return "too few steps" if value is None else significant(value) + (SHORT_RUN if short else "")


def missing_table(summary: Summary) -> Table | None:
    """Return every run without a result, with its reason; a model without records is one row. None: all have one."""
    rows: list[tuple[str, ...]] = []
    for model in summary.models:
        runs = [run for row in summary.rows_of(model) for run in row.runs]
        if not summary.has_records(model):
            rows.append((model, "all", "all", status_words(ABSENT), NO_RECORD))
            continue
        rows += [
            (run.model, run.label, str(run.seed), status_words(run.status), _reason(run.record))
            for run in runs
            if run.status != "ok"
        ]
    rows += [
        (r.spec.model_name, r.spec.label, str(r.spec.seed), f"evaluation: {status_words(r.status)}", _reason(r))
        for r in summary.failed_evaluations
    ]
    if not rows:
        return None
    titles = ("model", "label", "seed", "status", "reason")
    return Table(tuple(Column(title, "left") for title in titles), tuple(rows))


def _reason(record: Record | None) -> str:
    if record is None:
        return NO_RECORD
    return record.reason or "no reason recorded"


def row_reasons(row: Row) -> str | None:
    """Return why runs of a row have no result, in one text; None where all have one."""
    missing = [run for run in row.runs if run.status != "ok"]
    found = [f"seed {run.seed}: {status_words(run.status)}: {_reason(run.record)}" for run in missing[:MOST_REASONS]]
    more = [f"and {len(missing) - MOST_REASONS} more"] if len(missing) > MOST_REASONS else []
    return "\n".join(found + more) if missing else None


def tuning_table(summary: Summary) -> Table | None:
    """Return what each tuned learning rate rests on: the mean held-out loss of its trials. None: nothing was tuned."""
    tuned = [(row, row.choice) for row in summary.rows if row.choice is not None]
    if not tuned:
        return None
    rates = sorted({rate for _, choice in tuned for rate in mean_losses(choice.trials)})
    rows = []
    for row, choice in tuned:
        means = mean_losses(choice.trials)
        losses = [NOTHING if (loss := means.get(rate)) is None else f"{loss:.4f}" for rate in rates]
        remarks = "; ".join(choice.remarks()) or NOTHING
        rows.append((row.model, row.label, f"{choice.learning_rate:g}", *losses, str(len(choice.trials)), remarks))
    columns = [Column("model", "left"), Column("label", "left"), Column("learning rate")]
    columns += [Column(f"loss at {rate:g}") for rate in rates] + [Column("trials"), Column("remarks", "left")]
    return Table(tuple(columns), tuple(rows))


def label_table(summary: Summary) -> Table:
    """Return what each label stands for: its method, its settings, and how its training differs from the others'."""
    specs: dict[str, RunSpec] = {}
    for row in summary.rows:
        for run in row.runs:
            if run.record is not None:
                specs.setdefault(row.label, run.record.spec)
    common = common_training(summary)
    rows = []
    for label, spec in specs.items():
        own = {} if spec.train is None else spec.train.model_dump(mode="json")
        differing = {key: value for key, value in own.items() if key not in common}
        rows.append((label, spec.method, settings_text(spec.config), settings_text(differing) if own else NO_TRAINING))
    titles = ("label", "method", "settings", "training, where labels differ")
    return Table(tuple(Column(title, "left") for title in titles), tuple(rows))


def common_training(summary: Summary) -> dict[str, object]:
    """Return the train settings that every recorded label shares."""
    found = [
        run.record.spec.train.model_dump(mode="json")
        for row in summary.rows
        for run in row.runs
        if run.record is not None and run.record.spec.train is not None
    ]
    if not found:
        return {}
    return {key: value for key, value in found[0].items() if all(other[key] == value for other in found[1:])}


def settings_text(settings: Mapping[str, object]) -> str:
    """Return settings as ``key = value`` in one text."""
    return ", ".join(f"{key} = {_value(value)}" for key, value in settings.items()) or NOTHING


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return f"({settings_text(value)})"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(_value, value)) if isinstance(value, list | tuple) else str(value)


def environment_table(environment: Environment, records: Sequence[Record]) -> Table:
    """Return where the shown runs took place."""
    commits = dict.fromkeys(
        "outside a checkout"
        if (where := record.environment).commit is None
        else where.commit + (" (with uncommitted changes)" if where.dirty else "")
        for record in records
    )
    busy = dict.fromkeys(record.environment.device_busy for record in records if record.environment.device_busy)
    memory = environment.device_memory_bytes
    rows = [
        ("device", f"{environment.device_type}: {environment.device_name}"),
        ("device memory", NOTHING if memory is None else f"{gib(memory)} GiB"),
        ("driver", environment.driver or NOTHING),
        ("CPU threads of torch", str(environment.num_threads)),
        ("platform", "; ".join(dict.fromkeys(record.environment.platform for record in records))),
        ("Python", environment.python),
        *((f"package {name}", version) for name, version in sorted(environment.packages.items())),
        ("harness source checksum", environment.source_checksum),
        ("harness commit", "; ".join(commits)),
        ("device in use by others at the start", "; ".join(busy) or "nothing seen"),
    ]
    return Table((Column("what", "left"), Column("value", "left")), tuple(rows))
