"""What the options of ``run``, ``prepare`` and ``status`` choose: a suite, models, data, and the runs they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.assets.wheels import check_wheel_names
from harness.catalogue.datasets import DatasetSpec, find_dataset
from harness.catalogue.models import HUB, BaseModelSpec, given_model
from harness.catalogue.packaged_tasks import check_packaged_rows
from harness.catalogue.resolved import Catalogue, load_catalogue
from harness.catalogue.tasks import TaskPlaces
from harness.commands._models import located
from harness.commands.requests import NO_TASKS, SelectionRequest, TasksRequest
from harness.errors import HarnessError
from harness.evaluation.own_tasks import OwnTasks, check_places
from harness.evaluation.task_names import check_task_names
from harness.expansion import catalogue_for, expand, load_suite, load_tuned, parse_assignment
from harness.preparing.assets import resolve_model, resolved_datasets, source_identities
from harness.preparing.runs import datasets_of, questions_of
from harness.printable import printable
from harness.settings import CONVERSATIONS, EvaluationSettings
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
    tasks: TaskPlaces = field(default_factory=TaskPlaces)
    """Where tasks and evaluation rows of the user's own lie."""
    stand_in: str | None = None
    """What is trained on in the place of what the suite says, as a sentence."""

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
    trains_on: str | None = None
    """The data set of the caller's that the suite does not name, and is to train on."""


def select(chosen: SelectionRequest, *, tuned: bool = True) -> Selection:
    """Return what is asked for.

    Args:
        chosen: As the user says it.
        tuned: False: the suite's tuned learning rates do not matter, and their file may be missing.

    Raises:
        HarnessError: a suite, model, label, data set or setting is not known or not valid.
    """
    suite = load_suite(chosen.suite, given_catalogue(chosen.catalogue, chosen.tasks))
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
        own=own_sources(suite.evaluation, known.catalogue.tasks, f"suite '{suite.name}': [evaluation]"),
        data=known.trains_on,
    )
    said = _stand_in(suite, known)
    return checked(Selection(suite, known.models, known.datasets, tuple(specs), known.catalogue.tasks, said), chosen)


def own_sources(evaluation: EvaluationSettings, places: TaskPlaces, where: str) -> dict[str, str]:
    """Return what identifies the user's own among what is scored, checked as far as can be without lm-eval.

    Args:
        evaluation: What is scored.
        places: Where the user's own tasks and rows lie.
        where: How to call what asks for them in a message.

    Raises:
        HarnessError: a place is not there, or a task says what it may not or has no rows.
    """
    check_places(places)
    own = OwnTasks(places)
    if not places.any:
        own.check_rows(evaluation)
        return {}
    found = own.identities(evaluation)
    own.check_rows(evaluation)
    asked = (*evaluation.tasks, *(evaluation.subtasks or ()))
    check_packaged_rows(evaluation, where, [*(name for name in asked if name in own), *places.rows])
    check_task_names(evaluation, own)
    return found


def _stand_in(suite: Suite, known: Known) -> str | None:
    """Return what is said of data that the suite does not name."""
    if known.trains_on is None:
        return None
    dataset = known.datasets[known.trains_on]
    instead = f" in the place of {suite.train['data']}" if "data" in suite.train else ""
    return (
        f"suite '{suite.name}' trains on {dataset.name}{instead} (layout {dataset.layout}, {dataset.file}): labels say "
        f"[data={dataset.name}]"
    )


def checked(selection: Selection, chosen: SelectionRequest) -> Selection:
    """Return a selection all of whose runs name data sets that there are, and that uses whatever was given.

    Raises:
        HarnessError: a run does not, or would train on conversations that its prompt cannot write, or no run uses a
            model or a data set that was given.
    """
    used = (*datasets_of(selection.specs), *questions_of(selection.specs))
    for name in used:
        find_dataset(name, selection.datasets)
    for spec in selection.specs:
        if spec.train is not None and spec.train.prompt not in CONVERSATIONS:
            _check_prompt(spec.train.prompt, selection.datasets[spec.train.data], spec)
    run = {spec.model_name for spec in selection.specs}
    for option, given, of_runs in (("--model", chosen.models, run), ("--data", chosen.data, set(used))):
        for text in given:
            if text.partition("=")[0] not in of_runs:
                of_them = ", ".join(sorted(of_runs)) or "none"
                raise HarnessError(f"{option} {text}: no run that is chosen uses it; they use {of_them}")
    return selection


def _check_prompt(prompt: str, dataset: DatasetSpec, spec: RunSpec) -> None:
    if dataset.layout == "messages":
        raise HarnessError(
            f"suite '{spec.suite}': label '{spec.label}': data '{dataset.name}' are conversations, which prompt = "
            f"'{prompt}' cannot write: set prompt = 'chat' or 'conversation' in [train], or give --set prompt=chat and "
            "with --method the labels that train"
        )


def known_names(suite: Suite, chosen: SelectionRequest) -> Known:
    """Return what names stand for: the packaged catalogue, the user's, the suite's own, and what is put in their place.

    Raises:
        HarnessError: a model or a data set is not known or not there.
    """
    catalogue = catalogue_for(suite, f"suite '{suite.name}'", given_catalogue(chosen.catalogue, chosen.tasks))
    files = given_data(chosen.data)
    known = catalogue.datasets
    own = {name: file for name, file in files.items() if name not in known}
    catalogue = catalogue.with_files({name: file for name, file in files.items() if name in known}).with_rows(own)
    trains_on = _not_named([*own], suite, chosen, catalogue)
    datasets = resolved_datasets(catalogue.datasets)
    models = _models(suite, chosen.models, catalogue)
    return Known(catalogue, models, datasets, source_identities(datasets), trains_on)


def _not_named(own: Sequence[str], suite: Suite, chosen: SelectionRequest, catalogue: Catalogue) -> str | None:
    """Return which of the caller's data sets neither the suite nor ``--set`` names: it is what is trained on.

    Raises:
        HarnessError: there are two.
    """
    labels = chosen.labels or suite.labels
    of_labels = [catalogue.labels[label].values() for label in labels if label in catalogue.labels]
    tables = [suite.train, _overrides(chosen.overrides), *suite.settings.values(), *of_labels]
    named = {table.get("data") for table in tables} | {
        name for sweep in suite.sweep.values() for name in sweep.get("data", ())
    }
    texts = (suite.calibration, suite.general, suite.evaluation.mt_bench)
    named |= {text.data for text in texts if text is not None}
    others = [name for name in own if name not in named]
    if len(others) > 1:
        raise HarnessError(
            f"--data gives {' and '.join(others)}, none of which suite '{suite.name}' names: a suite trains on one"
        )
    return others[0] if others else None


def given_catalogue(file: Path | None, tasks: TasksRequest = NO_TASKS) -> Catalogue:
    """Return the packaged catalogue with the user's file, that of ``--catalogue``, on top, and folders of tasks.

    Raises:
        HarnessError: the file or a folder cannot be read, or is not valid.
    """
    found = load_catalogue(None if file is None else existing(file, "--catalogue"))
    include = [existing(folder, "--include-path") for folder in tasks.include]
    return found.with_tasks(include, [existing(folder, "--trust-tasks") for folder in tasks.trusted])


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


def given_data(assignments: Sequence[str]) -> dict[str, Path]:
    """Return the local files and folders given with ``--data``, by data set.

    Args:
        assignments: As given.

    Raises:
        HarnessError: one names none, or is not there.
    """
    chosen: dict[str, Path] = {}
    for text in assignments:
        name, equals, path = text.partition("=")
        if not equals:
            raise HarnessError(f"--data {text}: expected NAME=PATH")
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
