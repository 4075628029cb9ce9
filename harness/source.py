"""Which source of the harness this is: the checksum that stands for it in identities, and the commit it lies in."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from harness.catalogue.tuned import ENDING

COMMIT_FILE = "commit.json"
"""Beside the package in what was built from a checkout; setup.py writes it."""
SOURCES = ("harness", "harness.methods", "harness.suites")
APART = ("harness.methods", "harness.suites", "harness.published", "harness.profiles")
"""Packages with a folder of their own in a checkout; published numbers and devices' profiles move no run."""


RUN_ROOTS = (
    "harness.runs.child",
    "harness.engine.environment",
    "harness.preparing.assets",
    "harness.assets.gguf",
    "harness.methods",
)
"""What a run begins with: its process, what prepares its files, every method, since the registry imports all."""
BLOCK_SCORE_ROOTS = (
    "harness.engine.block_scores",
    "harness.engine.streamed_scores",
    "harness.tensors.loading",
    "harness.tensors.decoder",
    "harness.data.rows",
)
EVALUATION = "harness.evaluation"
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(harness[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n]+)|import[ \t]+(harness[^\n]*))",
    re.MULTILINE,
)


@cache
def package_checksum() -> str:
    """Return the SHA-256 over all of the harness's own Python and TOML files: relative path and bytes of each, sorted.

    Tuned learning rates are left out: they enter a run's identity by themselves, and writing them changes no other run.
    """
    return checksum_of(_packages())


@cache
def source_checksum() -> str:
    """Return the SHA-256 over the modules of the harness that a run can execute: by name and bytes of each, sorted.

    Reports, commands, plans and documents are none of them, so that an edit there makes no run anew; nor are suites,
    of which a run holds what it takes.
    """
    return closure_checksum(module_files(_packages()), RUN_ROOTS)


@cache
def training_checksum() -> str:
    """Return the same without what evaluates: while it stays, trained weights are what they would be now."""
    return closure_checksum(module_files(_packages()), RUN_ROOTS, without=EVALUATION)


@cache
def block_score_checksum() -> str:
    """Return the same over the modules that read a model and its text and compute block scores."""
    return closure_checksum(module_files(_packages()), BLOCK_SCORE_ROOTS)


def _packages() -> dict[str, Path]:
    return {package: Path(str(importlib.resources.files(package))) for package in SOURCES}


def module_files(roots: Mapping[str, Path]) -> dict[str, Path]:
    """Return the file of each module of packages, by the module's full name."""
    found = {}
    for package, root in roots.items():
        for file in root.rglob("*.py"):
            names = file.relative_to(root).with_suffix("").parts
            if f"{package}.{names[0]}" not in APART:
                found[".".join((package, *(names[:-1] if names[-1] == "__init__" else names)))] = file
    return found


def closure(files: Mapping[str, Path], roots: Iterable[str], without: str | None = None) -> set[str]:
    """Return the modules that some modules import, wherever in them, and what these import; packages come with all.

    Args:
        files: Of every module, as :func:`module_files` has them.
        roots: To begin with; of a package every module in it.
        without: A package that is left out with what only it imports.
    """
    waiting = [name for name in files if any(name == root or name.startswith(f"{root}.") for root in roots)]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in found or (without is not None and f"{name}.".startswith(f"{without}.")):
            continue
        found.add(name)
        waiting += [parent for parent in _parents(name) if parent in files]
        waiting += [module for module in _imported(files[name].read_text(encoding="utf-8")) if module in files]
    return found


def closure_checksum(files: Mapping[str, Path], roots: Iterable[str], without: str | None = None) -> str:
    """Return the checksum of the modules that :func:`closure` returns."""
    digest = hashlib.sha256()
    for name in sorted(closure(files, roots, without)):
        digest.update(f"{name}\0{hashlib.sha256(files[name].read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _parents(module: str) -> Iterator[str]:
    """Yield the packages that a module lies in, which are imported before it."""
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


def _imported(text: str) -> Iterator[str]:
    """Yield every name that a module may import: modules, and what may be one in a package."""
    for package, names, modules in _IMPORT.findall(text):
        if package:
            yield package
            yield from (f"{package}.{name}" for name in re.findall(r"\w+", names))
        yield from re.findall(r"harness[\w.]*", modules)


def checksum_of(roots: Mapping[str, Path]) -> str:
    """Return the checksum of packages by their folders; one that lies in another's folder counts once.

    In a checkout the packages lie beside each other, where they are installed inside the first: both have one checksum.
    """
    digest = hashlib.sha256()
    for package, root in roots.items():
        for file in sorted(root.rglob("*")):
            path = file.relative_to(root)
            if f"{package}.{path.parts[0]}" in APART:
                continue
            if file.suffix in {".py", ".toml"} and not file.name.endswith(ENDING) and file.is_file():
                digest.update(f"{package}/{path.as_posix()}\n".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def checkout_state() -> tuple[str | None, bool | None]:
    """Return commit and dirty flag of the checkout that this package lies in, or that its wheel was built from.

    (None, None): it lies in none, and was built outside of one.
    """
    root = Path(str(importlib.resources.files("harness")))

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return _built_from(root)
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return (commit.strip() if commit else None), (bool(changes.strip()) if changes is not None else None)


def commit_text(commit: str | None, dirty: bool | None) -> str:
    """Return the content of the file that says what a wheel was built from."""
    return json.dumps({"commit": commit, "dirty": dirty}) + "\n"


def _built_from(root: Path) -> tuple[str | None, bool | None]:
    """Return what the build has left beside the package; a file that says anything else says nothing."""
    try:
        found = json.loads((root / COMMIT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None, None
    commit, dirty = (found.get("commit"), found.get("dirty")) if isinstance(found, dict) else (None, None)
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        return None, None
    return commit, dirty if isinstance(dirty, bool) else None
