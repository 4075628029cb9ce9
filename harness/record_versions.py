"""Records of every version of their layout, read as those of the present one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from harness.errors import HarnessError
from harness.faults import first_fault
from harness.record import SCHEMA_VERSION, Record


def _from_1_to_2(data: dict[str, Any]) -> dict[str, Any]:
    """Lift version 1: ``predicted_peak_bytes``, which was never filled, gave way to ``prediction``."""
    return {**{key: value for key, value in data.items() if key != "predicted_peak_bytes"}, "schema_version": 2}


def _from_2_to_3(data: dict[str, Any]) -> dict[str, Any]:
    """Lift version 2: ``process`` and ``notes`` were not there."""
    return {**data, "schema_version": 3}


def _from_3_to_4(data: dict[str, Any]) -> dict[str, Any]:
    """Lift version 3: the seconds of the updates were not there."""
    return {**data, "schema_version": 4}


def _from_4_to_5(data: dict[str, Any]) -> dict[str, Any]:
    """Lift version 4: methods declared nothing, and nothing was judged."""
    return {**data, "schema_version": 5}


def _from_5_to_6(data: dict[str, Any]) -> dict[str, Any]:
    """Lift version 5: what became of rows, text and requests was not told."""
    return {**data, "schema_version": 6}


UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _from_1_to_2,
    2: _from_2_to_3,
    3: _from_3_to_4,
    4: _from_4_to_5,
    5: _from_5_to_6,
}
"""Version -> the step that lifts a record of that version to the next."""


def parse_record(data: Any, where: str) -> Record:
    """Return a record from its JSON value, lifted to the present schema.

    Raises:
        HarnessError: it is not a record, or of a newer schema.
    """
    if not isinstance(data, dict) or not isinstance(version := data.get("schema_version"), int):
        raise HarnessError(f"{where}: is not a record: schema_version is missing")
    if version > SCHEMA_VERSION:
        raise HarnessError(
            f"{where}: has schema version {version}, newer than {SCHEMA_VERSION}, the newest that this "
            "harness reads; upgrade it"
        )
    while version < SCHEMA_VERSION:
        if version not in UPGRADES:
            raise HarnessError(f"{where}: has schema version {version}, which never existed")
        data = UPGRADES[version](data)
        version = data["schema_version"]
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        raise HarnessError(f"{where}: is not a valid record:{first_fault(Record, error)}") from error
