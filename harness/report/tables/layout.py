"""A table for a paper before it is set: models are blocks of rows, suites blocks of columns; and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.errors import HarnessError, near_miss
from harness.report.reading.items import ReadItems
from harness.report.reading.summary import Row, Summary
from harness.report.tables.captions import caption_of, named_model, notes_of
from harness.report.tables.cells import MISSING, NO_ROW, Figure, figure_of
from harness.report.tables.choice import TableChoice, unknown_names
from harness.report.tables.columns import LABEL, Chosen, Heading, choose_columns
from harness.report.tables.marks import Marks, Place, marks_of

LABEL_HEADING = "Method"


@dataclass(frozen=True)
class Block:
    """The columns of one suite."""

    title: str
    headings: tuple[Heading, ...]


@dataclass(frozen=True)
class Line:
    """One row: a label and its cells, block after block."""

    label: str
    figures: tuple[tuple[Figure, ...], ...]


@dataclass(frozen=True)
class Group:
    """The rows of one model."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table as it can be set in any format. All of it is plain text."""

    label_heading: str
    blocks: tuple[Block, ...]
    groups: tuple[Group, ...]
    caption: str
    notes: tuple[str, ...]
    """What has to be known beside the figures and is no part of the caption."""


def lay_out(choice: TableChoice, summaries: Sequence[Summary], read_items: Sequence[ReadItems]) -> PaperTable:
    """Return the table.

    Args:
        choice: What is asked for.
        summaries: One a suite, in the order of the choice.
        read_items: Of each suite what returns a file of items.

    Raises:
        HarnessError: a name in the choice is of nothing, or a suite that is no ranking is to be marked with a best.
    """
    for summary in summaries:
        if choice.marked == "best" and not summary.suite.ranking:
            raise HarnessError(
                f"--best: suite '{summary.suite.name}' is no ranking (ranking = false), so nothing of it is marked as "
                "best; leave --best out"
            )
    blocks = choose_columns(choice.columns, summaries, choice.headings)
    rows = _rows(choice, summaries)
    unknown_names(choice, [*rows, *{label for found in rows.values() for label in found}, *_suite_names(summaries)])
    marks: dict[tuple[str, int], Marks] = {}
    groups = []
    for model, labels in rows.items():
        found = [_rows_of(summary, model, labels) for summary in summaries]
        for i, (summary, block) in enumerate(zip(summaries, blocks, strict=True)):
            known = [row for row in found[i] if row is not None]
            marks[model, i] = marks_of(summary, known, block, choice.marked, read_items[i])
        lines = [
            Line(
                choice.names.get(label, label),
                tuple(
                    _figures(found[i][place], blocks[i], summaries[i], choice, marks[model, i])
                    for i in range(len(summaries))
                ),
            )
            for place, label in enumerate(labels)
        ]
        groups.append(Group(named_model(choice, summaries, model), tuple(lines)))
    shown = [
        [row for model, labels in rows.items() for row in _rows_of(summary, model, labels) if row is not None]
        for summary in summaries
    ]
    return PaperTable(
        choice.headings.get(LABEL, LABEL_HEADING),
        tuple(
            Block(choice.names.get(name, name), tuple(column.heading for column in block))
            for name, block in zip(_suite_names(summaries), blocks, strict=True)
        ),
        tuple(groups),
        caption_of(choice, summaries, blocks, shown, list(marks.values())),
        notes_of(choice, summaries, blocks, shown),
    )


def _suite_names(summaries: Sequence[Summary]) -> list[str]:
    return [summary.suite.name for summary in summaries]


def _rows(choice: TableChoice, summaries: Sequence[Summary]) -> dict[str, tuple[str, ...]]:
    """Return the labels of each model, in order.

    Raises:
        HarnessError: a model or a label is in none of the suites.
    """
    models = list(dict.fromkeys(model for summary in summaries for model in summary.models))
    for model in choice.models:
        if model not in models:
            raise HarnessError(f"--model {model}: no suite of the table has it{near_miss(model, models)}")
    recorded = [model for model in models if any(summary.has_records(model) for summary in summaries)]
    found: dict[str, tuple[str, ...]] = {}
    for model in choice.models or recorded:
        found[model] = tuple(dict.fromkeys(row.label for summary in summaries for row in summary.rows_of(model)))
    labels = {label for known in found.values() for label in known}
    for label in choice.rows:
        if label not in labels:
            raise HarnessError(f"--rows: there is no label '{label}'{near_miss(label, labels)}")
    if choice.rows:
        found = {model: tuple(label for label in choice.rows if label in known) for model, known in found.items()}
    return {model: known for model, known in found.items() if known}


def _rows_of(summary: Summary, model: str, labels: Sequence[str]) -> list[Row | None]:
    known = {row.label: row for row in summary.rows_of(model)}
    return [known.get(label) for label in labels]


def _figures(
    row: Row | None, block: Sequence[Chosen], summary: Summary, choice: TableChoice, marks: Marks
) -> tuple[Figure, ...]:
    if row is None:
        return tuple(Figure(MISSING, why=NO_ROW) for _ in block)
    figures = (figure_of(row, column, summary, choice.style) for column in block)
    return tuple(
        figure if figure.is_missing else marked(figure, (row.label, column.name), marks)
        for figure, column in zip(figures, block, strict=True)
    )


def marked(figure: Figure, place: Place, marks: Marks) -> Figure:
    """Return a figure with what is marked at its place."""
    return replace(figure, above=marks.letters.get(place, figure.above), bold=place in marks.best)
