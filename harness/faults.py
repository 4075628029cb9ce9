"""What is wrong with settings, from pydantic's errors: a sentence, or every fault in a line with its table and key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.errors import closest, near_miss
from harness.key_types import expected_of

KEY = "[key]"
"""What pydantic puts behind the name of a table that is wrong itself."""
LONGEST_VALUE = 60
"""Characters of a value as it is quoted."""


_TYPE = re.compile(r"(constrained-)?(int|float|str|bool|none|list|tuple|dict|literal)(\[.*)?$")
"""What pydantic appends to the place of a fault in a field of several types: the one that it tried."""


def first_fault(model: type[BaseModel], error: ValidationError) -> str:
    """Return a fault of a validation as the tail of a sentence that starts with the place.

    The first one, but an unknown key before all others: it is the typo behind a setting that is then missing.
    """
    faults = error.errors(include_url=False)
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    where = [_on_one_line(part) for part in fault["loc"]]
    path = ".".join(where)
    more = f" (and {len(others)} more)" if (others := _without_echoes(model, faults)[1:]) else ""
    if fault["type"] == "extra_forbidden":
        *parents, key = where
        inside = f" in {'.'.join(parents)}" if parents else ""
        return f" has no setting '{key}'{inside}{near_miss(key, _known_beside(model, fault))}{more}"
    if fault["type"] == "missing":
        return f" lacks the setting '{path}'{more}"
    message = _message(fault)
    at = _place(model, fault["loc"])
    if at.owner is not None and at.field is not None and len(at.keys) < len(where) and _TYPE.match(where[-1]):
        path = ".".join(at.keys)
        others = [other for other in others if other["loc"][: len(at.keys)] != fault["loc"][: len(at.keys)]]
        more = f" (and {len(others)} more)" if others else ""
        if (expected := expected_of(at.owner, at.field)) is not None:
            message = f"expected {expected}"
    return f" {path} is {_found(fault)}: {message}{more}" if path else f" {message}{more}"


def fault_lines(model: type[BaseModel], error: ValidationError) -> list[str]:
    """Return every fault of a validation in a line of its own, with its table and what is expected; typos first."""
    faults = _without_echoes(model, error.errors(include_url=False))
    faults.sort(key=lambda fault: fault["type"] != "extra_forbidden")
    return list(dict.fromkeys(_line(model, fault) for fault in faults))


def _line(model: type[BaseModel], fault: ErrorDetails) -> str:
    at = _place(model, fault["loc"])
    if fault["type"] == "extra_forbidden":
        *parents, key = (_on_one_line(part) for part in fault["loc"])
        return f"{_table(parents)}has no setting '{key}'{near_miss(key, _known_beside(model, fault))}"
    expected = None
    if at.owner is not None and at.field is not None:
        expected = expected_of(at.owner, at.field)
    if fault["type"] == "missing":
        return f"{_table(at.keys[:-1])}lacks the setting '{at.keys[-1]}'{f': expected {expected}' if expected else ''}"
    if fault["type"] in ("value_error", "assertion_error"):
        if at.field is None:
            return f"{_table(at.keys)}{_message(fault)}"
        return f"{_table(at.keys[:-1])}{at.keys[-1]}: {_message(fault)}"
    if at.keys[-1:] == [KEY]:
        return f"{_table(at.keys[:-2])}has a table {_found(fault)}: expected a name"
    said = f"expected {expected}" if expected else _message(fault)
    return f"{_table(at.keys[:-1])}{at.keys[-1]} is {_found(fault)}: {said}" if at.keys else _message(fault)


def _table(keys: list[str]) -> str:
    return f"[{'.'.join(keys)}] " if keys else ""


def _message(fault: ErrorDetails) -> str:
    message = fault["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _found(fault: ErrorDetails) -> str:
    found = repr(fault["input"])
    return found if len(found) <= LONGEST_VALUE else f"{found[: LONGEST_VALUE - 3]}..."


def _on_one_line(part: int | str) -> str:
    return " ".join(str(part).split())  # a key may hold the end of a line


def _without_echoes(model: type[BaseModel], faults: list[ErrorDetails]) -> list[ErrorDetails]:
    """Return faults without what others cause: a misspelt key is missing too, a table's bad name is its entry's."""
    meant = set()
    for fault in faults:
        if fault["type"] == "extra_forbidden":
            *parents, key = fault["loc"]
            meant.add((*parents, closest(str(key), _known_beside(model, fault))))
    named = {(*fault["loc"][:-1], "name") for fault in faults if fault["loc"][-1:] == (KEY,)}
    return [
        fault
        for fault in faults
        if not (fault["loc"] in named or (fault["type"] == "missing" and fault["loc"] in meant))
    ]


def _known_beside(model: type[BaseModel], fault: ErrorDetails) -> list[str]:
    """Return the keys of the table in which a fault is."""
    inside = _place(model, fault["loc"][:-1]).inside
    return list(inside.model_fields) if inside is not None else []


@dataclass(frozen=True)
class _Place:
    """A location in settings, as far as it is one: behind it pydantic names which of several types it tried."""

    keys: list[str]
    owner: type[BaseModel] | None
    """The class of the table in which the last key is, where that is a field of its."""
    field: str | None
    inside: type[BaseModel] | None
    """The class of the value that is there."""


def _place(model: type[BaseModel], location: tuple[int | str, ...]) -> _Place:
    current: Any = model
    keys: list[str] = []
    owner, field = None, None
    for part in location:
        inside = _model_in(current) if get_origin(current) not in (dict, list, tuple) else None
        if inside is not None and part in inside.model_fields:
            owner, field = inside, str(part)
            current = inside.model_fields[str(part)].annotation
        elif get_origin(current) in (dict, list, tuple):
            owner, field = None, None
            current = current.__args__[1 if get_origin(current) is dict else 0]
        elif inside is None:
            break
        keys.append(_on_one_line(part))
    return _Place(keys, owner, field, None if get_origin(current) in (dict, list, tuple) else _model_in(current))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if get_origin(annotation) not in (dict, list, tuple) and (found := _model_in(inner)) is not None:
            return found
    return None
