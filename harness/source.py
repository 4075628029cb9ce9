"""Which source of the harness this is: the checksum that stands for it in identities."""

from __future__ import annotations

import hashlib
import importlib.resources
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
