"""Wheels of everything that an installation needs, chosen by pip for a target and brought into one folder.

pip resolves without installing (``install --dry-run --report``). Packages that the target has are given to it as empty
wheels of their version, so that what only they need is left out too. What the index has as source alone is built here,
for another target only if the wheel is of Python alone. pip reads markers as the running Python, so the dependencies
are walked again with the target's: what is needed there is asked for, what is not is dropped.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness.assets.cache import file_checksum
from harness.assets.pip_program import Answer, run_pip
from harness.bundling.constraints import constraints_without
from harness.bundling.source import DISTRIBUTION
from harness.bundling.target import Target, is_pure, wheel_tags
from harness.errors import HarnessError
from harness.progress import Progress

MOST_ROUNDS = 40
"""Of asking pip again, each after one more package was built or asked for."""
_ABSENT = re.compile(r"No matching distribution found for ([A-Za-z0-9][\w.-]*)")
_ABSENT_LIST = re.compile(r"no matching distributions available for your environment:\n((?:[ \t]+\S+\n)+)")


@dataclass(frozen=True)
class Wanted:
    """What is to be installed, and where."""

    own: Path
    """The harness's own wheel."""
    extras: tuple[str, ...]
    target: Target
    left_out: Mapping[str, str]
    """Version by name, in its canonical form, of what the target has."""


@dataclass(frozen=True)
class Package:
    """One package of the answer."""

    name: str
    version: str
    url: str
    checksum: str | None
    """SHA-256; None where the index gives none."""
    requires: tuple[Requirement, ...]

    @property
    def file_name(self) -> str:
        """Return the name of its wheel."""
        return unquote(urlsplit(self.url).path).rpartition("/")[2]

    @property
    def local_file(self) -> Path | None:
        """Return its file where it lies on this machine."""
        parts = urlsplit(self.url)
        return Path(unquote(parts.path)) if parts.scheme == "file" else None


def collect_wheels(wanted: Wanted, folder: Path, progress: Progress) -> dict[str, str]:
    """Bring the wheels that an installation needs into a folder; return version by name, the harness's own among them.

    Args:
        wanted: What, and for whom.
        folder: What is there already is used; wheels of other versions are removed.
        progress: Called meanwhile.

    Raises:
        HarnessError: a package cannot be had for the target, or the index cannot be reached.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".resolve.") as name:
        scratch = Path(name)
        pip = _Pip(wanted.target, constraints_without(wanted.left_out, scratch), progress)
        packages = _Resolver(wanted, pip, scratch).resolve()
        packages = [package for package in packages if canonicalize_name(package.name) not in wanted.left_out]
        _fetch(packages, pip, folder, scratch)
    for package in packages:
        _check(package, folder / package.file_name, wanted.target)
    expected = {package.file_name for package in packages}
    for file in folder.iterdir():
        if file.name not in expected:
            file.unlink()
    return {package.name: package.version for package in sorted(packages, key=lambda package: package.name.lower())}


@dataclass(frozen=True)
class _Pip:
    target: Target
    variables: Mapping[str, str]
    progress: Progress

    def run(self, arguments: Sequence[str], what: str, num_bytes: Callable[[], int] = lambda: 0) -> Answer:
        return run_pip(arguments, what, progress=self.progress, num_bytes=num_bytes, variables=self.variables)


class _Resolver:
    def __init__(self, wanted: Wanted, pip: _Pip, scratch: Path) -> None:
        self._target, self._pip, self._scratch = wanted.target, pip, scratch
        self._extras = frozenset(wanted.extras)
        self._built = scratch / "built"
        self._built.mkdir()
        self._tried: set[str] = set()
        extras = f"[{','.join(wanted.extras)}]" if wanted.extras else ""
        self._asked = [f"{DISTRIBUTION}{extras} @ {wanted.own.resolve().as_uri()}"]
        for name, version in wanted.left_out.items():
            self._asked.append(f"{name} @ {_empty_wheel(name, version, scratch).resolve().as_uri()}")

    def resolve(self) -> list[Package]:
        for _ in range(MOST_ROUNDS):
            packages = self._ask()
            if packages is None:
                continue
            needed, more = needed_packages(packages, DISTRIBUTION, self._extras, self._target.markers())
            if not more:
                return needed
            self._asked += more
        raise HarnessError(
            f"pip was asked {MOST_ROUNDS} times and still lacks packages for {self._target}, at last "
            f"{', '.join(self._asked[-3:])}: pin what is needed with PIP_CONSTRAINT"
        )

    def _ask(self) -> list[Package] | None:
        """Return pip's choice; None where a package had to be built first."""
        report, requirements = self._scratch / "report.json", self._scratch / "requirements.txt"
        requirements.write_text("\n".join(self._asked), encoding="utf-8")
        options = self._target.pip_options()
        # Before pip 24, another platform was refused without a target, whether anything was to be installed or not.
        nowhere = ["--target", str(self._scratch / "nowhere")] if options else []
        answer = self._pip.run(
            [
                *("install", "--dry-run", "--ignore-installed", "--only-binary=:all:"),
                *(*nowhere, *options),
                *("--find-links", str(self._built), "--report", str(report), "--requirement", str(requirements)),
            ],
            f"choosing wheels for {self._target}",
        )
        if answer.code == 0:
            return _read_report(report)
        absent = [name for name in _absent(answer.output) if name not in self._tried]
        if not absent:
            raise HarnessError(f"no wheels can be chosen for {self._target}: {answer.reason()}")
        for name in absent:
            self._tried.add(name)
            self._build(name, answer.reason())
        return None

    def _build(self, name: str, reason: str) -> None:
        before = set(self._built.iterdir())
        built = self._pip.run(
            ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(self._built), name], f"building a wheel of {name}"
        )
        if built.code != 0:
            raise HarnessError(f"no wheels can be chosen for {self._target}: {reason}")
        for wheel in set(self._built.iterdir()) - before:
            if not self._target.is_here and not is_pure(wheel):
                raise HarnessError(
                    f"{name} has no wheel for {self._target}, and the one built here, {wheel.name}, is not of Python "
                    "alone: make the bundle on a machine like the target, or leave it out with --without"
                )


def needed_packages(
    packages: Sequence[Package], root: str, extras: frozenset[str], markers: Mapping[str, str]
) -> tuple[list[Package], list[str]]:
    """Return which packages the root needs under an environment's markers, and what of that is not among them.

    Args:
        packages: Chosen by pip.
        root: Name of the one that is wanted.
        extras: Of the root.
        markers: The environment.
    """
    known = {canonicalize_name(package.name): package for package in packages}
    seen: dict[str, frozenset[str]] = {}
    absent: list[str] = []
    waiting = [(canonicalize_name(root), extras)]
    while waiting:
        name, wanted = waiting.pop()
        if name in seen and wanted <= seen[name]:
            continue
        seen[name] = wanted = seen.get(name, frozenset()) | wanted
        for requirement in known[name].requires:
            if not _applies(requirement, wanted, markers):
                continue
            if (child := canonicalize_name(requirement.name)) in known:
                waiting.append((child, frozenset(requirement.extras)))
            else:
                listed = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
                absent.append(f"{requirement.name}{listed}{requirement.specifier}")
    return [package for name, package in known.items() if name in seen], sorted(set(absent))


def _applies(requirement: Requirement, extras: frozenset[str], markers: Mapping[str, str]) -> bool:
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({**markers, "extra": extra}) for extra in ("", *extras))


def _read_report(file: Path) -> list[Package]:
    return [_package(entry) for entry in json.loads(file.read_text(encoding="utf-8"))["install"]]


def _package(entry: Mapping[str, Any]) -> Package:
    about, origin = entry["metadata"], entry["download_info"]
    return Package(
        name=about["name"],
        version=about["version"],
        url=origin["url"],
        checksum=origin.get("archive_info", {}).get("hashes", {}).get("sha256"),
        requires=tuple(Requirement(text) for text in about.get("requires_dist", ())),
    )


def _absent(output: str) -> list[str]:
    """Return the packages of which pip found no wheel."""
    names = _ABSENT.findall(output)
    for block in _ABSENT_LIST.findall(output):
        names += [re.split(r"[^\w.-]", line.strip())[0] for line in block.splitlines()]
    return list(dict.fromkeys(name.rstrip(".") for name in names))


def _empty_wheel(name: str, version: str, folder: Path) -> Path:
    """Write a wheel without content and without dependencies, which stands for what the target has."""
    stem = f"{name.replace('-', '_')}-{version}"
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        about = f"{stem}.dist-info"
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return wheel


def _fetch(packages: Sequence[Package], pip: _Pip, folder: Path, scratch: Path) -> None:
    """Copy what lies on this machine and have pip download the rest; what is there already stays."""
    wanted = []
    for package in packages:
        place = folder / package.file_name
        if place.is_file() and package.checksum is not None and file_checksum(place) == package.checksum:
            continue
        place.unlink(missing_ok=True)
        if package.local_file is not None:
            shutil.copyfile(package.local_file, place)
        else:
            wanted.append(f"{package.name}=={package.version}")
    if not wanted:
        return
    pins = scratch / "pins.txt"
    pins.write_text("\n".join(wanted), encoding="utf-8")
    pip.run(
        [
            *("download", "--quiet", "--no-deps", "--only-binary=:all:", *pip.target.pip_options()),
            *("--dest", str(folder), "--requirement", str(pins)),
        ],
        f"downloading {len(wanted)} wheels",
        lambda: _size(folder),
    ).check("the wheels cannot be downloaded")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _check(package: Package, wheel: Path, target: Target) -> None:
    if not wheel.is_file():
        raise HarnessError(f"pip chose {package.file_name} and downloaded another file of {package.name}: try again")
    if package.checksum is not None and (found := file_checksum(wheel)) != package.checksum:
        raise HarnessError(f"{wheel.name}: has SHA-256 {found}, and the index says {package.checksum}: try again")
    if not wheel_tags(wheel) & target.tags():
        raise HarnessError(f"{wheel.name}: does not run under {target}")
