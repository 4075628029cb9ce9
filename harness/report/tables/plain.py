"""A table for a paper as Markdown, as CSV and for a terminal: the same figures as in LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from harness.report.table import Column, Table, escape_markdown, markdown_table, one_line
from harness.report.tables.cells import Figure
from harness.report.tables.layout import Block, Line, PaperTable

GAP = 2
"""Spaces between two columns on a terminal."""


def paper_markdown(table: PaperTable) -> str:
    """Return the table in GitHub's Markdown: a table a model, the caption and the notes below."""
    parts = []
    for group in table.groups:
        if len(table.groups) > 1:
            parts.append(f"**{escape_markdown(group.title)}**\n")
        columns = (Column(table.label_heading, "left"), *(Column(title) for title in _titles(table)))
        rows = tuple((one_line(line.label), *(_text(figure) for figure in _flat(line))) for line in group.lines)
        parts.append(markdown_table(Table(columns, rows)))
    parts.append(f"{escape_markdown(table.caption)}\n")
    parts.append("".join(f"- {escape_markdown(note)}\n" for note in table.notes))
    return "\n".join(parts)


def paper_csv(table: PaperTable) -> str:
    """Return the table as CSV: a row a model and label; what stands beside or above a figure in columns of its own."""
    titles = _titles(table)
    lines = [line for group in table.groups for line in group.lines]
    columns = [[_flat(line)[i] for line in lines] for i in range(len(titles))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["model", table.label_heading]
    for title, figures in zip(titles, columns, strict=True):
        head += [title, *(f"{title} {name}" for name, _ in _extras(figures))]
    writer.writerow([one_line(text) for text in head])
    for place, (model, line) in enumerate((group.title, line) for group in table.groups for line in group.lines):
        row = [model, line.label]
        for figures in columns:
            figure = figures[place]
            row += [_word(figure) if figure.is_missing else figure.text]
            row += [values[place] for _, values in _extras(figures)]
        writer.writerow([one_line(text) for text in row])
    return out.getvalue()


def _extras(figures: Sequence[Figure]) -> list[tuple[str, list[str]]]:
    """Return the columns beside one of figures, those that hold anything."""
    low_high = [figure.beside[1:-1].split(", ") if figure.beside[:1] == "[" else ["", ""] for figure in figures]
    found = [
        ("half-width", [figure.beside[1:] if figure.beside[:1] == "±" else "" for figure in figures]),
        ("low", [low for low, _ in low_high]),
        ("high", [high for _, high in low_high]),
        ("mark", [figure.above + "best" * figure.bold for figure in figures]),
    ]
    return [(name, values) for name, values in found if any(values)]


def paper_text(table: PaperTable, width: int) -> str:
    """Return the table in plain letters, its columns in as many tables as they need to stand within a width.

    The label stands in each of them, and no figure is cut.
    """
    lines = [line for group in table.groups for line in group.lines]
    labels = [one_line(line.label) for line in lines]
    label_width = max(map(len, (table.label_heading, *labels, *(_title(table, i) for i in range(len(table.groups))))))
    cells = [[_text(figure) for figure in _flat(line)] for line in lines]
    titles = [title.split("\n") for title in _titles(table, "\n")]
    widths = [max(map(len, (*titles[i], *(row[i] for row in cells)))) for i in range(len(titles))]
    parts = []
    for places in _side_by_side(widths, width - label_width):
        heads = max(len(titles[i]) for i in places)
        tops = [[""] * (heads - len(titles[i])) + titles[i] for i in places]
        for level in range(heads):
            name = table.label_heading if level == heads - 1 else ""
            parts.append(_row(name, [top[level] for top in tops], label_width, [widths[i] for i in places]))
        at = 0
        for number, group in enumerate(table.groups):
            parts += [_title(table, number)] if len(table.groups) > 1 else []
            for _ in group.lines:
                parts.append(_row(labels[at], [cells[at][i] for i in places], label_width, [widths[i] for i in places]))
                at += 1
        parts.append("")
    return "\n".join([*parts, one_line(table.caption), *map(one_line, table.notes)]) + "\n"


def _row(label: str, cells: Sequence[str], label_width: int, widths: Sequence[int]) -> str:
    parts = [label.ljust(label_width), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))]
    return (" " * GAP).join(parts).rstrip()


def _side_by_side(widths: Sequence[int], most: int) -> list[list[int]]:
    groups: list[list[int]] = [[]]
    for i, width in enumerate(widths):
        if groups[-1] and sum(widths[k] + GAP for k in groups[-1]) + width + GAP > most:
            groups.append([])
        groups[-1].append(i)
    return groups


def _title(table: PaperTable, number: int) -> str:
    return f"[{one_line(table.groups[number].title)}]" if len(table.groups) > 1 else ""


def _titles(table: PaperTable, between: str = ": ") -> list[str]:
    """Return the heading of each column, behind the suite's name where there are several."""
    several = len(table.blocks) > 1

    def title(block: Block, line: str) -> str:
        return one_line(block.title) + between + line if several else line

    return [title(block, one_line(head.line)) for block in table.blocks for head in block.headings]


def _flat(line: Line) -> list[Figure]:
    return [figure for figures in line.figures for figure in figures]


def _word(figure: Figure) -> str:
    return f"{figure.text} ({one_line(figure.why)})" if figure.why else figure.text


def _text(figure: Figure) -> str:
    if figure.is_missing:
        return _word(figure)
    beside = f" ± {figure.beside[1:]}" if figure.beside[:1] == "±" else f" {figure.beside}" if figure.beside else ""
    above = figure.above if figure.above == "*" else f" {figure.above}" if figure.above else ""
    return figure.text + beside + above + (" (best)" if figure.bold else "")
