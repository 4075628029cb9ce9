"""What a table for a paper holds: columns, rows, how a score is written, what is marked; kept in a TOML file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from harness.errors import HarnessError, near_miss
from harness.files import said_as, write_file
from harness.report.table import one_line
from harness.settings import Strict
from harness.toml_files import read_toml, validate

Style = Literal["mean", "mean±half-width", "interval"]
STYLES: tuple[Style, ...] = get_args(Style)
Marked = Literal["nothing", "best", "groups"]
ASCII_STYLES: Mapping[str, Style] = {"mean+-half-width": "mean±half-width", "half-width": "mean±half-width"}
"""How a style may be typed too."""
LONGEST_NAME = 200
MOST_NAMES = 200
"""Columns or rows: a table of more is none of a paper."""


class TableChoice(Strict):
    """A table as it is asked for."""

    suites: tuple[str, ...] = Field(min_length=1, max_length=20)
    """Names of packaged suites or paths of suite files: blocks of columns, in this order."""
    models: tuple[str, ...] = ()
    """Blocks of rows, in this order; empty: every model with a record."""
    columns: tuple[str, ...] = Field(min_length=1, max_length=MOST_NAMES)
    """``label`` first or not at all; quantities, tasks, groups of tasks, ``avg``."""
    rows: tuple[str, ...] = Field(default=(), max_length=MOST_NAMES)
    """Labels, in this order; empty: all of the suites."""
    style: Style = "mean"
    marked: Marked = "nothing"
    caption: str = Field(default="", max_length=4000)
    """What the caption says before the protocol."""
    reference: str = Field(default="", pattern=r"^[A-Za-z0-9:._-]*$", max_length=100)
    r"""What ``\ref`` calls the table."""
    headings: dict[str, str] = Field(default_factory=dict)
    """Own headings by the name of a column; the end of a line begins a line of the heading."""
    names: dict[str, str] = Field(default_factory=dict)
    """How models, labels and suites are called in the table."""

    @field_validator("columns", "rows", "models", "suites")
    @classmethod
    def _each_once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for i, value in enumerate(values):
            if not value.strip():
                raise ValueError("a name is empty")
            if len(value) > LONGEST_NAME:
                raise ValueError(f"a name has over {LONGEST_NAME} characters")
            if value in values[:i]:
                raise ValueError(f"'{value}' is named twice")
        return values


def read_choice(spec: Path | None, given: Mapping[str, Any]) -> TableChoice:
    """Return what a file keeps, if there is one, with what is given instead of it.

    Raises:
        HarnessError: the file cannot be read or is not valid, or what is given is not.
    """
    kept: dict[str, Any] = {}
    where = "the table's choice:"
    if spec is not None:
        kept, where = read_toml(spec)
        where = f"{where}:"
        if "style" in kept and isinstance(kept["style"], str):
            kept["style"] = ASCII_STYLES.get(kept["style"], kept["style"])
    return validate(TableChoice, kept | dict(given), where)


def save_choice(choice: TableChoice, file: Path) -> None:
    """Write a choice into a file that is not there yet.

    Raises:
        HarnessError: it is there, or cannot be written.
    """
    if file.exists() or file.is_symlink():
        raise HarnessError(f"--save-spec {file}: is there already, and is not written over; name another file")
    with said_as(f"--save-spec {file}: cannot be written"):
        write_file(file, choice_toml(choice).encode("utf-8", errors="replace"))


def choice_toml(choice: TableChoice) -> str:
    """Return a choice as TOML, without what is at its default."""
    plain, tables = [], []
    for key, value in choice.model_dump(exclude_defaults=True).items():
        if isinstance(value, dict):
            rows = "".join(f"{_toml(name)} = {_toml(text)}\n" for name, text in value.items())
            tables.append(f"\n[{key}]\n{rows}")
        else:
            plain.append(f"{key} = {_toml(value)}\n")
    return "# What `harness report --spec` makes a table of.\n" + "".join((*plain, *tables))


def _toml(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def command_of(choice: TableChoice, spec: str | None = None) -> str:
    """Return the command line that makes a table, on one line.

    Args:
        choice: What is asked for.
        spec: The file that keeps it, where it was read from one as it is.
    """
    if spec is not None:
        return one_line(shlex.join(["harness", "report", "--spec", spec]))
    words = ["harness", "report"]
    for option, values in (("--suite", choice.suites), ("--model", choice.models)):
        words += [word for value in values for word in (option, value)]
    words += ["--table", ", ".join(choice.columns)]
    words += ["--rows", ", ".join(choice.rows)] if choice.rows else []
    words += ["--style", choice.style] if choice.style != "mean" else []
    words += [f"--{choice.marked}"] if choice.marked != "nothing" else []
    return one_line(shlex.join(words))


def split_names(text: str) -> tuple[str, ...]:
    """Return the names of a list with commas; a comma inside brackets, as in ``lora[rank=4,alpha=8]``, is no end.

    Where brackets are not closed every comma ends a name.
    """
    names, depth = [""], 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "," and depth <= 0:
            names.append("")
        else:
            names[-1] += char
    if depth:
        names = text.split(",")
    return tuple(name.strip() for name in names)


def style_of(text: str) -> Style:
    """Return the style that a word names.

    Raises:
        HarnessError: none has that name.
    """
    found = ASCII_STYLES.get(text, text)
    for style in STYLES:
        if style == found:
            return style
    raise HarnessError(f"--style {text}: there is no such style{near_miss(text, (*STYLES, *ASCII_STYLES))}")


def unknown_names(choice: TableChoice, known: Sequence[str]) -> None:
    """Look whether all that the choice renames is there.

    Raises:
        HarnessError: something is not.
    """
    for key in choice.names:
        if key not in known:
            raise HarnessError(f"[names] {key}: no model, label or suite of the table{near_miss(key, known)}")
    for key in choice.headings:
        if key not in (*choice.columns, "label"):
            raise HarnessError(f"[headings] {key}: is no column of the table{near_miss(key, choice.columns)}")
