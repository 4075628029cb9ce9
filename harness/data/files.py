"""Training rows out of a file, checked strictly against their layout.

A null, or the NaN that a table has in its place, is a value that is missing: an input is then empty; a row without its
answer, or with nothing that is asked, is blank, and is left out and counted like one whose text is blank.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from types import MappingProxyType
from typing import Any

from harness.catalogue.datasets import FIELDS, OPTIONAL
from harness.data.layouts import with_our_names
from harness.data.messages import read_exchange, read_messages, turns_in
from harness.data.tables import read_values
from harness.data.wording import letter_question
from harness.errors import HarnessError
from harness.files import parse_json
from harness.turns import Turn

KINDS: dict[tuple[str, str], tuple[type, str]] = {
    ("choices", "choices"): (list, "a list of texts"),
    ("choices", "answer"): (int, "the position of the right choice"),
}
"""Fields that are not text."""
OF_TURNS = {("messages", "messages"), ("prompt-completion", "prompt"), ("prompt-completion", "completion")}
"""Fields that are turns, or may be."""
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
    turns: tuple[Turn, ...] = ()
    """Of a conversation its turns, the last of them an answer; ``instruction`` is then what users say before the first
    answer that carries loss, and ``output`` what those answers say."""
    num_unanswered: int = dataclasses.field(default=0, compare=False)
    """Turns behind the last answer, which were left out."""
    place: str = dataclasses.field(default="", compare=False)
    """Where it stands in its file, in words."""

    @property
    def text(self) -> str:
        """Return all of it run together."""
        said = [turn.content for turn in self.turns] or [self.instruction, self.input, self.output]
        return "\n".join(filter(None, said))


def read_data_file(
    file: Path, layout: str, task: str, columns: Mapping[str, str] = MappingProxyType({})
) -> list[TrainingRow]:
    """Return the rows of a file, in its order.

    Args:
        file: As :func:`harness.data.tables.read_values` takes it.
        layout: A key of ``FIELDS``.
        task: What the rows say they come from.
        columns: By our name, what a column is called in the file.

    Raises:
        HarnessError: the file cannot be read, is empty, or a row lacks a field; the sentence names row and field.
    """
    found = read_values(file)
    rows = []
    for value, place in zip(with_our_names(found, columns, file), found.places, strict=True):
        where = f"{file}: {place}"
        given = _from_cells(value, layout, where) if found.in_cells else value
        rows.append(replace(_row(given, where, layout, task), place=place))
    return rows


def _from_cells(cells: dict[str, Any], layout: str, where: str) -> dict[str, Any]:
    """Return a row of cells with what is no text read out of them."""
    given = dict(cells)
    if layout == "prompt-completion":
        given |= {field: turns_in(given[field]) for field in FIELDS[layout] if given.get(field)}
    for field in FIELDS[layout]:
        if (layout, field) in KINDS and isinstance(cell := given.get(field), str):
            given[field] = parse_json(cell, f"{where}: field '{field}' (expected {KINDS[layout, field][1]})")
    return given


def _row(value: Any, where: str, layout: str, task: str) -> TrainingRow:
    if layout == "messages" and isinstance(value, dict) and "conversations" in value:
        value = {"messages": value["conversations"], **value}
    present = _present(value, where, layout)
    if not _is_asked(present, layout):
        return TrainingRow("", "", "", task)
    if layout == "choices":
        return _choices_row(present, where, task)
    if layout == "instructions":
        return TrainingRow(present.get("instruction", ""), present.get("input", ""), present["output"], task)
    if layout == "questions":
        return TrainingRow(present["question"], "", present["answer"], task)
    if layout == "text":
        return TrainingRow("", "", present["text"], task)
    if present.get("tools"):
        raise HarnessError(f"{where}: has 'tools', of which nothing can be made here")
    if layout == "messages":
        field = "messages" if "messages" in value else "conversations"
        return _conversation_row(*read_messages(present["messages"], where, field), task)
    exchange = read_exchange(present["prompt"], present["completion"], where)
    if exchange is None:
        return TrainingRow(present["prompt"], "", present["completion"], task)
    return _conversation_row(*exchange, task)


def _conversation_row(turns: tuple[Turn, ...], num_unanswered: int, task: str) -> TrainingRow:
    """Return turns as a row, whose prompt is what users say before the first answer."""
    first = next((number for number, turn in enumerate(turns) if turn.is_answer), 0)
    asked = "\n".join(turn.content for turn in turns[:first] if turn.role == "user")
    answers = "\n".join(turn.content for turn in turns if turn.is_answer)
    return TrainingRow(asked, "", answers, task, turns, num_unanswered)


def _present(value: Any, where: str, layout: str) -> dict[str, Any]:
    """Return the values of a row that are not missing, each of the kind that its layout has."""
    expected = " and ".join(FIELDS[layout])
    if not isinstance(value, dict):
        raise HarnessError(f"{where}: is {type(value).__name__}, expected an object with {expected}")
    for field in (*FIELDS[layout], *(name for name in OPTIONAL.get(layout, ()) if name in value)):
        if field not in value:
            raise HarnessError(
                f"{where}: lacks the field '{field}'; the layout '{layout}' needs {expected}, "
                f"this row has {', '.join(map(str, value)) or 'nothing'}; columns = {{ {field} = 'THEIRS' }} in "
                "[datasets.NAME] says what it is called there"
            )
        if is_missing(value[field]) or (layout, field) in OF_TURNS:
            continue
        kind, wanted = KINDS.get((layout, field), (str, "text"))
        if kind is int and isinstance(value[field], float) and value[field].is_integer():
            continue  # a table makes floats of whole numbers where one of them is missing
        if not isinstance(value[field], kind) or isinstance(value[field], bool):
            raise HarnessError(f"{where}: field '{field}' is {type(value[field]).__name__}, expected {wanted}")
        if kind is str and HALF.search(value[field]):
            raise HarnessError(f"{where}: field '{field}' holds half a character (a lone surrogate), which is no text")
    return {field: given for field, given in value.items() if not is_missing(given)}


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
