"""What the options of ``harness prepare --bundle`` ask for."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from harness.assets.pip_program import check_pip
from harness.bundling.assets import BundledAssets, copy_assets
from harness.bundling.bundle import Bundle, BundleRequest, check_place, make_bundle
from harness.bundling.source import DISTRIBUTION
from harness.bundling.target import target_of
from harness.commands._selection import Selection, existing
from harness.commands.requests import BundleOptions, SelectionRequest
from harness.errors import HarnessError, near_miss
from harness.progress import Progress

LEAST_PART_BYTES = 1 << 20
_UNITS = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9, "": 1}


def bundle_request(options: BundleOptions, *, offline: bool) -> BundleRequest | None:
    """Return what the options ask for, None without a folder; everything that can be checked beforehand is.

    Raises:
        HarnessError: an option is of no use, or not valid.
    """
    if options.folder is None:
        given = {
            "--python": options.python,
            "--platform": options.platform,
            "--without": options.without,
            "--extra": options.extras,
            "--part-size": options.part_size,
        }
        for option, value in given.items():
            if value:
                raise HarnessError(f"{option} is of --bundle DIR: give both or neither")
        return None
    if offline:
        raise HarnessError("--bundle fetches wheels, which --offline forbids: leave one of them out")
    place = Path(options.folder).expanduser().absolute()
    check_place(place)
    check_pip()
    return BundleRequest(
        place=place,
        target=target_of(options.python, options.platform),
        extras=_extras(options.extras),
        left_out=dict(map(_left_out, options.without)),
        part_bytes=None if options.part_size is None else _size(options.part_size),
    )


def bundle(request: BundleRequest, chosen: SelectionRequest, selection: Selection, progress: Progress) -> Bundle:
    """Make the bundle of a selection whose assets are prepared.

    Raises:
        HarnessError: something cannot be had or written.
    """
    if selection.tasks.any:
        raise HarnessError(
            f"--bundle: suite '{selection.suite.name}' scores tasks or rows of your own, which a bundle does not hold: "
            "make it without [tasks] and --include-path, and copy the folders beside it"
        )

    def copy(folder: Path) -> BundledAssets:
        return copy_assets(
            chosen.suite,
            selection.suite,
            selection.specs,
            selection.models.values(),
            datasets=selection.datasets,
            bundle=folder,
            models_chosen=bool(chosen.models),
            labels=chosen.labels,
            catalogue=None if chosen.catalogue is None else existing(chosen.catalogue, "--catalogue"),
        )

    return make_bundle(request, copy, progress)


def _left_out(text: str) -> tuple[str, str]:
    name, equals, version = text.partition("==")
    found = canonicalize_name(name.strip())
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", found) or found == DISTRIBUTION:
        raise HarnessError(f"--without {text}: expected the name of another package, as torch or torch==2.11.0")
    try:
        # What follows + says who built it, and another build does as well.
        return found, Version(version if equals else importlib.metadata.version(found)).public
    except importlib.metadata.PackageNotFoundError as error:
        raise HarnessError(
            f"--without {text}: is not installed here, so name the version that the machine has: {found}==VERSION"
        ) from error
    except InvalidVersion as error:
        raise HarnessError(f"--without {text}: '{version}' is no version; expected such as {found}==2.11.0") from error


def _extras(names: Sequence[str]) -> tuple[str, ...]:
    known = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    for name in names:
        if name not in known:
            raise HarnessError(f"--extra {name}: there is no such extra{near_miss(name, known)}")
    return tuple(sorted(set(names)))


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,3})?)\s*([A-Za-z]*)", text.strip())
    factor = _UNITS.get(found[2].upper()) if found else None
    if found is None or factor is None or (size := int(float(found[1]) * factor)) < LEAST_PART_BYTES:
        raise HarnessError(f"--part-size {text}: expected a size of at least 1MiB, such as 60MiB or 2GB")
    return size
