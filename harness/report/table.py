"""A table of cells, and its form in Markdown. Renderers escape; cells hold text as recorded."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MARKDOWN_SPECIAL = re.compile(r"[\\`*<|~&#$@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^[>\[]|^[-+](?= )|\](?=[(\[:])")
"""What could start markup. Brackets matter only where a link, a footnote or a task box could come of them."""


@dataclass(frozen=True)
class Column:
    """Heading of a column and how its cells are set."""

    title: str
    align: Literal["left", "right"] = "right"
    definition: str = ""
    """A sentence of our own that says what stands in it, backticks around code; empty where the title says it."""


@dataclass(frozen=True)
class Cell:
    """A cell of several parts, or with a number, so that no renderer has to read either back out of its text."""

    text: str
    value: float | None = None
    """The number that it is sorted by: the estimate, of a change what came after. None: it says why there is none."""
    rest: tuple[str, ...] = ()
    """What stands behind it in brackets: interval, count, share."""

    def __str__(self) -> str:
        """Return all of it on one line."""
        return " ".join((self.text, *self.rest))


Entry = Cell | str
"""A cell that holds text alone is that text."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows)


def counted(number: int) -> Cell:
    """Return the cell of a count."""
    return Cell(str(number), number)


def one_line(text: str, limit: int | None = None) -> str:
    """Return text on one line: white space run together, control characters and lone surrogates dropped.

    Args:
        text: As recorded.
        limit: Characters after which the rest becomes an ellipsis; None: all of it.
    """
    text = " ".join(text.split())
    text = "".join(char for char in text if unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Cn"})
    return text if limit is None or len(text) <= limit else f"{text[: limit - 1]}…"


def escape_markdown(text: str) -> str:
    """Return text on one line that Markdown shows as it is, in a table cell too."""

    def escaped(match: re.Match[str]) -> str:
        char = match.group()
        return {"<": "&lt;", "&": "&amp;", "@": "&#64;"}.get(char, f"\\{char}")

    return MARKDOWN_SPECIAL.sub(escaped, one_line(text))


def markdown_table(table: Table) -> str:
    """Return the table in GitHub's Markdown, columns padded so that the source can be read too."""
    heads = [escape_markdown(column.title) for column in table.columns]
    rows = [[escape_markdown(str(cell)) for cell in row] for row in table.rows]
    widths = [
        max(3, len(head), *(len(row[i]) for row in rows)) if rows else max(3, len(head)) for i, head in enumerate(heads)
    ]
    rules = [
        "-" * (width - 1) + (":" if column.align == "right" else "-")
        for width, column in zip(widths, table.columns, strict=True)
    ]
    lines = [_line(heads, widths, table.columns), f"| {' | '.join(rules)} |"]
    lines += [_line(row, widths, table.columns) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    padded = [
        cell.rjust(width) if column.align == "right" else cell.ljust(width)
        for cell, width, column in zip(cells, widths, columns, strict=True)
    ]
    return f"| {' | '.join(padded)} |"
