"""The values of a file of rows, in its order: JSON list, JSON Lines, LMFlow's ``{"type", "instances"}``, Parquet, CSV.

A file of commas (``.csv``) or tabs (``.tsv``) has its columns' names in the first line; a cell is text, an empty one a
missing value, quoted where it holds a comma, a quote or the end of a line (RFC 4180). Nothing is guessed: not the
delimiter, and no cell that is one too many or too few.
"""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.files import parse_json, read_text

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_CELLS = threading.Lock()


@dataclass(frozen=True)
class Values:
    """What a file holds, not yet looked at."""

    values: list[Any]
    places: list[str]
    """Where each stands, in words."""
    in_cells: bool
    """Whether every value is text, as a table of cells has it."""


def read_values(file: Path, most: int | None = None) -> Values:
    """Return the values of a file, at least one.

    Args:
        file: JSON of any of the three kinds, UTF-8; or what its name's ending says.
        most: Only the first so many, the rest of the file being read no further than that takes.

    Raises:
        HarnessError: the file cannot be read, is not what its ending says, or holds nothing.
    """
    kind = file.suffix.lower()
    if kind in DELIMITERS:
        found = _cells(file, DELIMITERS[kind], most)
        values, places = [value for _, value in found], [place for place, _ in found]
    else:
        values = _parquet(file, most) if kind == ".parquet" else _json(file, read_text(file), most)
        places = [f"row {number}" for number in range(1, len(values) + 1)]
    if not values:
        raise HarnessError(f"{file}: holds no row")
    return Values(values, places, in_cells=kind in DELIMITERS)


def _parquet(file: Path, most: int | None) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if most is None:
            values: list[Any] = pq.read_table(file).to_pylist()
        else:
            values = next(iter(pq.ParquetFile(file).iter_batches(most)), pa.RecordBatch.from_pylist([])).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: text that is not UTF-8
        reason = str(error).splitlines() or [type(error).__name__]
        raise HarnessError(f"{file}: cannot be read as Parquet: {reason[0]}") from error
    return values


def _json(file: Path, text: str, most: int | None) -> list[Any]:
    start = text.lstrip()[:1]
    if start not in ("[", "{"):
        raise HarnessError(
            f"{file}: is neither a JSON list nor JSON Lines of objects; a table of cells is named .csv or .tsv"
        )
    lines = [line for line in text.split("\n") if line.strip()]
    if start == "{" and _is_json(lines[0]) and (len(lines) > 1 or "instances" not in json.loads(lines[0])):
        return [parse_json(line, f"{file}: row {number}") for number, line in enumerate(lines[:most], 1)]
    whole = parse_json(text, str(file))
    if isinstance(whole, list):
        return whole[:most]
    if isinstance(instances := whole.get("instances"), list):
        return instances[:most]
    raise HarnessError(f"{file}: is one JSON object; expected a list, JSON Lines, or an object with 'instances'")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _cells(file: Path, delimiter: str, most: int | None) -> list[tuple[str, dict[str, str | None]]]:
    """Return place and cells of each row of a table."""
    # Line ends inside a quoted cell stay; read_text has made one kind of them.
    lines = csv.reader(io.StringIO(read_text(file), newline=""), delimiter=delimiter, strict=True)
    with _CELLS:  # the limit, 128 KiB a cell, is the module's own and no reader's
        limit = csv.field_size_limit(2**31 - 1)
        try:
            header = _header(file, next(lines, []), delimiter)
            return list(islice(_rows(file, header, lines), most))
        except csv.Error as error:
            raise HarnessError(f"{file}: line {lines.line_num} is not as a table's are: {error}") from error
        finally:
            csv.field_size_limit(limit)


def _header(file: Path, names: list[str], delimiter: str) -> list[str]:
    if not any(name.strip() for name in names):
        raise HarnessError(f"{file}: its first line names no columns")
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise HarnessError(f"{file}: its first line has no name for column {number} of {len(names)}")
        if name in names[: number - 1]:
            raise HarnessError(f"{file}: its first line names the column '{name}' twice")
    if len(names) == 1 and (other := next((sign for sign in ";\t|," if sign in names[0] and sign != delimiter), None)):
        raise HarnessError(
            f"{file}: its first line names one column, {names[0]!r}: are the columns set apart by {other!r}? A .csv "
            "file has commas, a .tsv file tabs"
        )
    return names


def _rows(file: Path, header: list[str], lines: Any) -> Iterator[tuple[str, dict[str, str | None]]]:
    number, before = 0, lines.line_num
    for given in lines:
        line, before = before + 1, lines.line_num
        if not given and len(header) > 1:
            continue  # an empty line
        number += 1
        cells = given or [""]
        place = f"row {number} (line {line})"
        if len(cells) != len(header):
            raise HarnessError(
                f"{file}: {place} has {len(cells)} cells, and the first line names {len(header)} columns; a cell that "
                "holds a delimiter or a quote is put in quotes"
            )
        yield place, {name: cell or None for name, cell in zip(header, cells, strict=True)}
