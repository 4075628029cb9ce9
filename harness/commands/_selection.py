"""What the options of ``run``, ``prepare`` and ``status`` choose: a suite, models, data, and the runs they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.assets.prepare import resolve_model, source_identities
from harness.assets.wheels import check_wheel_names
from harness.commands.requests import SelectionRequest
from harness.datasets import load_datasets
from harness.errors import HarnessError, near_miss
from harness.expansion import expand, load_suite, load_tuned, parse_assignment
from harness.models import BaseModelSpec, find_model, load_models
from harness.spec import RunSpec
from harness.suite import Suite


@dataclass(frozen=True)
class Selection:
    """A suite and the runs chosen from it."""

    suite: Suite
    models: Mapping[str, BaseModelSpec]
    data: Mapping[str, Path]
    """Local files that stand in for data sets."""
    specs: tuple[RunSpec, ...]


def select(chosen: SelectionRequest, *, tuned: bool = True) -> Selection:
    """Return what is asked for.

    Args:
        chosen: As the user says it.
        tuned: False: the suite's tuned learning rates do not matter, and their file may be missing.

    Raises:
        HarnessError: a suite, model, label, data set or setting is not known or not valid.
    """
    suite = load_suite(chosen.suite)
    models, data, sources = select_models_and_data(suite, chosen)
    specs = expand(
        suite,
        models=models,
        sources=sources,
        labels=chosen.labels or None,
        seeds=chosen.seeds or None,
        overrides=_overrides(chosen.overrides),
        limit=chosen.limit,
        max_steps=chosen.max_steps,
        tuned=load_tuned(chosen.suite, suite) if tuned else None,
    )
    return Selection(suite, models, data, tuple(specs))


def select_models_and_data(
    suite: Suite, chosen: SelectionRequest
) -> tuple[dict[str, BaseModelSpec], dict[str, Path], dict[str, str]]:
    """Return the models and the local data files that are named, and what identifies each data set.

    Raises:
        HarnessError: one is not known or not there.
    """
    data = given_data(chosen.data)
    return _models(suite, chosen.models), data, source_identities(data)


def existing(path: str, option: str) -> Path:
    """Return a path that the user gave, absolute.

    Raises:
        HarnessError: nothing is there.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise HarnessError(f"{option}: there is no file or folder '{path}'")
    return found.resolve()


def given_wheels(paths: Sequence[str]) -> list[Path]:
    """Return the files given with ``--wheel``.

    Raises:
        HarnessError: one is not there, or is none of the wheels in use.
    """
    wheels = [existing(path, "--wheel") for path in paths]
    check_wheel_names(wheels)
    return wheels


def _models(suite: Suite, wanted: Sequence[str]) -> dict[str, BaseModelSpec]:
    known = load_models()
    found: dict[str, BaseModelSpec] = {}
    for text in wanted or suite.models:
        name, equals, path = text.partition("=")
        spec = find_model(name, known)
        resolved = resolve_model(spec, existing(path, f"--model {text}") if equals else None)
        found[name] = resolved.with_weights(suite.weights)
    return found


def given_data(assignments: Sequence[str]) -> dict[str, Path]:
    """Return the local files and folders given with ``--data``, by data set.

    Raises:
        HarnessError: one names no data set, or is not there.
    """
    known = load_datasets()
    chosen = {}
    for text in assignments:
        name, equals, path = text.partition("=")
        if not equals:
            raise HarnessError(f"--data {text}: expected NAME=PATH")
        if name not in known:
            raise HarnessError(f"--data {text}: there is no data set '{name}'{near_miss(name, known)}")
        chosen[name] = existing(path, f"--data {text}")
    return chosen


def _overrides(assignments: Sequence[str]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for text in assignments:
        key, value = parse_assignment(text)
        if key in changes:
            raise HarnessError(f"--set {text}: '{key}' is set twice")
        changes[key] = value
    return changes
