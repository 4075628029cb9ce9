"""What the options of ``run``, ``prepare`` and ``status`` choose: a suite, models, data, and the runs they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.assets.wheels import check_wheel_names
from harness.catalogue.datasets import DatasetSpec, find_dataset
from harness.catalogue.models import HUB, BaseModelSpec, given_model
from harness.catalogue.resolved import Catalogue, load_catalogue
from harness.commands._models import located
from harness.commands.requests import SelectionRequest
from harness.errors import HarnessError, near_miss
from harness.expansion import catalogue_for, expand, load_suite, load_tuned, parse_assignment
from harness.preparing.assets import resolve_model, resolved_datasets, source_identities
from harness.preparing.runs import datasets_of, questions_of
from harness.printable import printable
from harness.spec import RunSpec
from harness.suite import Suite


@dataclass(frozen=True)
class Selection:
    """A suite and the runs chosen from it."""

    suite: Suite
    models: Mapping[str, BaseModelSpec]
    datasets: Mapping[str, DatasetSpec]
    """All that there are, with the local files that stand in for some; an identity is found when one is asked for."""
    specs: tuple[RunSpec, ...]

    def datasets_of(self, spec: RunSpec) -> dict[str, DatasetSpec]:
        """Return the data sets that a run needs, by name."""
        return {name: self.datasets[name] for name in (*datasets_of([spec]), *questions_of([spec]))}


@dataclass(frozen=True)
class Known:
    """What the names that a caller gives stand for."""

    catalogue: Catalogue
    """The suite's own names among them."""
    models: Mapping[str, BaseModelSpec]
    """The chosen ones, in order, their identities as far as they are known."""
    datasets: Mapping[str, DatasetSpec]
    sources: Mapping[str, str]
    """What identifies each data set and each kind of evaluation rows."""


def select(chosen: SelectionRequest, *, tuned: bool = True) -> Selection:
    """Return what is asked for.

    Args:
        chosen: As the user says it.
        tuned: False: the suite's tuned learning rates do not matter, and their file may be missing.

    Raises:
        HarnessError: a suite, model, label, data set or setting is not known or not valid.
    """
    suite = load_suite(chosen.suite, given_catalogue(chosen.catalogue))
    known = known_names(suite, chosen)
    specs = expand(
        suite,
        models=known.models,
        sources=known.sources,
        known=known.catalogue,
        labels=chosen.labels or None,
        seeds=chosen.seeds or None,
        overrides=_overrides(chosen.overrides),
        limit=chosen.limit,
        max_steps=chosen.max_steps,
        tuned=load_tuned(chosen.suite, suite) if tuned else None,
    )
    return checked(Selection(suite, known.models, known.datasets, tuple(specs)), chosen)


def checked(selection: Selection, chosen: SelectionRequest) -> Selection:
    """Return a selection all of whose runs name data sets that there are, and that uses whatever was given.

    Raises:
        HarnessError: a run does not, or no run uses a model or a data set that was given.
    """
    used = (*datasets_of(selection.specs), *questions_of(selection.specs))
    for name in used:
        find_dataset(name, selection.datasets)
    run = {spec.model_name for spec in selection.specs}
    for option, given, of_runs in (("--model", chosen.models, run), ("--data", chosen.data, set(used))):
        for text in given:
            if text.partition("=")[0] not in of_runs:
                of_them = ", ".join(sorted(of_runs)) or "none"
                raise HarnessError(f"{option} {text}: no run that is chosen uses it; they use {of_them}")
    return selection


def known_names(suite: Suite, chosen: SelectionRequest) -> Known:
    """Return what names stand for: the packaged catalogue, the user's, the suite's own, and what is put in their place.

    Raises:
        HarnessError: a model or a data set is not known or not there.
    """
    catalogue = catalogue_for(suite, f"suite '{suite.name}'", given_catalogue(chosen.catalogue))
    catalogue = catalogue.with_files(given_data(chosen.data, catalogue))
    datasets = resolved_datasets(catalogue.datasets)
    return Known(catalogue, _models(suite, chosen.models, catalogue), datasets, source_identities(datasets))


def given_catalogue(file: Path | None) -> Catalogue:
    """Return the packaged catalogue with the user's file, that of ``--catalogue``, on top.

    Raises:
        HarnessError: the file cannot be read, or is not valid.
    """
    return load_catalogue(None if file is None else existing(file, "--catalogue"))


def existing(path: str | Path, option: str) -> Path:
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


def _models(suite: Suite, wanted: Sequence[str], catalogue: Catalogue) -> dict[str, BaseModelSpec]:
    found: dict[str, BaseModelSpec] = {}
    for text in wanted or suite.models:
        name, equals, _ = text.partition("=")
        if name in found:
            raise HarnessError(f"--model {text}: '{name}' is given twice")
        resolved = chosen_model(text, catalogue.models) if equals else resolve_model(catalogue.model(name))
        found[name] = located(resolved).with_weights(suite.weights)
    return found


def chosen_model(text: str, known: Mapping[str, BaseModelSpec]) -> BaseModelSpec:
    """Return what ``--model NAME=PATH`` or ``NAME=hub:OWNER/NAME@REVISION`` gives, with its identity.

    Raises:
        HarnessError: it names nothing that there is, or no model can be called so.
    """
    name, _, place = text.partition("=")
    option = f"--model {printable(' '.join(text.split()))}"
    if not place:
        raise HarnessError(f"{option}: expected NAME=PATH or NAME={HUB}OWNER/NAME@REVISION")
    if place.startswith(HUB):
        return resolve_model(given_model(name, place, known, option))
    folder = existing(place, option)
    return resolve_model(given_model(name, str(folder), known, option), folder if name in known else None)


def given_data(assignments: Sequence[str], catalogue: Catalogue) -> dict[str, Path]:
    """Return the local files and folders given with ``--data``, by data set.

    Args:
        assignments: As given.
        catalogue: Which data sets there are.

    Raises:
        HarnessError: one names no data set, or is not there.
    """
    chosen = {}
    for text in assignments:
        name, equals, path = text.partition("=")
        if not equals:
            raise HarnessError(f"--data {text}: expected NAME=PATH")
        if name not in catalogue.datasets:
            raise HarnessError(f"--data {text}: there is no data set '{name}'{near_miss(name, catalogue.datasets)}")
        if name in chosen:
            raise HarnessError(f"--data {text}: '{name}' is given twice")
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
