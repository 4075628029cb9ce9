"""The catalogue: what the names of base models, data sets and labels stand for.

Three layers: the packaged files, a file of the user's (``--catalogue``), and the tables of the suite that is run. The
user's are written alike, ``[base_models.NAME]``, ``[datasets.NAME]`` and ``[methods.LABEL]``, and a path in one is
relative to the file that it stands in. ``[tasks]`` says where tasks of the user's own lie. A model or a data set of the
user's never takes the name of another: a record says the name, and who reads it must not be misled. What a label means,
a suite may say for itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, model_validator

from harness.catalogue.datasets import DatasetSpec, find_dataset, load_datasets
from harness.catalogue.labels import LabelEntry, load_labels, with_aliases
from harness.catalogue.models import BaseModelSpec, find_model, load_models
from harness.catalogue.packaged_tasks import PACKAGED
from harness.catalogue.tasks import TaskPlaces, TaskTable
from harness.errors import HarnessError
from harness.settings import NAME_PATTERN, Name, Strict
from harness.toml_files import read_toml, validate

COMPUTED = {"base_models": ("name", "checksum", "weights", "config"), "datasets": ("name", "checksum")}
"""Fields of an entry that no file gives: its table's own name, and what the harness finds out itself."""
E = TypeVar("E", bound="Entries")


class Entries(Strict):
    """What a file of the user's may define beside all else that it holds."""

    base_models: dict[Name, BaseModelSpec] = Field(default_factory=dict)
    """Base models of one's own, by name."""
    datasets: dict[Name, DatasetSpec] = Field(default_factory=dict)
    """Data sets of one's own, by name."""
    methods: dict[str, LabelEntry] = Field(default_factory=dict)
    """Labels of one's own, by name."""
    tasks: TaskTable = TaskTable()
    """Folders of tasks of one's own, and rows of files for tasks of lm-eval's."""

    @model_validator(mode="after")
    def _one_source_each(self) -> Entries:
        for name, model in self.base_models.items():
            given = {"folder": model.folder, "hub_id": model.hub_id, "packaged": model.packaged}
            _check_one("base_models", name, [key for key, value in given.items() if value is not None])
        for name, data in self.datasets.items():
            if name in ("hub", "own", *PACKAGED):
                raise ValueError(f"[datasets.{name}] takes a name that kinds of evaluation rows have: choose another")
            sources = {key: getattr(data, key) for key in ("file", "packaged", "drawn", "repository", "hub_id")}
            _check_one("datasets", name, [key for key, value in sources.items() if value is not None])
        return self

    def placed(self: E, folder: Path) -> E:
        """Return this with its paths, relative to a folder, made absolute."""

        def place(path: Path | None) -> Path | None:
            return None if path is None else (folder / path.expanduser()).absolute()

        models = {
            name: model.model_copy(update={"folder": place(model.folder)}) for name, model in self.base_models.items()
        }
        datasets = {name: data.model_copy(update={"file": place(data.file)}) for name, data in self.datasets.items()}
        tasks = self.tasks.placed(folder)
        return self.model_copy(update={"base_models": models, "datasets": datasets, "tasks": tasks})


@dataclass(frozen=True)
class Catalogue:
    """What every name stands for."""

    models: Mapping[str, BaseModelSpec]
    datasets: Mapping[str, DatasetSpec]
    labels: Mapping[str, LabelEntry]
    """Aliases resolved."""
    tasks: TaskPlaces = field(default_factory=TaskPlaces)

    def model(self, name: str) -> BaseModelSpec:
        """Return the base model called ``name``.

        Raises:
            HarnessError: there is none; the sentence holds a near miss.
        """
        return find_model(name, self.models)

    def dataset(self, name: str) -> DatasetSpec:
        """Return the data set called ``name``.

        Raises:
            HarnessError: there is none; the sentence holds a near miss.
        """
        return find_dataset(name, self.datasets)

    def with_entries(self, own: Entries, where: str, *, may_redefine_labels: bool = False) -> Catalogue:
        """Return this with entries of a file on top.

        Args:
            own: The entries.
            where: How to call their file in a message.
            may_redefine_labels: Whether its labels go before those that are known.

        Raises:
            HarnessError: a name is taken, or an alias is of no label.
        """
        _check_free("base_models", "model", own.base_models, self.models, where)
        _check_free("datasets", "data set", own.datasets, self.datasets, where)
        if not may_redefine_labels:
            _check_free("methods", "label", own.methods, self.labels, where)
        labels = with_aliases(own.methods, {**self.labels, **own.methods}, where)
        return Catalogue(
            {**self.models, **own.base_models},
            {**self.datasets, **own.datasets},
            {**self.labels, **labels},
            self.tasks.with_table(own.tasks, where),
        )

    def with_tasks(self, include: Iterable[Path], trusted: Iterable[Path]) -> Catalogue:
        """Return this with folders of tasks that the command line names, and those whose code may be run."""
        return replace(self, tasks=self.tasks.with_folders(include, trusted))

    def with_files(self, files: Mapping[str, Path]) -> Catalogue:
        """Return this with local files in the place of data sets.

        Raises:
            HarnessError: there is no such data set, or its rows are drawn, so that no file can stand in for them.
        """
        placed = {}
        for name, file in files.items():
            spec = self.dataset(name)
            if spec.drawn is not None:
                raise HarnessError(
                    f"--data {name}={file}: these rows are drawn from the seed, and no file replaces them"
                )
            # How many rows the source holds says nothing of the file.
            placed[name] = spec.model_copy(update={"file": file, "num_rows": None})
        return replace(self, datasets={**self.datasets, **placed})

    def with_rows(self, files: Mapping[str, Path]) -> Catalogue:
        """Return this with data sets that there are not yet, each a local file whose layout is found in it.

        Raises:
            HarnessError: a name is none, or is taken by a kind of evaluation rows.
        """
        placed = {}
        for name, file in files.items():
            if not re.fullmatch(NAME_PATTERN, name):
                raise HarnessError(
                    f"--data: {name!r} is no name for a data set: expected at most 64 letters, digits, '.', '_' and "
                    "'-', of which the first is a letter or a digit"
                )
            if name in ("hub", *PACKAGED):
                raise HarnessError(
                    f"--data {name}={file}: kinds of evaluation rows have the name '{name}': choose another"
                )
            placed[name] = DatasetSpec(name=name, file=file)
        return replace(self, datasets={**self.datasets, **placed})


@cache
def packaged_catalogue() -> Catalogue:
    """Return what the packaged files say.

    Raises:
        HarnessError: one is not valid.
    """
    return Catalogue(load_models(), load_datasets(), load_labels())


def load_catalogue(file: Path | None = None) -> Catalogue:
    """Return the packaged catalogue, with the entries of a file of the user's where one is named.

    Raises:
        HarnessError: the file cannot be read, an entry is not valid, or its name is taken.
    """
    known = packaged_catalogue()
    if file is None:
        return known
    table, where = read_toml(file)
    return known.with_entries(validate(Entries, named(table, where), f"{where}:").placed(file.parent), where)


def named(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a file's table with the name of each entry inside it, as its class wants it.

    Args:
        table: As TOML has it.
        where: How to call the file in a message.

    Raises:
        HarnessError: an entry is no table, or says what no file may.
    """
    found = dict(table)
    for kind, computed in COMPUTED.items():
        if not isinstance(entries := table.get(kind, {}), dict):
            raise HarnessError(f"{where}: {kind} is {type(entries).__name__}, expected tables [{kind}.NAME]")
        for name, entry in entries.items():
            path = f"{kind}.{' '.join(name.split())}"  # a key may hold the end of a line
            if not isinstance(entry, dict):
                raise HarnessError(f"{where}: {path} is {type(entry).__name__}, expected a table [{path}]")
            if said := next((field for field in computed if field in entry), None):
                raise HarnessError(f"{where}: [{path}] has no setting '{said}': the harness finds it out itself")
        if entries:
            found[kind] = {name: {"name": name, **entry} for name, entry in entries.items()}
    return found


def _check_one(kind: str, name: str, sources: list[str]) -> None:
    if len(sources) > 1:
        raise ValueError(f"[{kind}.{name}] gives {' and '.join(sources)}, which are two sources: leave one out")


def _check_free(kind: str, what: str, own: Iterable[str], known: Mapping[str, object], where: str) -> None:
    for name in own:
        if name in known:
            raise HarnessError(
                f"{where}: [{kind}.{name}] takes the name of a {what} that there is already, and records tell {what}s "
                "by name: choose another"
            )
