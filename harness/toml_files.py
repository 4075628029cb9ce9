"""Strict reading of TOML settings: what is unknown or ill-typed is one sentence that names the file and the key."""

from __future__ import annotations

import importlib.resources
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import Faults, HarnessError
from harness.faults import fault_lines, first_fault
from harness.files import said_as

M = TypeVar("M", bound=BaseModel)

LARGEST_BYTES = 1 << 20
MOST_DOTS = 1000
DEEPEST = 50


def packaged_toml_names() -> list[str]:
    """Return the names of the packaged TOML files, with their ending."""
    return sorted(f.name for f in importlib.resources.files("harness.suites").iterdir() if f.name.endswith(".toml"))


def read_toml(file: Path | str) -> tuple[dict[str, Any], str]:
    """Return the table in a TOML file and how to call the file in a message.

    Args:
        file: A path, or as a string the name of a packaged file such as ``models.toml``.

    Raises:
        HarnessError: the file is missing, cannot be read, or is not TOML.
    """
    if isinstance(file, str):
        source, where = importlib.resources.files("harness.suites") / file, f"suites/{file}"
    else:
        source, where = file, str(file)
    try:
        with said_as(f"{where}: cannot be read"), source.open("rb") as stream:
            data = stream.read(LARGEST_BYTES + 1)
        if len(data) > LARGEST_BYTES:
            raise HarnessError(f"{where}: has over {LARGEST_BYTES:,} bytes, more than any file of settings needs")
        text = data.decode()
        if (number := _overlong_key(text)) is not None:
            raise HarnessError(f"{where}: line {number} has over {MOST_DOTS} dots, more than any key needs")
        table = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise HarnessError(f"{where}: is not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise HarnessError(f"{where}: is not valid TOML: nested too deeply") from error
    except ValueError as error:  # also of a number with more digits than Python reads
        raise HarnessError(f"{where}: is not valid TOML: {error}") from error
    if (fault := _unfit(table)) is not None:
        raise HarnessError(f"{where}: {fault}")
    return table, where


def read_tables(file: Path | str) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the tables of a TOML file that holds nothing else, such as ``models.toml``, and how to call the file.

    Raises:
        HarnessError: as :func:`read_toml`; or something in it is no table.
    """
    table, where = read_toml(file)
    for name, entry in table.items():
        if not isinstance(entry, dict):
            raise HarnessError(f"{where}: '{name}' is {type(entry).__name__}, expected a table [{name}]")
        if "name" in entry:
            raise HarnessError(f"{where}: [{name}] has no setting 'name': the table's own name is it")
    return table, where


def _unfit(value: Any, depth: int = 0) -> str | None:
    """Return what of a value neither a message nor a record could hold; None: nothing."""
    if depth > DEEPEST:
        return f"is nested more than {DEEPEST} deep"
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return next((fault for one in inner if (fault := _unfit(one, depth + 1)) is not None), None)
    return "holds a number of more than 64 bits" if isinstance(value, int) and abs(value) >= 2**63 else None


def _overlong_key(text: str) -> int | None:
    """Return the first line that could hold a key of too many parts: reading it takes the square of them in time."""
    return next((number for number, line in enumerate(text.split("\n"), 1) if line.count(".") > MOST_DOTS), None)


def validate(model: type[M], values: Any, where: str) -> M:
    """Return ``values`` as a ``model``.

    Raises:
        Faults: with the place, what was found and what was expected; one is a sentence, several are a line each.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise Faults(where, fault_lines(model, error), f"{where}{first_fault(model, error)}") from error
