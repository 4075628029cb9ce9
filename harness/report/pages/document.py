"""What a page of a report holds, in order, as plain text; page.py builds it once, and each format has its renderer.

Text stays as recorded: renderers escape, no caller does. Our own sentences may be ``Prose``, in which backticks
set code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.report.table import Table

CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Prose:
    """A sentence of our own, never one with recorded text in it."""

    text: str

    def pieces(self) -> tuple[tuple[str, bool], ...]:
        """Return the sentence in pieces, each with whether it is code."""
        parts = CODE.split(self.text)
        return tuple((part, i % 2 == 1) for i, part in enumerate(parts) if part)


Text = str | Prose


def pieces_of(text: Text) -> tuple[tuple[str, bool], ...]:
    """Return a text in pieces, each with whether it is code; recorded text is one piece, whatever is in it."""
    return text.pieces() if isinstance(text, Prose) else ((text, False),)


@dataclass(frozen=True)
class Heading:
    """A heading: 1 the page's, 2 a section's, 3 a model's."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """One paragraph."""

    text: Text


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    lines: tuple[Text, ...]


@dataclass(frozen=True)
class Definitions:
    """A list of terms, each with what it means."""

    entries: tuple[tuple[str, Text], ...]


@dataclass(frozen=True)
class TableBlock:
    """A table with what stands above it."""

    table: Table
    caption: str | None = None
    name: str | None = None
    """Of a table that has a file of its own in LaTeX: a stem that is safe in a path, unique on the page."""
    reasons: tuple[str | None, ...] = ()
    """Of each row why runs of it have no result; empty where no row can lack one."""


@dataclass(frozen=True)
class PlotBlock:
    """One plot in all its formats."""

    title: str
    files: tuple[Path, ...]
    caption: str = ""
    """What a reader must know to take it for what it is; nothing recorded is in it."""

    def file(self, *endings: str) -> Path | None:
        """Return the file with the first of the endings that there is."""
        by_ending = {file.suffix: file for file in self.files}
        return next((by_ending[ending] for ending in endings if ending in by_ending), None)


@dataclass(frozen=True)
class Links:
    """A list of pages beside this one."""

    lines: tuple[tuple[str, str], ...]
    """Text, and address relative to the page's folder, of letters that :func:`file_stem` makes."""


Block = Heading | Paragraph | Bullets | Definitions | Links | TableBlock | PlotBlock
Document = tuple[Block, ...]


def file_stem(text: str, taken: Sequence[str] = ()) -> str:
    """Return a stem made of text that is no path whatever the text, and is none of ``taken``."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:60] or "model"
    return next(name for i in range(1, len(taken) + 2) if (name := stem if i == 1 else f"{stem}-{i}") not in taken)
