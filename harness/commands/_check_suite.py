"""What ``harness check`` finds of a suite or a catalogue: all that is wrong or missing, and the runs that it makes."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from harness.catalogue.datasets import find_dataset
from harness.catalogue.models import BaseModelSpec
from harness.catalogue.resolved import Catalogue, Entries, named
from harness.catalogue.tuned import tuned_file
from harness.commands._selection import given_catalogue, select
from harness.commands.requests import SelectionRequest
from harness.conversation import find_template
from harness.errors import Faults, HarnessError
from harness.expansion import catalogue_for, load_suite
from harness.method import METHODS
from harness.preparing.assets import resolve_model, resolved_datasets
from harness.preparing.runs import missing_for
from harness.settings import TrainSettings
from harness.suite import Suite
from harness.toml_files import read_toml, validate

T = TypeVar("T")
SUITE_KEYS = {"models", "labels", "seeds", "train", "evaluation", "protocol", "version", "name"}
"""One of them at the top, and a file is meant as a suite."""


@dataclass
class Found:
    """What is found of a file."""

    kind: str
    name: str
    faults: list[str] = field(default_factory=list)
    """What is wrong, a line each."""
    missing: list[str] = field(default_factory=list)
    """What this machine lacks and ``harness prepare`` brings."""
    runs: list[str] = field(default_factory=list)

    def of(self, look: Callable[[], T]) -> T | None:
        """Return what something returns; what it raises is a fault, each once."""
        try:
            return look()
        except Faults as error:
            where = error.where.rstrip(":")
            self.add([str(error)] if len(error.lines) == 1 else [f"{where}: {line}" for line in error.lines])
        except HarnessError as error:
            self.add(str(error).splitlines())
        return None

    def add(self, faults: Iterable[str]) -> None:
        """Add faults that are not there yet."""
        self.faults += [fault for fault in dict.fromkeys(faults) if fault not in self.faults]


def is_suite(file: Path) -> bool:
    """Return whether a TOML file is meant as a suite; one that cannot be read is, so that it is said why."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return True
    return bool(set(table) & SUITE_KEYS) or not set(table) <= set(Entries.model_fields)


def check_catalogue(file: Path) -> Found:
    """Return what is wrong with a catalogue, and the files and folders that it names and that are not there."""
    found = Found("catalogue", str(file))
    known = found.of(lambda: given_catalogue(file))
    if known is not None:
        packaged = given_catalogue(None)
        own = [model for name, model in known.models.items() if name not in packaged.models]
        _check_entries(found, own, known, [name for name in known.datasets if name not in packaged.datasets])
        for label in known.labels:
            if label not in packaged.labels:
                _check_label(found, label, known)
    return found


def check_suite(chosen: SelectionRequest) -> Found:
    """Return all that is wrong with a suite or missing for its runs here, and the runs."""
    found = Found("suite", chosen.suite)
    catalogue = found.of(lambda: given_catalogue(chosen.catalogue, chosen.tasks))
    suite = found.of(lambda: load_suite(chosen.suite, catalogue)) if catalogue is not None else None
    if suite is None:
        if catalogue is not None:
            _check_own_entries(found, chosen.suite, catalogue)
        return found
    known = found.of(lambda: catalogue_for(suite, f"suite '{suite.name}'", catalogue))
    if known is None:
        return found
    _check_names(found, suite, known, chosen)
    selection = found.of(lambda: select(chosen, tuned=False))
    if selection is not None:
        found.runs = [f"{spec.model_name}/{spec.label}/{spec.seed}" for spec in selection.specs]
        lacking = found.of(lambda: missing_for(selection.specs, selection.models.values(), selection.datasets))
        gated = {f"model {model.name}": model.hub_id for model in selection.models.values() if model.gated}
        found.missing = [
            what
            if what not in gated
            else f"{what} (gated: accept its licence on the hub's page of {gated[what]} and set HF_TOKEN)"
            for what in lacking or ()
        ]
    return found


def _check_own_entries(found: Found, name: str, catalogue: Catalogue) -> None:
    """Look at the models and data that a suite's file defines and names where the rest of it is not valid."""
    if not name.endswith(".toml"):
        return
    try:
        table, where = read_toml(Path(name))
        own = {key: value for key, value in table.items() if key in Entries.model_fields}
        entries = validate(Entries, named(own, where), f"{where}:").placed(Path(name).parent)
        known = catalogue.with_entries(entries, where, may_redefine_labels=True)
    except HarnessError:
        return  # it is among the faults
    _check_entries(found, [known.models[model] for model in entries.base_models], known, entries.datasets)
    models = table.get("models")
    for model in models if isinstance(models, list) else ():
        found.of(lambda model=model: known.model(str(model)))  # type: ignore[misc]


def _check_names(found: Found, suite: Suite, known: Catalogue, chosen: SelectionRequest) -> None:
    """Look up every name of a suite and every place that its entries name."""
    models = [model for name in suite.models if (model := found.of(lambda name=name: known.model(name))) is not None]  # type: ignore[misc]
    for model in models:
        found.of(lambda model=model: model.with_weights(suite.weights))  # type: ignore[misc]
    own = [model for model in known.models.values() if model.name in suite.base_models]
    data = {text.data for text in (suite.calibration, suite.general, suite.evaluation.mt_bench) if text is not None}
    data |= {layer["data"] for layer in (suite.train, *suite.settings.values()) if isinstance(layer.get("data"), str)}
    for name in sorted(data):
        found.of(lambda name=name: find_dataset(name, known.datasets))  # type: ignore[misc]
    _check_entries(found, own, known, suite.datasets)
    for label in suite.methods:
        _check_label(found, label, known)
    for template in sorted(set(suite.conversation.values())):
        found.of(lambda template=template: find_template(template))  # type: ignore[misc]
    if suite.tuned is not None and not (file := tuned_file(chosen.suite, suite.tuned)).is_file():
        found.missing.append(f"{file}, the learning rates of the suite: harness tune --suite {chosen.suite}")


def _check_entries(found: Found, models: Iterable[BaseModelSpec], known: Catalogue, datasets: Iterable[str]) -> None:
    for model in models:
        if model.folder is not None:
            found.of(lambda model=model: resolve_model(model))  # type: ignore[misc]
    resolved: Any = resolved_datasets(known.datasets)
    for name in datasets:
        file = known.datasets[name].file
        if file is not None and not file.exists():
            found.add([f"[datasets.{name}]: there is no file or folder '{file}'"])
        elif file is not None:
            found.of(lambda name=name: resolved[name])  # type: ignore[misc]


def _check_label(found: Found, label: str, known: Catalogue) -> None:
    """Look at the settings of a label that no run may use."""
    entry = known.labels[label]
    method = found.of(lambda: METHODS.get(entry.method))
    if method is None:
        return
    values = {key: value for key, value in entry.values().items() if key not in TrainSettings.model_fields}
    found.of(lambda: validate(method.Config, values, f"[methods.{label}]:"))
