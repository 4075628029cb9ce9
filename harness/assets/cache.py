"""The cache of prepared files: checksums, and files and folders that appear whole or not at all.

Whatever is prepared is written beside its place and renamed into it while a file lock is held, so that two processes at
once never see half of it, and a killed one leaves nothing that counts. A folder is complete when its manifest, written
last and before the rename, names every file with its size and checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.errors import HarnessError
from harness.files import make_folder, read_json, reason_of, replacing, said_as, sweep_beside, write_file
from harness.progress import Progress, silent

MANIFEST = "manifest.json"
NEVER_READ = frozenset(
    {".md", ".rst", ".pdf", ".html", ".log", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"}
    | {".py", ".ipynb", ".sh", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"}
)
"""Endings of files beside weights that nothing here reads: no code of a folder's is run, no pickle opened."""
SETTLED_SECONDS = 2.0
"""The coarsest clock of a file system, FAT's: a file younger than that may change without another time."""
_CHUNK = 1 << 20


def cache_root() -> Path:
    """Return the cache: $HARNESS_CACHE, else finetune-harness in $XDG_CACHE_HOME, else in ~/.cache."""
    if own := os.environ.get("HARNESS_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "finetune-harness"


def file_checksum(file: Path, progress: Progress = silent) -> str:
    """Return the SHA-256 of a file in hex.

    Raises:
        HarnessError: the file cannot be read.
    """
    with said_as(f"{file}: cannot be read"):
        total, done, digest = file.stat().st_size, 0, hashlib.sha256()
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                progress(f"checksum of {file.name}", done, total)
    return digest.hexdigest()


def known_file_checksum(file: Path, progress: Progress = silent) -> str:
    """Return the SHA-256 of a file, remembered by path, size, times and the file's own number on its disk.

    The time of a change of state is set by nobody but the system, so that a file replaced by one of equal size and
    equal modification time is noticed. One that was changed a moment ago may change again within the same tick of the
    disk's clock: its checksum is not remembered.

    Raises:
        HarnessError: the file cannot be read.
    """
    memo = cache_root() / "checksums.json"
    with said_as(f"{file}: cannot be read"):
        status = file.stat()
    key = f"{file.resolve()}|{_state(status)}"
    known = read_table(memo)
    if isinstance(checksum := known.get(key), str):
        return checksum
    checksum = file_checksum(file, progress)
    if _is_settled(status):
        update_table(memo, {key: checksum})
    return checksum


def _state(status: os.stat_result) -> str:
    """Return what changes when a file is replaced or written to, as text."""
    return f"{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}|{status.st_ino}"


def _is_settled(status: os.stat_result) -> bool:
    return time.time() - max(status.st_mtime, status.st_ctime) > SETTLED_SECONDS


def weights_checksum(folder: Path, progress: Progress = silent) -> str:
    """Return the checksum of a folder that ``from_pretrained`` loads, over the files that can have a say in it.

    Documents, pictures, programs and weights in other formats than safetensors are never read: they do not count.
    Whatever is not known to be one of these does.

    Raises:
        HarnessError: as :func:`folder_checksum`.
    """
    return folder_checksum(folder, progress, counts=lambda path: not _is_beside_the_weights(path))


def _is_beside_the_weights(path: Path) -> bool:
    name = path.name.lower()
    return (
        path.suffix.lower() in NEVER_READ
        or name.partition(".")[0] in ("readme", "license", "licence", "notice", "changelog", "use_policy")
        or (name.endswith(".bin") and name.startswith(("pytorch_model", "training_args", "optimizer", "scheduler")))
    )


def folder_checksum(
    folder: Path, progress: Progress = silent, *, counts: Callable[[Path], bool] = lambda path: True
) -> str:
    """Return a SHA-256 over the sorted relative names and checksums of a folder's files; hidden ones do not count.

    Args:
        folder: Whose files.
        progress: Called while they are hashed.
        counts: Whether a file counts.

    Raises:
        HarnessError: there is no such folder, it holds no file, or one cannot be read.
    """
    if not folder.is_dir():
        raise HarnessError(f"{folder}: there is no such folder")
    files = sorted(
        (path.relative_to(folder).as_posix(), path)
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts) and counts(path)
    )
    if not files:
        raise HarnessError(f"{folder}: the folder holds no file")
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\0{known_file_checksum(path, progress)}\n".encode())
    return digest.hexdigest()


def read_table(file: Path) -> dict[str, Any]:
    """Return the table in a JSON file of the cache; empty when there is none or it is spoilt."""
    try:
        value = read_json(file)
    except HarnessError:
        return {}
    return value if isinstance(value, dict) else {}


def update_table(file: Path, changes: dict[str, Any]) -> None:
    """Merge ``changes`` into the table in a JSON file of the cache, under its lock.

    Raises:
        HarnessError: the cache cannot be written.
    """
    with _locked(file):
        write_file(file, json.dumps(read_table(file) | changes, indent=1, sort_keys=True))


def build_file(target: Path, build: Callable[[Path], None], *, checksum: str | None = None) -> Path:
    """Return ``target``, built under a lock by ``build(part)`` unless it is there.

    Args:
        target: A file inside the cache.
        build: Writes the path it is given.
        checksum: SHA-256 that the file must have, one that is there already too.

    Raises:
        HarnessError: the cache cannot be written, or the checksum is another.
    """
    if target.is_file():
        if checksum is not None and (found := file_checksum(target)) != checksum:
            raise HarnessError(f"{target}: has SHA-256 {found}, expected {checksum}; delete it and prepare again")
        return target
    with _locked(target):
        if not target.is_file():
            with replacing(target) as part:
                build(part)
                if checksum is not None and (found := file_checksum(part)) != checksum:
                    raise HarnessError(f"{target.name}: has SHA-256 {found}, expected {checksum}; get the file anew")
    return target


def build_folder(target: Path, build: Callable[[Path], None]) -> Path:
    """Return ``target``, a complete folder, built under a lock by ``build(part)`` unless it is there.

    One that is there has the checksums of its manifest, all read again only when the size or time of one is another.

    Raises:
        HarnessError: the cache cannot be written, or a file in it is no longer what was written.
    """
    if is_complete(target):
        _check_unspoilt(target)
        return target
    with _locked(target):
        if is_complete(target):
            return target
        with replacing(target) as part:
            part.mkdir()
            build(part)
            write_manifest(part)
    return target


def write_manifest(folder: Path) -> None:
    """Write name, size and checksum of every file of a folder into its manifest."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_checksum(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_file(folder / MANIFEST, json.dumps({"files": files}, indent=1))


def manifest_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and checksum by file name, as the manifest of a folder says; empty where there is none."""
    files = read_table(folder / MANIFEST).get("files")
    return files if isinstance(files, dict) else {}


def is_complete(folder: Path) -> bool:
    """Return whether a folder has a manifest and every file in it with its size."""
    files = manifest_of(folder)
    try:
        return bool(files) and all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError):  # a manifest that is none
        return False


def spoilt_files(folder: Path) -> list[str]:
    """Return the files of a folder whose checksum is no longer the manifest's: a full check, slow on weights."""
    return [
        name
        for name, entry in manifest_of(folder).items()
        if not (folder / name).is_file() or file_checksum(folder / name) != entry.get("sha256")
    ]


def _check_unspoilt(folder: Path) -> None:
    """Refuse a folder of which a file is no longer what was written; one that was found whole is remembered."""
    files = [folder / name for name in (MANIFEST, *manifest_of(folder))]
    states = "\n".join(f"{file} {_state(file.stat())}" for file in files)
    memo, key = cache_root() / "checksums.json", f"{folder}|{hashlib.sha256(states.encode()).hexdigest()}"
    if read_table(memo).get(key) == "whole":
        return
    if spoilt := spoilt_files(folder):
        raise HarnessError(
            f"{folder / spoilt[0]}: has another SHA-256 than when it was made: delete {folder} and prepare again"
        )
    update_table(memo, {key: "whole"})


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the lock of a place in the cache; what a killed process left beside it is removed."""
    try:
        make_folder(target.parent)
        with FileLock(target.parent / f".{target.name}.lock"):
            sweep_beside(target)
            yield
    except OSError as error:
        place = error.filename or target
        raise HarnessError(
            f"{place}: the cache cannot be written: {reason_of(error)}; set HARNESS_CACHE to a folder that can"
        ) from error
