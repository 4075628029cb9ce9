"""Training rows out of a file, checked strictly: JSON list, JSON Lines, LMFlow's ``{"type", "instances"}``, Parquet.

A null, or the NaN that a table has in its place, is a value that is missing: an input is then empty; a row without its
answer, or with nothing that is asked, is blank, and is left out and counted like one whose text is blank.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from harness.data.wording import letter_question
from harness.errors import HarnessError
from harness.files import parse_json, read_text

FIELDS: dict[str, tuple[str, ...]] = {
    "instructions": ("instruction", "output"),
    "questions": ("question", "answer"),
    "choices": ("question", "choices", "answer"),
    "text": ("text",),
}
"""Fields that a row of each layout must have; ``input`` may stand beside an instruction."""
KINDS: dict[tuple[str, str], tuple[type, str]] = {
    ("choices", "choices"): (list, "a list of texts"),
    ("choices", "answer"): (int, "the position of the right choice"),
}
"""Fields that are not text."""
HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class TrainingRow:
    """One training example before tokenisation."""

    instruction: str
    input: str
    output: str
    """The answer; for plain text, all of it."""
    task: str
    """Task or data set that it comes from."""


def read_data_file(file: Path, layout: str, task: str) -> list[TrainingRow]:
    """Return the rows of a file, in its order.

    Args:
        file: JSON list, JSON Lines or LMFlow's layout, UTF-8; or Parquet where its name ends so.
        layout: A key of ``FIELDS``.
        task: What the rows say they come from.

    Raises:
        HarnessError: the file cannot be read, is empty, or a row lacks a field; the sentence names row and field.
    """
    if file.suffix == ".parquet":
        return [_row(value, f"{file}: row {number}", layout, task) for number, value in enumerate(_parquet(file), 1)]
    values = _values(file, read_text(file))
    if not values:
        raise HarnessError(f"{file}: holds no row")
    return [_row(value, f"{file}: row {number}", layout, task) for number, value in enumerate(values, 1)]


def _parquet(file: Path) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        values: list[Any] = pq.read_table(file).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: text that is not UTF-8
        reason = str(error).splitlines() or [type(error).__name__]
        raise HarnessError(f"{file}: cannot be read as Parquet: {reason[0]}") from error
    if not values:
        raise HarnessError(f"{file}: holds no row")
    return values


def _values(file: Path, text: str) -> list[Any]:
    start = text.lstrip()[:1]
    if start not in ("[", "{"):
        raise HarnessError(f"{file}: is neither a JSON list nor JSON Lines of objects")
    lines = [line for line in text.split("\n") if line.strip()]
    if start == "{" and _is_json(lines[0]) and (len(lines) > 1 or "instances" not in json.loads(lines[0])):
        return [parse_json(line, f"{file}: row {number}") for number, line in enumerate(lines, 1)]
    whole = parse_json(text, str(file))
    if isinstance(whole, list):
        return whole
    if isinstance(instances := whole.get("instances"), list):
        return instances
    raise HarnessError(f"{file}: is one JSON object; expected a list, JSON Lines, or an object with 'instances'")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _row(value: Any, where: str, layout: str, task: str) -> TrainingRow:
    expected = " and ".join(FIELDS[layout])
    if not isinstance(value, dict):
        raise HarnessError(f"{where}: is {type(value).__name__}, expected an object with {expected}")
    for field in (*FIELDS[layout], *(("input",) if layout == "instructions" and "input" in value else ())):
        if field not in value:
            raise HarnessError(
                f"{where}: lacks the field '{field}'; the layout '{layout}' needs {expected}, "
                f"this row has {', '.join(map(str, value)) or 'nothing'}"
            )
        if is_missing(value[field]):
            continue
        kind, wanted = KINDS.get((layout, field), (str, "text"))
        if kind is int and isinstance(value[field], float) and value[field].is_integer():
            continue  # a table makes floats of whole numbers where one of them is missing
        if not isinstance(value[field], kind) or isinstance(value[field], bool):
            raise HarnessError(f"{where}: field '{field}' is {type(value[field]).__name__}, expected {wanted}")
        if kind is str and HALF.search(value[field]):
            raise HarnessError(f"{where}: field '{field}' holds half a character (a lone surrogate), which is no text")
    present = {field: given for field, given in value.items() if not is_missing(given)}
    if not _is_asked(present, layout):
        return TrainingRow("", "", "", task)
    if layout == "choices":
        return _choices_row(present, where, task)
    if layout == "instructions":
        return TrainingRow(present.get("instruction", ""), present.get("input", ""), present["output"], task)
    if layout == "questions":
        return TrainingRow(present["question"], "", present["answer"], task)
    return TrainingRow("", "", present["text"], task)


def is_missing(value: Any) -> bool:
    """Return whether a value is a null, or the NaN that stands for one in a table."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_asked(present: dict[str, Any], layout: str) -> bool:
    """Return whether what a row is made of is there: of an instruction, it or its input."""
    if layout == "instructions" and present.get("input"):
        return "output" in present
    return all(field in present for field in FIELDS[layout])


def _choices_row(value: dict[str, Any], where: str, task: str) -> TrainingRow:
    choices, answer = value["choices"], int(value["answer"])
    if not 0 < len(choices) <= len(ascii_uppercase):
        raise HarnessError(f"{where}: field 'choices' holds {len(choices)} entries, expected 1 to 26 texts")
    for position, choice in enumerate(choices):
        if is_missing(choice):
            raise HarnessError(f"{where}: position {position} of 'choices' is a missing value, expected a text")
        if not isinstance(choice, str) or HALF.search(choice):
            kind = "no Unicode text" if isinstance(choice, str) else type(choice).__name__
            raise HarnessError(f"{where}: position {position} of 'choices' is {kind}, expected a text")
    if not 0 <= answer < len(choices):
        raise HarnessError(f"{where}: field 'answer' is {answer}, expected a position from 0 to {len(choices) - 1}")
    instruction, output = letter_question({**value, "answer": answer})
    return TrainingRow(instruction, "", output, task)
