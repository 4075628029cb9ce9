"""Strict reading of TOML settings: what is unknown or ill-typed is one sentence that names the file and the key."""

from __future__ import annotations

import importlib.resources
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import HarnessError, near_miss

M = TypeVar("M", bound=BaseModel)


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
        return tomllib.loads(source.read_text(encoding="utf-8")), where
    except OSError as error:
        raise HarnessError(f"{where}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise HarnessError(f"{where}: is not UTF-8 text (byte {error.start})") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise HarnessError(f"{where}: is not valid TOML: {error or 'nested too deeply'}") from error


def validate(model: type[M], values: Any, where: str) -> M:
    """Return ``values`` as a ``model``.

    Raises:
        HarnessError: the first fault, with the place, what was found and what was expected.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise HarnessError(f"{where}{first_fault(model, error)}") from error


def first_fault(model: type[BaseModel], error: ValidationError) -> str:
    """Return a fault of a validation as the tail of a sentence that starts with the place.

    The first one, but an unknown key before all others: it is the typo behind a setting that is then missing.
    """
    faults = error.errors(include_url=False)
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    path = ".".join(str(part) for part in fault["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if fault["type"] == "extra_forbidden":
        *parents, key = [str(part) for part in fault["loc"]]
        inside = f" in {'.'.join(parents)}" if parents else ""
        known = _fields_at(model, fault["loc"][:-1])
        return f" has no setting '{key}'{inside}{near_miss(key, known)}{more}"
    if fault["type"] == "missing":
        return f" lacks the setting '{path}'{more}"
    found = repr(fault["input"])
    found = found if len(found) <= 60 else f"{found[:57]}..."
    message = fault["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f" {path} is {found}: {message}{more}" if path else f" {message}{more}"


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return []
        current = _model_in(field.annotation)
        if current is None:
            return []
    return list(getattr(current, "model_fields", {}))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _model_in(inner)) is not None:
            return found
    return None
