"""The tables on a terminal: scores and cost of each model, in as many tables as its width takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from harness.catalogue.tuned import Tuned
from harness.report.fitted import Line, fitted, wrapped_prose
from harness.report.pages import mt_bench as judging
from harness.report.pages.costs import short_cell, short_heading, shown_quantities
from harness.report.pages.page import result_notes
from harness.report.reading.estimates import average_of_row, has_normalised, normalised_average_of_row, score_of_row
from harness.report.reading.items import ReadItems
from harness.report.reading.summary import Row, ScoreColumn, Summary, summarize
from harness.report.reading.words import BUSY, is_busy, marks, row_status, status_words
from harness.report.statistics.intervals import Estimate
from harness.report.table import Column, one_line
from harness.report.units import NOTHING, percent
from harness.store import Contents
from harness.suite import Suite

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
    summary_table(summarize(suite, contents, tuned, read_items), console)


def summary_table(summary: Summary, console: Console) -> None:
    """Print the same of what was summarized."""
    suite = summary.suite
    lines: list[Line] = []
    for model in summary.models:
        rows = summary.rows_of(model)
        if summary.has_records(model):
            title = f"{suite.name}, version {summary.view.suite_version}, {summary.heading(model)}"
            tables = [_scores(summary, rows, title)] if summary.columns else []
            tables += [_points(rows, title, judge) for judge in judging.judges_of(summary)]
            for table in (*tables, _costs(summary, rows, f"{title}: cost")):
                lines += [*table.lines(console.width), Line("")]
        else:
            lines += [Line(one_line(f"{suite.name}, {model}: not run")), Line("")]
    for sentence in (*result_notes(summary), *summary.notes):
        lines += [Line(text) for text in wrapped_prose(one_line(sentence), console.width)]
    for line in lines:
        console.print(Text(line.text, style="bold" if line.heading else ""), soft_wrap=True)


@dataclass(frozen=True)
class _Table:
    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def lines(self, width: int) -> list[Line]:
        """Return the table in lines; its first column names a row and stands in every part."""
        columns = [Column(head, "right" if i else "left") for i, head in enumerate(self.heads)]
        return fitted(columns, self.rows, width, title=one_line(self.title), bars=True)


def _scores(summary: Summary, rows: Sequence[Row], title: str) -> _Table:
    averaged, normalised = summary.lone_group is None, has_normalised(summary)
    heads = [
        "label",
        *(_head(rows, column) for column in summary.columns),
        *(["average"] * averaged),
        *(["acc_norm\naverage"] * normalised),
    ]
    lines = []
    for row in rows:
        label = _label(row)
        if not row.finished:
            lines.append([label, *[short_status(row)] * (len(heads) - 1)])
            continue
        cells = [score_of_row(row, column) for column in summary.columns]
        if averaged:
            cells.append(average_of_row(row, summary.columns))
        if normalised:
            cells.append(normalised_average_of_row(row, summary.columns))
        if len(row.finished) < len(row.runs):
            label += f"\n{len(row.finished)} of {len(row.runs)} seeds, {row_status(row)}"
        lines.append([label, *map(_cell, cells)])
    return _Table(f"{title}: accuracy in %, 95% interval below it, n items a task", heads, lines)


def _points(rows: Sequence[Row], title: str, judge: str) -> _Table:
    metrics = judging.AGGREGATES
    heads = ["mean", "turn 1", "turn 2", "8 cate-\ngories", "7 cate-\ngories", "judg-\nments", "without\na score"]
    lines = []
    for row in rows:
        if not row.finished:
            lines.append([_label(row), *[short_status(row)] * len(heads)])
            continue
        points = [judging.points_of_row(row, judge, metric) for metric in metrics]
        cells = [_cell(None if estimate is None else (estimate, "points")) for estimate in points]
        lines.append([_label(row), *cells, *map(str, judging.counts_of_row(row, judge))])
    return _Table(f"{title}: MT-Bench points, 95% interval below, judged by {judge}", ["label", *heads], lines)


def _label(row: Row) -> str:
    return one_line(row.label) + marks(row)


def short_status(row: Row) -> str:
    """Return the status of a row without a result in a word that fits a column; of several the first."""
    status = next(run.status for run in row.runs if run.status != "ok")
    return SHORT_STATUS.get(status, status_words(status))


def _head(rows: Sequence[Row], column: ScoreColumn) -> str:
    name = SHORT_TASKS.get(column.task, one_line(column.task.removeprefix("mmlu_")))
    if column.subtasks and column.in_average:
        name += "\noverall"
    if column.on_files:
        name += "\nof file"
    if column.metric is not None and "," in column.metric:
        name += f"\n{column.metric.partition(',')[2].partition('-')[0]}"  # strict or flexible
    elif column.metric not in (None, "acc"):
        name += f"\n{one_line(column.metric)}"
    counts = [cell[0].num_items for row in rows if row.finished and (cell := score_of_row(row, column)) is not None]
    if not counts:
        return name
    low, high = min(count[0] for count in counts), max(count[1] for count in counts)
    return f"{name}\nn={low}" if low == high else f"{name}\nn={low}-{high}"


def _cell(cell: tuple[Estimate, str] | None) -> str:
    if cell is None:
        return NOTHING
    estimate, unit = cell
    write = percent if unit == "fraction" else "{:.2f}".format
    if estimate.interval is None:
        return write(estimate.mean)
    low, high = estimate.interval
    return f"{write(estimate.mean)}\n{write(low)}-{write(high)}"


def _costs(summary: Summary, rows: Sequence[Row], title: str) -> _Table:
    """Return the cost of each label."""
    shown = shown_quantities(rows, "terminal")
    lines = []
    for row in rows:
        label = _label(row) + (f" {BUSY}" if is_busy(row) else "")
        if row.finished and row.trains:
            lines.append([label, *(short_cell(row, quantity, summary) for quantity in shown)])
        else:
            lines.append([label, *[NOTHING if row.finished else short_status(row)] * len(shown)])
    return _Table(title, ["label", *map(short_heading, shown)], lines)
