"""The tables of a report: scores and cost, a row a label, in plain text that any page can set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.catalogue.tuned import mean_losses
from harness.record import Record
from harness.record_environment import Environment
from harness.report.pages.costs import cost_cell, heading, shown_quantities
from harness.report.pages.estimated import Found, estimate_table
from harness.report.reading.estimates import (
    average_of_row,
    average_title,
    column_title,
    has_normalised,
    normalised_average_of_row,
    score_of_row,
)
from harness.report.reading.summary import ABSENT, Row, Run, Summary
from harness.report.reading.words import (
    BUSY,
    NO_TRAINING,
    NOT_SCORED,
    is_busy,
    label_text,
    row_status,
    status_words,
)
from harness.report.table import Cell, Column, Entry, Table, counted
from harness.report.units import NOTHING, memory_text
from harness.spec import RunSpec

NO_RECORD = "no record yet"
AVERAGE = "average"
AVERAGE_DEFINITION = "Unweighted mean of the headline metrics of the suite's tasks."
NORM_DEFINITION = (
    "The same mean, of `acc_norm`, accuracy by log-likelihood a character, for tasks that have it and of `acc` for the "
    "others; the average without it is the headline."
)
MOST_REASONS = 8
"""Runs without a result that are named behind one row."""


def score_table(summary: Summary, model: str) -> Table:
    """Return the scores of one model: a row a label, a column a task, the average last."""
    columns = [Column(column_title(column)) for column in summary.columns]
    averaged = summary.lone_group is None
    if averaged:
        columns.append(Column(average_title(summary), definition=AVERAGE_DEFINITION))
    normalised = has_normalised(summary)
    if normalised:
        columns.append(Column(f"{average_title(summary)}, acc_norm where a task has it", definition=NORM_DEFINITION))
    rows: list[tuple[list[Entry], list[Found | Entry]]] = []
    for row in summary.rows_of(model):
        if not row.finished:
            rows.append(([row.label], [row_status(row)] * len(columns)))
            continue
        found = [score_of_row(row, column) for column in summary.columns]
        if averaged:
            found.append(average_of_row(row, summary.columns))
        if normalised:
            found.append(normalised_average_of_row(row, summary.columns))
        rows.append(([label_text(row)], [NOT_SCORED if one is None else one for one in found]))
    return estimate_table((Column("label", "left"),), columns, rows)


def cost_table(summary: Summary, model: str) -> Table:
    """Return what each label of one model cost, beside its average and held-out loss where the suite takes them."""
    quantities = shown_quantities(summary.rows, "table")
    averages = [Column(AVERAGE, definition=AVERAGE_DEFINITION)] if summary.columns else []
    rows: list[tuple[list[Entry], list[Found | Entry]]] = []
    for row in summary.rows_of(model):
        if not row.finished:
            rows.append(([row.label], [row_status(row)] * (len(averages) + len(quantities))))
            continue
        average = [average_of_row(row, summary.columns) or NOT_SCORED] if averages else []
        costs = [cost_cell(row, quantity, summary) for quantity in quantities]
        label = label_text(row) + (f" {BUSY}" if is_busy(row) else "") + f" ({NO_TRAINING})" * (not row.trains)
        rows.append(([label], [*average, *costs]))
    costs_of = [Column(heading(quantity), definition=quantity.definition) for quantity in quantities]
    return estimate_table((Column("label", "left"),), [*averages, *costs_of], rows)


def missing_table(summary: Summary) -> Table | None:
    """Return every run without a result, with its reason; a model without records is one row. None: all have one."""
    rows: list[tuple[str, ...]] = []
    for model in summary.models:
        runs = [run for row in summary.rows_of(model) for run in row.runs]
        if not summary.has_records(model):
            rows.append((model, "all", "all", status_words(ABSENT), NO_RECORD))
            continue
        rows += [
            (run.model, run.label, str(run.seed), status_words(run.status), _reason(run))
            for run in runs
            if run.status != "ok"
        ]
    rows += [
        (run.model, run.label, str(run.seed), f"evaluation: {status_words(run.status)}", _reason(run))
        for _, run in summary.failed_evaluations
    ]
    if not rows:
        return None
    titles = ("model", "label", "seed", "status", "reason")
    return Table(tuple(Column(title, "left") for title in titles), tuple(rows))


def _reason(run: Run) -> str:
    if run.record is None:
        return NO_RECORD
    return run.reason or "no reason recorded"


def row_reasons(row: Row) -> str | None:
    """Return why runs of a row have no result, in one text; None where all have one."""
    missing = [run for run in row.runs if run.status != "ok"]
    found = [f"seed {run.seed}: {status_words(run.status)}: {_reason(run)}" for run in missing[:MOST_REASONS]]
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
        losses = [NOTHING if (loss := means.get(rate)) is None else Cell(f"{loss:.4f}", loss) for rate in rates]
        chosen, trials = Cell(f"{choice.learning_rate:g}", choice.learning_rate), counted(len(choice.trials))
        rows.append((row.model, row.label, chosen, *losses, trials, "; ".join(choice.remarks()) or NOTHING))
    columns = [Column("model", "left"), Column("label", "left"), Column("learning rate")]
    columns += [Column(f"loss at {rate:g}") for rate in rates] + [Column("trials"), Column("remarks", "left")]
    return Table(tuple(columns), tuple(rows))


def label_table(summary: Summary) -> Table:
    """Return what each label stands for: its method, and how settings and training differ from the others'."""
    common, shared = common_training(summary), common_settings(summary)
    rows = []
    for label, spec in _specs(summary).items():
        own = {} if spec.train is None else spec.train.model_dump(mode="json")
        differing = {key: value for key, value in own.items() if key not in common}
        settings = {key: value for key, value in spec.config.items() if key not in shared}
        rows.append((label, spec.method, settings_text(settings), settings_text(differing) if own else NO_TRAINING))
    titles = ("label", "method", "settings, where labels differ", "training, where labels differ")
    return Table(tuple(Column(title, "left") for title in titles), tuple(rows))


def common_settings(summary: Summary) -> dict[str, object]:
    """Return the settings of methods that several labels have and that are the same for all that have them."""
    found: dict[str, list[object]] = {}
    for spec in _specs(summary).values():
        for key, value in spec.config.items():
            found.setdefault(key, []).append(value)
    return {
        key: values[0]
        for key, values in found.items()
        if len(values) > 1 and all(value == values[0] for value in values)
    }


def _specs(summary: Summary) -> dict[str, RunSpec]:
    """Return what was asked of each label."""
    specs: dict[str, RunSpec] = {}
    for row in summary.rows:
        if (asked := row.spec) is not None:
            specs.setdefault(row.label, asked)
    return specs


def common_training(summary: Summary) -> dict[str, object]:
    """Return the train settings that every recorded label shares."""
    found = [
        run.record.train_settings.model_dump(mode="json")
        for row in summary.rows
        for run in row.runs
        if run.record is not None and run.record.train_settings is not None
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
    rows = [
        ("device", environment.device_text),
        ("device memory", memory_text(environment) or NOTHING),
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
