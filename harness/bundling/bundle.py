"""A bundle: one folder with all that a machine without a network needs to install the harness and run a suite.

``wheels/`` and ``requirements.txt``, ``cache/`` for HARNESS_CACHE, the user's own ``data/``, ``models/`` and
``suites/``, ``install.sh``, ``bundle.json`` and ``SHA256SUMS`` of every other file. It is made in a folder beside its
place and renamed into it, so that a killed bundling leaves nothing that looks whole; the next takes its wheels over.
"""

from __future__ import annotations

import importlib.resources
import json
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from harness import __version__
from harness.assets.cache import file_checksum
from harness.bundling.assets import CACHE, BundledAssets
from harness.bundling.parts import write_parts
from harness.bundling.source import DISTRIBUTION, own_wheel
from harness.bundling.target import Target, least_glibc
from harness.bundling.wheels import Wanted, collect_wheels
from harness.errors import HarnessError
from harness.files import parse_json, put, read_bytes_if_there, reason_of, said_as
from harness.progress import Progress
from harness.source import source_checksum

FORMAT = 1
ABOUT = "bundle.json"
SUMS = "SHA256SUMS"
WHEELS = "wheels"


@dataclass(frozen=True)
class BundleRequest:
    """What is asked for."""

    place: Path
    target: Target
    extras: tuple[str, ...]
    left_out: Mapping[str, str]
    """Version by name of the packages that the target has."""
    part_bytes: int | None
    """The largest part; None: one folder."""


@dataclass(frozen=True)
class Bundle:
    """What was made."""

    place: Path
    num_packages: int
    num_bytes: int
    num_parts: int
    """0 where it is one folder."""
    notes: tuple[str, ...]


def check_place(place: Path) -> None:
    """Refuse a place that holds something else than a bundle.

    Raises:
        HarnessError: it does.
    """
    with said_as(f"--bundle {place}: cannot be read"):
        if not place.exists() or (place.is_dir() and (_is_bundle(place) or not any(place.iterdir()))):
            return
    what = "a folder that is not empty and no bundle" if place.is_dir() else "a file"
    raise HarnessError(f"--bundle {place}: is {what}, and nothing of it is overwritten; name another folder")


def make_bundle(request: BundleRequest, copy: Callable[[Path], BundledAssets], progress: Progress) -> Bundle:
    """Make a bundle and put it in its place, instead of one that is there.

    Args:
        request: What is asked for.
        copy: Copies the assets into the folder it is given.
        progress: Called meanwhile.

    Raises:
        HarnessError: something cannot be had or written, or another process is making the same bundle.
    """
    place = request.place
    check_place(place)
    work = place.parent / f".{place.name}.part"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(work / "lock", timeout=0):
            made = _make(request, work, copy, progress)
            put(work / ("parts" if made.num_parts else "bundle"), place, aside=work / "old")
            shutil.rmtree(work)
    except Timeout as error:
        raise HarnessError(f"--bundle {place}: another process is making it; wait for it, or name another") from error
    except OSError as error:
        raise HarnessError(f"--bundle {error.filename or place}: cannot be written: {reason_of(error)}") from error
    return made


def _make(request: BundleRequest, work: Path, copy: Callable[[Path], BundledAssets], progress: Progress) -> Bundle:
    folder = work / "bundle"
    _clear(work, folder)
    _take_over(request.place / WHEELS, folder / WHEELS)
    own = own_wheel(work / "own", progress)
    wanted = Wanted(own, request.extras, request.target, request.left_out)
    packages = collect_wheels(wanted, folder / WHEELS, progress)
    progress("copying what the suite needs", 0, None)
    assets = copy(folder)
    (folder / CACHE).mkdir(exist_ok=True)
    extras = f"[{','.join(request.extras)}]" if request.extras else ""
    pins = [f"{name}{extras if name == DISTRIBUTION else ''}=={version}" for name, version in packages.items()]
    _write(folder / "requirements.txt", "\n".join(pins) + "\n")
    _write(folder / ABOUT, json.dumps(_about(request, packages, assets), indent=1) + "\n")
    _finish(folder, "install.sh", _install_values(request, folder, assets), progress)
    num_bytes, num_parts = _size(folder), 0
    if request.part_bytes is not None:
        parts = work / "parts"
        parts.mkdir()
        num_parts = write_parts(folder, parts, request.part_bytes, progress)
        shutil.copyfile(folder / ABOUT, parts / ABOUT)
        num_bytes = _size(parts)
        _finish(parts, "join.sh", {}, progress)
    return Bundle(request.place, len(packages), num_bytes, num_parts, assets.notes)


def _clear(work: Path, folder: Path) -> None:
    """Leave nothing of an interrupted bundling but its wheels, each of which is checked again."""
    for left in [*work.iterdir(), *(folder.iterdir() if folder.is_dir() else ())]:
        if left.is_dir() and left not in (folder, folder / WHEELS):
            shutil.rmtree(left)
        elif left.is_file() and left.name != "lock":
            left.unlink()
    (folder / WHEELS).mkdir(parents=True, exist_ok=True)
    (work / "own").mkdir()


def _take_over(old: Path, new: Path) -> None:
    """Copy the wheels of the bundle that is replaced, so that they need no download."""
    if old.is_dir():
        for wheel in old.glob("*.whl"):
            if not (new / wheel.name).exists():
                shutil.copyfile(wheel, new / wheel.name)


def _about(request: BundleRequest, packages: Mapping[str, str], assets: BundledAssets) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "harness": __version__,
        "source_checksum": source_checksum(),
        "suite": assets.suite,
        "python": request.target.python,
        "machine": request.target.machine,
        "platforms": request.target.platforms(),
        "extras": list(request.extras),
        "left_out": dict(request.left_out),
        "packages": dict(packages),
        "notes": list(assets.notes),
    }


def _install_values(request: BundleRequest, folder: Path, assets: BundledAssets) -> dict[str, str]:
    glibc = least_glibc(sorted((folder / WHEELS).iterdir()))
    inside = assets.suite.endswith(".toml")
    arguments = ["--suite", f'"$bundle"/{shlex.quote(assets.suite)}' if inside else shlex.quote(assets.suite)]
    shown = ["--suite", f"'$bundle/{assets.suite}'" if inside else assets.suite]
    for option, name, place in assets.options:
        of = f"{name}=" if name else ""
        arguments += [option, shlex.quote(name) if place is None else f'{of}"$bundle"/{shlex.quote(place)}']
        shown += [option, f"'{name}'" if place is None else f"'{of}$bundle/{place}'"]
    return {
        "PYTHON": request.target.python,
        "MACHINE": request.target.machine,
        "GLIBC": ".".join(map(str, glibc)) if glibc > (2, 0) else "",
        "LEFT_OUT": " ".join(request.left_out),
        "ARGUMENTS": " ".join(arguments),
        "SHOWN": " ".join(shown),
    }


def _finish(folder: Path, script: str, values: Mapping[str, str], progress: Progress) -> None:
    """Write the script and, last of all, the checksum of every file."""
    others = _files(folder)
    text = (importlib.resources.files("harness.bundling") / script).read_text(encoding="utf-8")
    for name, value in {**values, "FILES": str(len(others) + 1)}.items():
        text = text.replace(f"@{name}@", value)
    _write(folder / script, text)
    files, lines = _files(folder), []
    for done, file in enumerate(files):
        progress("checksums of the bundle", done, len(files))
        lines.append(f"{file_checksum(file)}  {file.relative_to(folder).as_posix()}\n")
    _write(folder / SUMS, "".join(lines))


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != SUMS)


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8", newline="\n")


def _is_bundle(folder: Path) -> bool:
    if (data := read_bytes_if_there(folder / ABOUT)) is None:
        return False
    try:
        about = parse_json(data, ABOUT)
    except HarnessError:
        return False
    return isinstance(about, dict) and "format" in about and "source_checksum" in about


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in _files(folder))
