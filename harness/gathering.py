"""Every fault of a suite's file at once: what is found one after another is gathered and said in one message."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from harness.catalogue.resolved import packaged_catalogue
from harness.errors import Faults, HarnessError
from harness.faults import fault_lines
from harness.method import METHODS
from harness.settings import TrainSettings, with_implied

OF_A_LABEL = re.compile(r"^(\[train\] of )?label '[^']*':? (?!\(method)")
"""What a fault of several labels does not begin with."""

LENGTHS = (("num_steps", "num_epochs"), ("num_epochs", "num_steps"))
"""A setting of a label, and that of [train] which gives way to it."""


class Gathered:
    """Faults of one file, in the order in which they were found."""

    def __init__(self, where: str) -> None:
        """Take how the file is called in messages."""
        self.where = where
        self.found: list[HarnessError] = []

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take what is raised inside the ``with``, and go on behind it."""
        try:
            yield
        except HarnessError as error:
            self.found.append(error)

    def take(self, *errors: HarnessError) -> None:
        """Take faults that nobody raised."""
        self.found += errors

    def raise_any(self) -> None:
        """Raise what was found, a fault that several labels have once; do nothing where nothing was.

        Raises:
            HarnessError: the only fault, as it was raised; several as ``Faults``.
        """
        if not self.found:
            return
        lines = _once([line for error in self.found for line in self._lines(error)])
        raise self.found[0] if len(self.found) == 1 or len(lines) == 1 else Faults(f"{self.where}:", lines)

    def _lines(self, error: HarnessError) -> list[str]:
        """Return an error's faults without the name of the file, which all of them share."""
        if not isinstance(error, Faults):
            return [str(error).removeprefix(f"{self.where}:").strip()]
        place = error.where.removeprefix(f"{self.where}:").strip().removesuffix(":")
        return [f"{place} {line}".strip() for line in error.lines]


def early_train_faults(table: Mapping[str, Any], where: str) -> list[HarnessError]:
    """Return the faults of a suite's [train] where other keys are wrong, so that no label can be resolved yet.

    Args:
        table: The suite's, as TOML has it.
        where: How to call its file in a message.
    """
    train = table.get("train")
    if not isinstance(train, dict):
        return []
    given = table.get("labels")
    lines: list[str] = []
    for label in given if isinstance(given, list) else ():
        lines += _faults_of_label(table, train, label) if isinstance(label, str) else ()
    return [Faults(f"{where}: [train]", _once(lines))] if lines else []


def _faults_of_label(table: Mapping[str, Any], train: Mapping[str, Any], label: str) -> list[str]:
    own = table.get("methods")
    entry = packaged_catalogue().labels.get(label)
    if entry is None or (isinstance(own, dict) and label in own) or not METHODS.get(entry.method).trains:
        return []
    points = {
        key: value[0] for key, value in _inner(table, "sweep", label).items() if isinstance(value, list) and value
    }
    said = {**entry.values(), **_inner(table, "settings", label), **points}
    merged = with_implied(dict(train), TrainSettings.implied)
    for key, other in LENGTHS:
        if key in said and other not in said:
            merged.pop(other, None)
    merged |= {key: value for key, value in said.items() if key in TrainSettings.model_fields}
    try:
        TrainSettings.model_validate(merged)
    except ValidationError as error:
        return fault_lines(TrainSettings, error)
    return []


def _inner(table: Mapping[str, Any], kind: str, label: str) -> Mapping[str, Any]:
    outer = table.get(kind)
    inner = outer.get(label) if isinstance(outer, dict) else None
    return inner if isinstance(inner, dict) else {}


def _once(lines: list[str]) -> list[str]:
    """Return lines, one that several labels share once and without a label."""
    lines = list(dict.fromkeys(lines))
    tails = [OF_A_LABEL.sub(lambda found: "[train] " if found[1] else "", line) for line in lines]
    shown = [tail if tails.count(tail) > 1 else line for tail, line in zip(tails, lines, strict=True)]
    return list(dict.fromkeys(shown))
