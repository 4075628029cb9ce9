"""Models and data files from the Hugging Face hub, at a commit resolved once and pinned in the user's lock file.

The files stay in the hub library's own cache, where other programs find them too. ``lock.json`` in our cache says for
each hub id which commit was resolved and which files it brought, with their sizes, written after the last one arrived:
what is not there in full does not count. Weights are taken as safetensors only, never as pickles.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.assets.cache import cache_root, read_table, update_table
from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.models import BaseModelSpec
from harness.errors import HarnessError
from harness.progress import Progress, silent

MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.jinja", "*.txt", "tokenizer*")
CONFIG = "config.json"
_SUBFOLDERS = ("*/*",)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS = 30.0

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class HubAsset:
    """What is wanted of one repository on the hub."""

    kind: Kind
    hub_id: str
    revision: str | None
    """As the catalogue says; None: what the lock file says, else the newest."""
    patterns: tuple[str, ...]
    flag: str
    """How the user gives local files instead."""

    @property
    def key(self) -> str:
        """Return the entry of the lock file."""
        return f"{self.kind}:{self.hub_id}:{'|'.join(self.patterns) if self.kind == 'dataset' else '*'}"


def model_asset(spec: BaseModelSpec) -> HubAsset:
    """Return what a base model from the hub needs."""
    assert spec.hub_id is not None
    return HubAsset("model", spec.hub_id, spec.revision, MODEL_FILES, f"--model {spec.name}=PATH")


def dataset_asset(spec: DatasetSpec) -> HubAsset:
    """Return what a data set from the hub needs."""
    assert spec.hub_id is not None and spec.path is not None
    return HubAsset("dataset", spec.hub_id, spec.revision, (spec.path,), f"--data {spec.name}=PATH")


def pinned_revision(asset: HubAsset) -> str | None:
    """Return the commit of the catalogue, else of the lock file; None when it was never resolved."""
    if asset.revision is not None and _COMMIT.fullmatch(asset.revision):
        return asset.revision
    entry = _entry(asset)
    return entry.get("revision") if entry.get("asked") == asset.revision else None


def cached_folder(asset: HubAsset) -> Path | None:
    """Return the folder of a repository's files, or None unless every file is there in full."""
    entry = _entry(asset)
    revision = pinned_revision(asset)
    if revision is None or entry.get("revision") != revision or not (entry.get("files") and entry.get("folder")):
        return None
    folder = cache_root() / entry["folder"]  # absolute, but for a cache that was bundled
    try:
        whole = all((folder / name).stat().st_size == size for name, size in entry["files"].items())
    except (OSError, ValueError):
        return None
    return folder if whole else None


def cached_config(asset: HubAsset) -> Path | None:
    """Return the config.json of a model, or None unless it is there: with all files, or fetched alone."""
    if (folder := cached_folder(asset)) is not None:
        return folder / CONFIG
    if (revision := pinned_revision(asset)) is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(asset.hub_id, CONFIG, revision=revision)
    return Path(found) if isinstance(found, str) else None


def fetch_config(asset: HubAsset) -> Path:
    """Return the config.json of a model, downloaded alone unless it is there; its commit is pinned from then on.

    Raises:
        HarnessError: it cannot be had; the sentence says why and what to do.
    """
    if (file := cached_config(asset)) is not None:
        return file
    revision, folder = _download(replace(asset, patterns=(CONFIG,)), silent)
    if not (folder / CONFIG).is_file():
        raise HarnessError(f"{asset.hub_id}@{revision} on the hub has no {CONFIG}; give a local copy with {asset.flag}")
    update_table(_lock_file(), {asset.key: {"asked": asset.revision, "revision": revision}})
    return folder / CONFIG


def moved_entry(asset: HubAsset, folder: str) -> dict[str, Any]:
    """Return the lock file's entry of a repository whose files lie elsewhere: ``folder``, within that cache."""
    return {asset.key: {**_entry(asset), "folder": folder}}


def hub_files(asset: HubAsset) -> list[str]:
    """Return the names of a repository's files that are in the cache."""
    return sorted(_entry(asset).get("files", {}))


def cached_hub_file(spec: DatasetSpec) -> Path | None:
    """Return the file of a data set from the hub, or None unless it is there in full."""
    folder = cached_folder(dataset_asset(spec))
    return None if folder is None or spec.path is None else folder / spec.path


def fetch_from_hub(asset: HubAsset, *, offline: bool = False, progress: Progress = silent) -> Path:
    """Return the folder of a repository's files, downloaded unless they are there.

    Raises:
        HarnessError: they cannot be had; the sentence says why and what to do.
    """
    if (folder := cached_folder(asset)) is not None:
        return folder
    if offline:
        raise HarnessError(
            f"{asset.hub_id} is not in the cache {cache_root()} and --offline forbids its download; run 'harness "
            f"prepare' with a network, or give a local copy with {asset.flag}"
        )
    revision, folder = _download(asset, progress)
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if asset.kind == "model":
        _check_model_files(asset, list(files))
        _check_shards(asset, folder, list(files))
    elif asset.patterns[0] not in files:
        raise HarnessError(
            f"{asset.hub_id}@{revision} on the hub has no file {asset.patterns[0]}; give it with {asset.flag}"
        )
    update_table(
        _lock_file(),
        {asset.key: {"asked": asset.revision, "revision": revision, "folder": str(folder), "files": files}},
    )
    return folder


def _check_model_files(asset: HubAsset, names: Sequence[str]) -> None:
    if CONFIG not in names or not any(name.endswith(".safetensors") for name in names):
        raise HarnessError(
            f"{asset.hub_id} on the hub has no config.json or no safetensors weights, and pickled ones are never "
            f"loaded; convert them and give the folder with {asset.flag}"
        )


def _check_shards(asset: HubAsset, folder: Path, names: Sequence[str]) -> None:
    """Refuse a model of which the index names a file that the repository has not."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HarnessError(f"{asset.hub_id} on the hub: {index.name} is not an index of weights") from error
    if absent := sorted(wanted - set(names)):
        raise HarnessError(
            f"{asset.hub_id} on the hub lacks {len(absent)} of its {len(wanted)} files of weights ({absent[0]}); take "
            f"another revision, or give a whole copy with {asset.flag}"
        )


def _download(asset: HubAsset, progress: Progress) -> tuple[str, Path]:
    from huggingface_hub import HfApi, errors, snapshot_download

    endpoint = os.environ.get("HF_ENDPOINT") or None
    pinned = pinned_revision(asset)
    try:
        if pinned is None:
            info = HfApi(endpoint=endpoint).repo_info(
                asset.hub_id, repo_type=asset.kind, revision=asset.revision, timeout=_SECONDS
            )
            pinned = str(info.sha)
        folder = snapshot_download(
            asset.hub_id,
            repo_type=asset.kind,
            revision=pinned,
            allow_patterns=list(asset.patterns),
            ignore_patterns=list(_SUBFOLDERS) if asset.kind == "model" else None,
            endpoint=endpoint,
            tqdm_class=_bar(f"downloading {asset.hub_id}", progress),
        )
    except errors.GatedRepoError as error:
        raise HarnessError(
            f"{asset.hub_id} on the hub is gated: accept its licence on its page and set HF_TOKEN to a token of that "
            f"account, or give a local copy with {asset.flag}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HarnessError(
            f"{asset.hub_id} on the hub has no revision '{pinned or asset.revision}'; mend it in the catalogue or in "
            f"{_lock_file()}, or give a local copy with {asset.flag}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HarnessError(
            f"{asset.hub_id} is not on the hub, or it is private: set HF_TOKEN to a token that may read it, or give a "
            f"local copy with {asset.flag}"
        ) from error
    # errors.HTTPError is that of whichever HTTP library this version of the hub library stands on.
    except (errors.HTTPError, errors.EntryNotFoundError, OSError, ValueError) as error:
        raise HarnessError(
            f"{asset.hub_id} could not be fetched from the hub ({_brief(error)}); check the network and run it again, "
            f"which goes on where it stopped, or give a local copy with {asset.flag}"
        ) from error
    return pinned, Path(folder)


def _brief(error: BaseException) -> str:
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(cause).__name__


def _bar(description: str, progress: Progress) -> type[Any]:
    """Return a tqdm class that prints nothing and reports bytes."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            name = str(kwargs.pop("name", ""))
            self._reports = kwargs.get("unit") == "B" and not name.endswith(".transfer")
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self._reports:
                progress(description, int(self.n), int(self.total) if self.total else None)
            return None

    return Bar


def _entry(asset: HubAsset) -> dict[str, Any]:
    entry = read_table(_lock_file()).get(asset.key)
    kinds = {"revision": str, "folder": str, "files": dict}
    whole = isinstance(entry, dict) and all(isinstance(entry.get(name, kind()), kind) for name, kind in kinds.items())
    return entry if isinstance(entry, dict) and whole else {}


def _lock_file() -> Path:
    return cache_root() / "lock.json"
