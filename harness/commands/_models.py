"""Base models that a command names: what is given in their place, and where the parts of their decoder are.

What is found of a model is kept in the cache, by its configuration: looking takes seconds, as torch is loaded for it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path

from harness.assets.cache import cache_root
from harness.assets.hub import cached_config, model_asset
from harness.catalogue.models import PARTS, USUAL_ARCHITECTURES, BaseModelSpec
from harness.errors import HarnessError
from harness.files import read_bytes, read_json, said_as, write_file
from harness.preparing.model_folder import architectures
from harness.source import package_checksum
from harness.spec import identity

PLACES_FOLDER = "model_parts"
"""Folder in the cache of what was found."""


def located(spec: BaseModelSpec) -> BaseModelSpec:
    """Return a base model with the places of its decoder's parts, found where its entry does not say them.

    A model on the hub whose config.json is not in the cache yet stays as it is: what is not known of it becomes known
    when it is prepared, as its revision does.

    Raises:
        HarnessError: a part cannot be told by looking at the model, or is not where the entry says.
    """
    if spec.folder is None and spec.hub_id is not None:
        spec = spec.model_copy(update={"config": cached_config(model_asset(spec))})
    file = spec.config_file()
    if file is None:
        return spec
    found = architectures(file)
    given = {part: getattr(spec, part) for part in PARTS}
    if any(name in USUAL_ARCHITECTURES for name in found or [spec.architecture or ""]):
        places: Mapping[str, str] = spec.places()
    elif all(place is not None for place in given.values()):
        places = {}
    else:
        places = _places(spec.name, file, given)
    # Of a folder it is its own, whatever the entry says of the model in whose place it stands.
    architecture = next(iter(found), spec.architecture)
    return spec.model_copy(update={**places, "architecture": architecture})


def _places(name: str, file: Path, given: Mapping[str, str | None]) -> dict[str, str]:
    key = {
        "config": hashlib.sha256(read_bytes(file)).hexdigest(),
        "given": dict(given),
        "packages": {package: importlib.metadata.version(package) for package in ("torch", "transformers")},
        "code": package_checksum(),
    }
    kept = cache_root() / PLACES_FOLDER / f"{identity(key)}.json"
    if (places := _kept(kept, key)) is not None:
        return places
    from harness.tensors.parts import PartsUnknown, parts_of

    try:
        places = parts_of(file.parent, given)
    except PartsUnknown as error:
        raise HarnessError(f"model '{name}': {error} ([base_models.{name}] of a suite or catalogue file)") from error
    with said_as(
        f"{kept.parent}: what is found of models cannot be kept there", "set HARNESS_CACHE to a folder that can"
    ):
        write_file(kept, json.dumps({"key": key, "places": places}))
    return places


def _kept(file: Path, key: object) -> dict[str, str] | None:
    """Return what is kept under a key; None where nothing is, or the file is damaged."""
    try:
        kept = read_json(file)
    except HarnessError:
        return None
    places = kept.get("places") if isinstance(kept, dict) and kept.get("key") == key else None
    if not isinstance(places, dict) or set(places) != set(PARTS):
        return None
    return places if all(isinstance(place, str) for place in places.values()) else None
