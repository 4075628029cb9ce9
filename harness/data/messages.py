"""Turns of a conversation out of a row's value, checked strictly: ``role`` and ``content``, or ShareGPT's ``from`` and
``value``.

Whatever else a turn holds, such as tool calls, a weight or the thinking behind an answer, would change what is trained
on and has no place here: it is refused. Turns behind the last answer have nothing to train on: they are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.errors import HarnessError
from harness.files import parse_json
from harness.turns import Role, Turn

ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""What roles are called, by OpenAI's and ShareGPT's names."""
SPELLINGS = (("role", "content"), ("from", "value"))
HALF = re.compile("[\ud800-\udfff]")


def read_messages(value: Any, where: str, field: str) -> tuple[tuple[Turn, ...], int]:
    """Return the turns in a row's value up to the last answer, and how many stood behind it; without an answer none.

    Args:
        value: A list of turns, or the JSON of one, as a cell of a table holds it.
        where: The row, as a message calls it.
        field: The row's field.

    Raises:
        HarnessError: it is no list of turns; the sentence names row, field and turn.
    """
    turns = _turns(value, where, field)
    answered = max((number for number, turn in enumerate(turns, 1) if turn.role == "assistant"), default=0)
    return turns[:answered], len(turns) - answered


def read_exchange(prompt: Any, completion: Any, where: str) -> tuple[tuple[Turn, ...], int] | None:
    """Return a prompt and its completion as turns, of which the completion's alone carry loss; None: both are text.

    Args:
        prompt: Text, or a list of turns.
        completion: The same.
        where: The row, as a message calls it.

    Raises:
        HarnessError: one is text and the other is not, or it is no list of turns.
    """
    as_text = {name: isinstance(value, str) for name, value in (("prompt", prompt), ("completion", completion))}
    if all(as_text.values()):
        return None
    if any(as_text.values()):
        one, other = sorted(as_text, key=lambda name: not as_text[name])
        raise HarnessError(f"{where}: field '{one}' is text and '{other}' is not: give both as text, or both as turns")
    before = [replace(turn, trained=False) for turn in _turns(prompt, where, "prompt")]
    behind, unanswered = read_messages(completion, where, "completion")
    return ((*before, *behind) if behind else ()), unanswered


def turns_in(cell: str) -> Any:
    """Return the list of turns that a table's cell spells in JSON; a cell that spells none is text as it stands."""
    if not cell.lstrip().startswith("["):
        return cell
    try:
        value = parse_json(cell, "")
    except HarnessError:
        return cell
    is_turns = bool(value) and all(isinstance(turn, Mapping) and {"role", "from"} & set(turn) for turn in value)
    return value if is_turns else cell


def _turns(value: Any, where: str, field: str) -> tuple[Turn, ...]:
    if isinstance(value, str):
        try:
            value = parse_json(value, f"{where}: field '{field}'")
        except HarnessError as error:
            raise HarnessError(f"{error}; a table's cell holds the turns as JSON, as json.dumps writes it") from error
    if not isinstance(value, list):
        raise HarnessError(f"{where}: field '{field}' is {type(value).__name__}, expected a list of turns")
    return tuple(_turn(turn, f"{where}: turn {number} of '{field}'") for number, turn in enumerate(value, 1))


def _turn(value: Any, where: str) -> Turn:
    if not isinstance(value, Mapping):
        raise HarnessError(f"{where} is {type(value).__name__}, expected an object with role and content")
    present = {str(key): said for key, said in value.items() if said is not None and said not in ([], {})}
    spelt = next((names for names in SPELLINGS if any(name in present for name in names)), SPELLINGS[0])
    if other := next((key for key in present if key not in spelt), None):
        raise HarnessError(f"{where} has '{other}', of which nothing can be made here: a turn is {' and '.join(spelt)}")
    for name in spelt:
        if name not in present:
            raise HarnessError(f"{where} has no {name}")
        if not isinstance(said := present[name], str):
            raise HarnessError(f"{where}: {name} is {type(said).__name__}, expected text")
        if HALF.search(said):
            raise HarnessError(f"{where}: {name} holds half a character (a lone surrogate), which is no text")
    role, content = (present[name] for name in spelt)
    if role not in ROLES:
        raise HarnessError(f"{where} is of the role '{role}', expected one of {', '.join(ROLES)}")
    return Turn(ROLES[role], content)
