"""Tiny packages, as wheels and as sources, in a folder that pip takes instead of an index."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

BACKEND = """
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "{stem}-{version}-{tag}.whl"
    with zipfile.ZipFile(folder + "/" + name, "w") as archive:
        about = "{stem}-{version}.dist-info/"
        archive.writestr("{stem}.py", "")
        archive.writestr(about + "METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        archive.writestr(about + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: {tag}\\n")
        archive.writestr(about + "RECORD", "")
    return name
"""


def make_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    requires: Sequence[str] = (),
    *,
    tag: str = "py3-none-any",
    files: Mapping[str, str] | None = None,
    extras: Sequence[str] = (),
) -> Path:
    """Write a wheel and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    wheel = folder / f"{stem}-{tag}.whl"
    about = f"{stem}.dist-info"
    needs = "".join(f"Requires-Dist: {text}\n" for text in requires)
    needs += "".join(f"Provides-Extra: {text}\n" for text in extras)
    members = {f"{name.replace('-', '_')}.py": "", **(files or {})}
    members[f"{about}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
    members[f"{about}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
    if files:
        members[f"{about}/entry_points.txt"] = "[console_scripts]\nharness = stand_in:main\n"
    members[f"{about}/RECORD"] = "".join(f"{member},,\n" for member in [*members, f"{about}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for member, text in members.items():
            archive.writestr(zipfile.ZipInfo(member), text)  # of one date, so that the same files make the same wheel
    return wheel


def make_source(folder: Path, name: str, version: str = "1.0", *, tag: str = "py3-none-any") -> Path:
    """Write a source distribution that builds itself, without any other package, into a wheel with a tag."""
    stem = name.replace("-", "_")
    place = folder / f"{stem}-{version}.tar.gz"
    texts = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": BACKEND.format(stem=stem, name=name, version=version, tag=tag),
    }
    with tarfile.open(place, "w:gz") as archive:
        for member, text in texts.items():
            info = tarfile.TarInfo(f"{stem}-{version}/{member}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return place


def only_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip see this folder alone: no index, no configuration, no constraints."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
