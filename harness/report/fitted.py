"""Tables in plain text that fit a width: no word is ever cut, and the columns that name a row stand in every part.

What does not fit beside the names becomes a further table below, with the names again. Text wraps between words alone;
a word that is wider than the whole width stands alone on its line, whole. A column without any entry is left out, and
in further parts the rows without one.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len

from harness.report.table import Column
from harness.report.units import NOTHING

NARROWEST = 40
"""Columns below which no table is laid out: a terminal that is narrower wraps its lines itself."""
COMFORT = 28
"""Columns that text which can wrap is given before it moves into a further table."""
FEW = 4
"""One row of so many may stand by itself before all do."""
GAP = "  "
BARS = "|"
NUMBER = re.compile(r"[-+<>~]?\d[\d,]*(\.\d+)?(e[-+]\d+)?%?")
ENTRIES = frozenset({"", NOTHING})


@dataclass(frozen=True)
class Line:
    """A line of a table."""

    text: str
    heading: bool = False


@dataclass(frozen=True)
class _Laid:
    """A column with what it needs."""

    column: Column
    cells: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.column.title, *self.cells)

    @property
    def longest_word(self) -> int:
        return max((cell_len(word) for text in self.texts for word in text.split()), default=0)

    @property
    def natural(self) -> int:
        return max(cell_len(line) for text in self.texts for line in text.split("\n"))

    @property
    def comfort(self) -> int:
        """What it is given at least: a heading over numbers may wrap, text in cells only past ``COMFORT``."""
        if self.column.align == "right":
            cells = max((cell_len(line) for text in self.cells for line in text.split("\n")), default=0)
            return max(self.longest_word, min(cells, COMFORT))
        return min(self.natural, max(self.longest_word, COMFORT))

    @property
    def has_entries(self) -> bool:
        return any(cell not in ENTRIES for cell in self.cells)


def fitted(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    keys: int = 1,
    title: str | None = None,
    bars: bool = False,
) -> list[Line]:
    """Return the lines of a table.

    Args:
        columns: Headings, which may have several lines.
        rows: A text a column, which may have several lines; nothing in them is read as markup.
        width: Of a line; no line is wider, unless a single word is.
        keys: How many of the first columns name a row.
        title: Stands above each part.
        bars: Whether bars stand between columns and a rule below the headings, instead of blanks.
    """
    width = max(width, NARROWEST)
    rows = [[_clean(cell) for cell in row] for row in rows]
    odd = _odd_rows(rows, columns, keys, width, bars)
    usual = [i for i in range(len(rows)) if i not in odd]
    laid = [_Laid(column, tuple(rows[i][k] for i in usual)) for k, column in enumerate(columns)]
    key, others = laid[:keys], [one for one in laid[keys:] if one.has_entries]
    if not others:
        others = laid[keys:][:1]
    names = _widths(key, width // 2 if others else width, BARS if bars else GAP)
    lines: list[Line] = []
    for place, part in enumerate(_parts(key, names, others, width, bars)):
        lines += [Line("")] * bool(lines)
        if title is not None:
            lines += [Line(text, True) for text in _wrapped(title + ", continued" * (place > 0), width)]
        shown = [i for i in range(len(usual)) if not place or any(one.cells[i] not in ENTRIES for one in part.columns)]
        if part.beside:
            widths = [*names, *_widths(part.columns, width - _across(names, bars), BARS if bars else GAP)]
            heads, told = _side_by_side([*key, *part.columns], widths, shown, bars)
        else:
            heads = [Line(text, True) for text in _wrapped(_named(one.column.title for one in key), width)]
            heads = heads * (place == 0)
            told = [_below([one.cells[i] for one in key], part.columns, i, width) for i in shown]
        lines += heads
        by_row = dict(zip((usual[i] for i in shown), told, strict=True))
        if not place:
            whole = [_Laid(column, tuple(row[k] for row in rows)) for k, column in enumerate(columns)]
            by_row |= {i: _below(rows[i][:keys], whole[keys:], i, width) for i in odd}
        lines += [line for i in sorted(by_row) for line in by_row[i]]
    return lines


def _odd_rows(
    rows: Sequence[Sequence[str]], columns: Sequence[Column], keys: int, width: int, bars: bool
) -> frozenset[int]:
    """Return the few rows that hold a word too wide for any place beside the names: they stand by themselves."""
    laid = [_Laid(column, tuple(row[k] for row in rows)) for k, column in enumerate(columns)]
    names = _widths(laid[:keys], width // 2, BARS if bars else GAP)
    room = width - _across(names, bars)
    found = frozenset(
        i for i, row in enumerate(rows) if any(cell_len(word) > room for cell in row[keys:] for word in cell.split())
    )
    return found if len(found) * FEW <= len(rows) else frozenset()


@dataclass(frozen=True)
class _Part:
    columns: list[_Laid]
    beside: bool
    """Whether they stand beside the names; else each below them, on lines of its own."""


def _parts(key: Sequence[_Laid], names: Sequence[int], others: Sequence[_Laid], width: int, bars: bool) -> list[_Part]:
    """Return the columns in the parts of a table, in order."""
    gap = len(BARS if bars else GAP)
    room = width - _across(names, bars)
    fits = room + gap >= 0 and all(one.longest_word <= taken for one, taken in zip(key, names, strict=True))
    parts: list[_Part] = []
    left = 0
    for one in others:
        beside = fits and one.longest_word <= room
        needed = min(one.comfort, room)
        if parts and parts[-1].beside == beside and (not beside or needed + gap <= left):
            parts[-1].columns.append(one)
            left -= needed + gap
        else:
            parts.append(_Part([one], beside))
            left = room - needed
    return parts or [_Part([], fits)]


def _across(names: Sequence[int], bars: bool) -> int:
    """Return the columns of a line that names take with the gaps behind them."""
    return sum(names) + len(names) * len(BARS if bars else GAP)


def _widths(columns: Sequence[_Laid], room: int, gap: str) -> list[int]:
    """Return the width of each column: what it needs, and what is left over for those that would wrap.

    Where that is more than the room, the widest give way, none further than to its longest word.
    """
    widths = [one.comfort for one in columns]
    left = room - sum(widths) - len(gap) * (len(columns) - 1)
    while left < 0 and (giving := [i for i, one in enumerate(columns) if widths[i] > one.longest_word]):
        widths[max(giving, key=lambda i: widths[i])] -= 1
        left += 1
    while left > 0 and (wanting := [i for i, one in enumerate(columns) if widths[i] < one.natural]):
        for i in sorted(wanting, key=lambda i: columns[i].natural - widths[i]):
            more = min(columns[i].natural - widths[i], max(1, left // len(wanting)), left)
            widths[i] += more
            left -= more
    return widths


def _side_by_side(
    columns: Sequence[_Laid], widths: Sequence[int], shown: Iterable[int], bars: bool
) -> tuple[list[Line], list[list[Line]]]:
    """Return the lines of the headings, and those of each row."""
    aligned = ["right" if one.column.align == "right" else "left" for one in columns]
    gap = BARS if bars else GAP
    heads = [
        Line(text, True) for text in _joined([one.column.title for one in columns], widths, aligned, gap, top=False)
    ]
    if bars:
        heads.append(Line("+".join("-" * taken for taken in widths)))
    rows = [_joined([one.cells[i] for one in columns], widths, aligned, gap) for i in shown]
    return heads, [[Line(text) for text in row] for row in rows]


def _joined(
    cells: Sequence[str], widths: Sequence[int], aligned: Sequence[str], gap: str, *, top: bool = True
) -> list[str]:
    """Return the lines of one row; cells with fewer lines than others have theirs at the top or at the bottom."""
    wrapped = [_wrapped(cell, taken) for cell, taken in zip(cells, widths, strict=True)]
    height = max(map(len, wrapped))
    lines = []
    for k in range(height):
        parts = []
        for cell, taken, side in zip(wrapped, widths, aligned, strict=True):
            i = k if top else k - (height - len(cell))
            text = cell[i] if 0 <= i < len(cell) else ""
            blank = " " * (taken - cell_len(text))
            parts.append(blank + text if side == "right" else text + blank)
        lines.append(gap.join(parts).rstrip())
    return lines


def _below(names: Iterable[str], columns: Sequence[_Laid], i: int, width: int) -> list[Line]:
    """Return a row as its names, and below them a line for each of its entries."""
    lines = [Line(text, True) for text in _wrapped(_named(names), width)]
    for one in columns:
        if one.cells[i] not in ENTRIES:
            told = f"{' '.join(one.column.title.split())}: {' '.join(one.cells[i].split())}"
            lines += [Line(GAP + text) for text in _wrapped(told, width - len(GAP))]
    return lines


def _named(texts: Iterable[str]) -> str:
    return GAP.join(" ".join(text.split()) for text in texts)


def _clean(cell: str) -> str:
    return cell.replace("\t", " ").strip("\n")


def _wrapped(text: str, width: int) -> list[str]:
    """Return a text in lines, broken between words alone."""
    lines: list[str] = []
    for line in text.split("\n"):
        if cell_len(line) <= width:
            lines.append(line)
            continue
        held = ""
        for word in line.split():
            if held and cell_len(held) + 1 + cell_len(word) > width:
                lines.append(held)
                held = word
            else:
                held = f"{held} {word}" if held else word
        lines.append(held)
    return lines


def wrapped_prose(text: str, width: int, *, indent: str = "") -> list[str]:
    """Return a sentence in lines of at most a width, broken between words alone."""
    return textwrap.wrap(
        text,
        max(width, NARROWEST),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]


def alignment(cells: Iterable[str]) -> Literal["left", "right"]:
    """Return the side of a column: right when all that it holds are numbers."""
    known = [cell for cell in cells if cell not in ENTRIES]
    return "right" if known and all(NUMBER.fullmatch(cell) for cell in known) else "left"
