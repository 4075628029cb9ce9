"""The tables on a terminal: scores and cost of each model within 120 columns, plain text where there is no terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from harness.catalogue.tuned import Tuned
from harness.report.pages import mt_bench as judging
from harness.report.pages.costs import short_cell, short_heading, shown_quantities
from harness.report.pages.page import result_notes
from harness.report.reading.estimates import average_of_row, has_normalised, normalised_average_of_row, score_of_row
from harness.report.reading.items import ReadItems
from harness.report.reading.summary import Row, ScoreColumn, Summary, summarize
from harness.report.reading.words import BUSY, is_busy, marks, row_status, status_words
from harness.report.statistics.intervals import Estimate
from harness.report.table import one_line
from harness.report.units import NOTHING, percent
from harness.store import Contents
from harness.suite import Suite

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


def terminal_table(
    suite: Suite,
    contents: Contents,
    console: Console,
    tuned: Tuned | None = None,
    read_items: ReadItems | None = None,
) -> None:
    """Print the scores and the cost of every recorded label.

    Raises:
        HarnessError: there is no record of the suite.
    """
    summary = summarize(suite, contents, tuned, read_items)
    parts: list[RenderableType] = []
    for model in summary.models:
        rows = summary.rows_of(model)
        if summary.has_records(model):
            title = f"{suite.name} {summary.view.suite_version}, {model}"
            if summary.columns:
                parts += [_scores(summary, rows, title), Text()]
            for judge in judging.judges_of(summary):
                parts += [_points(rows, title, judge), Text()]
            parts += [part for table in _costs(summary, rows, f"{title}: cost") for part in (table, Text())]
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


def _costs(summary: Summary, rows: Sequence[Row], title: str) -> list[RichTable]:
    """Return the cost of each label, in as many tables as it takes for their columns to stand side by side."""
    trained = [row for row in rows if row.finished and row.trains]
    heads, columns = [], []
    for quantity in shown_quantities(rows, "terminal"):
        cells = [short_cell(row, quantity, summary) for row in trained]
        if any(cell != NOTHING for cell in cells) or not trained:
            heads.append(short_heading(quantity))
            columns.append(dict(zip((row.label for row in trained), cells, strict=True)))
    labels = [_label(row) + (f" {BUSY}" if is_busy(row) else "") for row in rows]
    statuses = [NOTHING if row.finished else short_status(row) for row in rows]
    widths = []
    for head, column in zip(heads, columns, strict=True):
        cells = [column.get(row.label, status) for row, status in zip(rows, statuses, strict=True)]
        widths.append(1 + max(map(len, (*head.split("\n"), *cells))))
    tables: list[RichTable] = []
    for places in _side_by_side(widths, WIDTH - max(map(len, labels))):
        table = _table(title if not tables else f"{title}, continued", ["label", *(heads[i] for i in places)])
        for row, label, status in zip(rows, labels, statuses, strict=True):
            table.add_row(Text(label), *(Text(columns[i].get(row.label, status)) for i in places))
        tables.append(table)
    return tables


def _side_by_side(widths: Sequence[int], most: int) -> list[list[int]]:
    """Return places in groups, in order, each no wider than ``most`` unless it is one place alone."""
    groups: list[list[int]] = [[]]
    for i, width in enumerate(widths):
        if groups[-1] and sum(widths[k] for k in groups[-1]) + width > most:
            groups.append([])
        groups[-1].append(i)
    return groups
