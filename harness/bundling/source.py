"""The harness's own wheel: built from the checkout it runs from, or put together again from the installed files.

What is bundled is what runs here. An installed distribution lists its files in ``RECORD``: all of them but those that
an installer adds make the wheel that it came from.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import shutil
import tempfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath

import harness
from harness.assets.pip_program import run_pip
from harness.errors import HarnessError
from harness.progress import Progress
from harness.source import COMMIT_FILE, checkout_state, commit_text

DISTRIBUTION = "finetune-harness"
_KEPT = ("METADATA", "WHEEL", "entry_points.txt", "top_level.txt")
_TIME = (1980, 1, 1, 0, 0, 0)
"""Of every file, so that the same files make the same wheel."""


def own_wheel(folder: Path, progress: Progress) -> Path:
    """Write the wheel of the running harness into a folder and return it.

    Raises:
        HarnessError: it can be had neither from a checkout nor from the installed files.
    """
    package = Path(harness.__file__).resolve().parent
    try:
        distribution = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        distribution = None
    if distribution is not None and any(
        file.name == "__init__.py" and Path(str(distribution.locate_file(file))).resolve().parent == package
        for file in distribution.files or ()
    ):
        return rebuilt_wheel(distribution, folder)
    if (package.parent / "pyproject.toml").is_file():
        return _built_wheel(package.parent, folder, progress)
    raise HarnessError(
        f"{package}: the harness runs from neither a checkout nor an installed wheel, so no wheel of it can be made: "
        "pip install it first"
    )


def rebuilt_wheel(distribution: importlib.metadata.Distribution, folder: Path) -> Path:
    """Write the wheel that a distribution was installed from into a folder and return it.

    Raises:
        HarnessError: a file of it is gone, or it is not of Python alone.
    """
    name, version = distribution.metadata["Name"], distribution.version
    about = Parser().parsestr(distribution.read_text("WHEEL") or "")
    tags = about.get_all("Tag") or []
    if about.get("Root-Is-Purelib", "").lower() != "true" or len(tags) != 1:
        raise HarnessError(f"{name} {version} is installed for one platform: no wheel of it can be made again")
    stem = f"{name.replace('-', '_')}-{version}"
    target = folder / f"{stem}-{tags[0]}.whl"
    lines = []
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(distribution.files or (), key=str):
            path = PurePosixPath(file.as_posix())
            if not _belongs(path):
                continue
            try:
                data = Path(str(distribution.locate_file(file))).read_bytes()
            except OSError as error:
                raise HarnessError(
                    f"{distribution.locate_file(file)}: cannot be read, so {name} is not installed whole: install it "
                    "anew"
                ) from error
            archive.writestr(_entry(str(path)), data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{path},sha256={digest},{len(data)}\n")
        record = f"{stem}.dist-info/RECORD"
        archive.writestr(_entry(record), "".join([*lines, f"{record},,\n"]))
    return target


def _belongs(path: PurePosixPath) -> bool:
    """Return whether a listed file was in the wheel: scripts, bytecode and notes of the installer were not."""
    if path.is_absolute() or ".." in path.parts or "__pycache__" in path.parts or path.suffix == ".pyc":
        return False
    if not path.parts[0].endswith(".dist-info"):
        return True
    return path.name in _KEPT or (len(path.parts) > 2 and path.parts[1] == "licenses")


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _TIME)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o100644 << 16
    return info


def _built_wheel(root: Path, folder: Path, progress: Progress) -> Path:
    """Build the wheel of a checkout from a copy of it: a build leaves files behind, and takes in old ones."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".source.") as scratch:
        copy, built = Path(scratch) / "source", Path(scratch) / "built"
        copy.mkdir()
        for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
            shutil.copyfile(root / name, copy / name)
        places = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-dir"]
        for place in set(places.values()):
            shutil.copytree(root / place, copy / place, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        # The copy is no checkout, so it says itself of which commit it is.
        (copy / places["harness"] / COMMIT_FILE).write_text(commit_text(*checkout_state()), encoding="utf-8")
        run_pip(
            ["wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", str(built), str(copy)],
            "building the harness's own wheel",
            progress=progress,
        ).check("the harness's own wheel cannot be built")
        (wheel,) = built.glob("*.whl")
        return Path(shutil.move(wheel, folder / wheel.name))
