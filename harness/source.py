"""Which source of the harness this is: the checksum that stands for it in identities, and the commit it lies in."""

from __future__ import annotations

import hashlib
import importlib.resources
import subprocess
from functools import cache
from pathlib import Path

from harness.tuned import ENDING

SOURCES = ("harness", "harness.methods", "harness.suites")


@cache
def source_checksum() -> str:
    """Return the SHA-256 over the harness's own Python and TOML files: relative path and bytes of each, sorted.

    Tuned learning rates are left out: they enter a run's identity by themselves, and writing them changes no other run.
    """
    digest = hashlib.sha256()
    for package in SOURCES:
        root = Path(str(importlib.resources.files(package)))
        for file in sorted(root.rglob("*")):
            if file.suffix in {".py", ".toml"} and not file.name.endswith(ENDING) and file.is_file():
                digest.update(f"{package}/{file.relative_to(root).as_posix()}\n".encode())
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
