"""The tables on a terminal: scores and cost of each model within 120 columns, plain text where there is no terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from harness.report import judging
from harness.report.layout import one_line
from harness.report.page import result_notes
from harness.report.quantities import (
    BUSY,
    best_prediction,
    general_losses,
    has_general_loss,
    has_held_out_loss,
    held_out_losses,
    host_peak_bytes,
    is_busy,
    largest_tracked_peak,
    marks,
    mean_of,
    row_status,
    status_words,
    tokens_per_second,
)
from harness.report.statistics import Estimate
from harness.report.summary import Row, ScoreColumn, Summary, summarize
from harness.report.tables import (
    average_of_row,
    has_normalised,
    normalised_average_of_row,
    peak_text,
    score_of_row,
)
from harness.report.units import NOTHING, gib, percent, significant
from harness.store import Contents
from harness.suite import Suite
from harness.tuned import Tuned

WIDTH = 118
LABEL_WIDTH = 24
SHORT_TASKS = {
    "social_iqa": "siqa",
    "hellaswag": "hellas.",
    "winogrande": "winogr.",
    "arc_easy": "arc-e",
    "arc_challenge": "arc-c",
    "openbookqa": "obqa",
    "mmlu_social_sciences": "social",
    "mmlu_humanities": "human.",
}
SHORT_STATUS = {"out_of_memory": "OOM", "interrupted": "stopped"}
TASK_WIDTH = 9


def terminal_table(suite: Suite, contents: Contents, console: Console, tuned: Tuned | None = None) -> None:
    """Print the scores and the cost of every recorded label.

    Raises:
        HarnessError: there is no record of the suite.
    """
    summary = summarize(suite, contents, tuned)
    parts: list[RenderableType] = []
    for model in summary.models:
        rows = summary.rows_of(model)
        if summary.has_records(model):
            title = f"{suite.name} {summary.view.suite_version}, {model}"
            if summary.columns:
                parts += [_scores(summary, rows, title), Text()]
            for judge in judging.judges_of(summary):
                parts += [_points(rows, title, judge), Text()]
            parts += [_cost(summary, rows, f"{title}: cost"), Text()]
        else:
            parts += [Text(f"{suite.name}, {model}: not run"), Text()]
    parts += [Text(one_line(note)) for note in (*result_notes(summary), *summary.notes)]
    if console.is_terminal:
        console.print(Group(*parts))
        return
    page = io.StringIO()
    Console(file=page, width=WIDTH, color_system=None, force_terminal=False, emoji=False).print(Group(*parts))
    console.out("\n".join(line.rstrip() for line in page.getvalue().splitlines()), highlight=False)


def _table(title: str, heads: Sequence[str]) -> RichTable:
    table = RichTable(
        title=Text(one_line(title)),
        title_justify="left",
        box=box.ASCII2,
        padding=(0, 0),
        show_edge=False,
    )
    for i, head in enumerate(heads):
        left = i == 0
        table.add_column(Text(head), justify="left" if left else "right", no_wrap=not left, overflow="fold")
    return table


def _scores(summary: Summary, rows: Sequence[Row], title: str) -> RichTable:
    averaged, normalised = summary.lone_group is None, has_normalised(summary)
    table = _table(
        f"{title}: accuracy in %, 95% interval below it, n items a task",
        [
            "label",
            *(_head(rows, column) for column in summary.columns),
            *(["average"] * averaged),
            *(["acc_norm\naverage"] * normalised),
        ],
    )
    for row in rows:
        label = Text(_label(row))
        if not row.finished:
            table.add_row(label, *[Text(short_status(row))] * (len(table.columns) - 1))
            continue
        cells = [score_of_row(row, column) for column in summary.columns]
        if averaged:
            cells.append(average_of_row(row, summary.columns))
        if normalised:
            cells.append(normalised_average_of_row(row, summary.columns))
        if len(row.finished) < len(row.runs):
            label.append(f"\n{len(row.finished)} of {len(row.runs)} seeds, {row_status(row)}")
        table.add_row(label, *(_cell(cell) for cell in cells))
    return table


def _points(rows: Sequence[Row], title: str, judge: str) -> RichTable:
    metrics = judging.AGGREGATES
    heads = ["mean", "turn 1", "turn 2", "8 cat-\negories", "7 cat-\negories", "judg-\nments", "without\na score"]
    table = _table(f"{title}: MT-Bench points, 95% interval below, judged by {judge}", ["label", *heads])
    for row in rows:
        label = Text(_label(row))
        if not row.finished:
            table.add_row(label, *[Text(short_status(row))] * len(heads))
            continue
        points = [judging.points_of_row(row, judge, metric) for metric in metrics]
        cells = [_cell(None if estimate is None else (estimate, "points")) for estimate in points]
        table.add_row(label, *cells, *(Text(str(count)) for count in judging.counts_of_row(row, judge)))
    return table


def _label(row: Row) -> str:
    return one_line(row.label, LABEL_WIDTH) + marks(row)


def short_status(row: Row) -> str:
    """Return the status of a row without a result in a word that fits a column; of several the first."""
    status = next(run.status for run in row.runs if run.status != "ok")
    return SHORT_STATUS.get(status, status_words(status))


def _head(rows: Sequence[Row], column: ScoreColumn) -> str:
    name = SHORT_TASKS.get(column.task, one_line(column.task.removeprefix("mmlu_"), TASK_WIDTH))
    if column.subtasks and column.in_average:
        name += "\noverall"
    if column.metric is not None and "," in column.metric:
        name += f"\n{column.metric.partition(',')[2].partition('-')[0]}"  # strict or flexible
    counts = [cell[0].num_items for row in rows if row.finished and (cell := score_of_row(row, column)) is not None]
    if not counts:
        return name
    low, high = min(count[0] for count in counts), max(count[1] for count in counts)
    return f"{name}\nn={low}" if low == high else f"{name}\nn={low}-{high}"


def _cell(cell: tuple[Estimate, str] | None) -> Text:
    if cell is None:
        return Text(NOTHING)
    estimate, unit = cell
    write = percent if unit == "fraction" else "{:.2f}".format
    if estimate.interval is None:
        return Text(write(estimate.mean))
    low, high = estimate.interval
    return Text(f"{write(estimate.mean)}\n{write(low)}-{write(high)}")


def _cost(summary: Summary, rows: Sequence[Row], title: str) -> RichTable:
    cuda = summary.view.environment.device_type == "cuda"
    losses, general = has_held_out_loss(rows), has_general_loss(rows)
    known = any(_tracked_and_predicted(row) != NOTHING for row in rows)
    heads = ["label", "CUDA\npeak, GiB", *(["tracked/pre-\ndicted, GiB"] if known else []), "host\nRSS, GiB"]
    heads += ["step,\nmean s"]
    heads += ["tokens\na second", "trained\na step, M", "trained\never, M", "optim.\nstate, GiB"]
    heads += ["held-out loss,\nbefore -> after"] if losses else []
    heads += ["general loss,\nbefore -> after"] if general else []
    table = _table(title, heads)
    for row in rows:
        trained = [record.train for record in row.records if record.train is not None]
        if not trained:
            status = short_status(row) if not row.finished else NOTHING
            table.add_row(Text(one_line(row.label, LABEL_WIDTH)), *[Text(status)] * (len(heads) - 1))
            continue
        a_step = mean_of(row, lambda train: train.trainable_params_mean)
        cells = [
            peak_text(summary, row) if cuda else "no CUDA",
            *([_tracked_and_predicted(row)] if known else []),
            gib(host_peak_bytes(row)),
            _number(mean_of(row, lambda train: train.step_seconds_mean)),
            _number(mean_of(row, tokens_per_second)),
            _number(None if a_step is None else a_step / 1e6),
            _number(max(train.trainable_params_ever for train in trained) / 1e6),
            gib(max(train.peak_optimizer_state_bytes for train in trained)),
        ]
        cells += [held_out_losses(row)] if losses else []
        cells += [general_losses(row)] if general else []
        label = _label(row) + (f" {BUSY}" if is_busy(row) else "")
        table.add_row(Text(label), *(Text(cell) for cell in cells))
    return table


def _tracked_and_predicted(row: Row) -> str:
    """Return both peaks of a row in GiB; one sign where neither is known."""
    tracked, prediction = largest_tracked_peak(row), best_prediction(row)
    if tracked is None and prediction is None:
        return NOTHING
    both = (
        None if tracked is None else tracked.at_peak.total_bytes,
        None if prediction is None else prediction.peak_bytes,
    )
    return "/".join(map(gib, both))


def _number(value: float | None) -> str:
    return NOTHING if value is None else significant(value)
