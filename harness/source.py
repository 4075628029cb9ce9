"""Which source of the harness this is: the checksum that stands for it in identities, and the commit it lies in."""

from __future__ import annotations

import hashlib
import importlib.resources
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from harness.catalogue.tuned import ENDING

SOURCES = ("harness", "harness.methods", "harness.suites")
APART = ("harness.methods", "harness.suites", "harness.published")
"""Packages with a folder of their own in a checkout; published numbers move no run."""


@cache
def source_checksum() -> str:
    """Return the SHA-256 over the harness's own Python and TOML files: relative path and bytes of each, sorted.

    Tuned learning rates are left out: they enter a run's identity by themselves, and writing them changes no other run.
    """
    return checksum_of({package: Path(str(importlib.resources.files(package))) for package in SOURCES})


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
    """Return commit and dirty flag of the checkout that this package lies in; (None, None) outside a checkout."""
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
        return None, None
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return (commit.strip() if commit else None), (bool(changes.strip()) if changes is not None else None)
