"""Files of a report: whole, durable, and where they cannot be written a sentence that says what to do."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from harness import files

ADVICE = "name another with --out"


def make_folder(folder: Path) -> None:
    """Make a folder and its parents.

    Raises:
        HarnessError: it cannot be made.
    """
    with files.said_as(f"the report's folder {folder} cannot be made", ADVICE):
        files.make_folder(folder)


def replace_file(file: Path, content: str | bytes) -> Path:
    """Put ``content`` (text as UTF-8, line ends kept) in the place of ``file`` and return ``file``.

    Raises:
        HarnessError: it cannot be written; what was there stays.
    """
    data = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
    with files.said_as(f"{file}: cannot be written", ADVICE):
        files.write_file(file, data)
    return file


def replace_table(file: Path, rows: Iterable[Sequence[Any]]) -> Path:
    """Put a table as CSV, written row by row, in the place of ``file`` and return ``file``; None is an empty cell.

    Raises:
        HarnessError: it cannot be written; what was there stays.
    """
    with _text_in_place_of(file) as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)
    return file


def replace_lines(file: Path, lines: Iterable[str]) -> Path:
    """Put lines that have their ends in the place of ``file`` as they come, and return ``file``.

    Raises:
        HarnessError: it cannot be written; what was there stays.
    """
    with _text_in_place_of(file) as stream:
        stream.writelines(lines)
    return file


@contextlib.contextmanager
def _text_in_place_of(file: Path) -> Iterator[TextIO]:
    """Open what takes the place of a file at the end, whole and durably, unless something is raised."""
    with files.said_as(f"{file}: cannot be written", ADVICE):
        files.make_folder(file.parent)
        with (
            files.replacing(file) as part,
            part.open("w", encoding="utf-8", errors="replace", newline="") as stream,
        ):
            yield stream
