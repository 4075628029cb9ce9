"""Folders that are written to, looked at without changing them: room, permission, file locks, size."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from harness.diagnosis import PlaceFacts

LOCK_SECONDS = 5.0
_SECOND_PROCESS = "import sys, filelock; filelock.FileLock(sys.argv[1]).acquire(timeout=0)"


def place_facts(folder: Path, *, size: bool = False, locks: bool = False) -> PlaceFacts:
    """Return what can be said of a folder; one that does not exist is judged by the folder it would be made in.

    Args:
        folder: Need not exist.
        size: Add up the files in it.
        locks: Try whether a file lock there keeps another process out.
    """
    folder = folder.expanduser().absolute()
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        free = shutil.disk_usage(nearest).free
    except OSError:
        free = None
    writable, locked = _try(nearest, locks)
    return PlaceFacts(
        path=str(folder),
        exists=folder.is_dir(),
        writable=writable,
        free_bytes=free,
        size_bytes=_size(folder) if size else None,
        locks=locked,
    )


def _try(folder: Path, locks: bool) -> tuple[bool, bool | None]:
    """Return whether a file can be written in a folder, and whether a lock on one is seen by another process."""
    try:
        with tempfile.TemporaryDirectory(prefix=".harness-doctor-", dir=folder) as scratch:
            (Path(scratch) / "file").write_bytes(b"x")
            return True, _locks(Path(scratch) / "lock") if locks else None
    except OSError:
        return False, None


def _locks(file: Path) -> bool:
    command = [sys.executable, "-P", "-c", _SECOND_PROCESS, str(file)]
    try:
        with FileLock(file, timeout=LOCK_SECONDS):
            held = subprocess.run(command, capture_output=True, check=False, timeout=2 * LOCK_SECONDS)
        free = subprocess.run(command, capture_output=True, check=False, timeout=2 * LOCK_SECONDS)
    except (OSError, NotImplementedError, subprocess.TimeoutExpired):  # filelock's Timeout is an OSError
        return False
    return held.returncode != 0 and free.returncode == 0


def _size(folder: Path) -> int:
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(base) / name).lstat().st_size
            except OSError:  # gone meanwhile
                continue
    return total
