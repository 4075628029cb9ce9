"""Files: read with one sentence where that fails, written so that they last.

What is written appears whole or not at all. It is made beside its place under one kind of name (:func:`beside`),
flushed and renamed, and then its folder is flushed: without that a crash of the machine may keep a later file and lose
the name of an earlier one. Of two files of which one names the other, the named one is therefore written first and is
there whenever the other is. Lines are appended as durably. Nothing else in the package flushes to the disk or renames.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import HarnessError

ENDING = ".part"
"""Of the name under which something is made beside its place."""


def reason_of(error: OSError) -> str:
    """Return why the system refused, in its own words."""
    return error.strerror or str(error)


@contextlib.contextmanager
def said_as(what: str, advice: str = "") -> Iterator[None]:
    """Say ``WHAT: REASON; ADVICE`` where the system refuses something inside.

    Raises:
        HarnessError: it does.
    """
    try:
        yield
    except OSError as error:
        raise HarnessError(f"{what}: {reason_of(error)}{advice and f'; {advice}'}") from error


def read_bytes(file: Path, where: str | None = None) -> bytes:
    """Return the bytes of a file.

    Args:
        file: What is read.
        where: How it is called in a sentence; None: by its path.

    Raises:
        HarnessError: it cannot be read.
    """
    with said_as(f"{where or file}: cannot be read"):
        return file.read_bytes()


def read_bytes_if_there(file: Path) -> bytes | None:
    """Return the bytes of a file, or None where there is none.

    Raises:
        HarnessError: it is there but cannot be read.
    """
    with said_as(f"{file}: cannot be read"):
        try:
            return file.read_bytes()
        except FileNotFoundError:
            return None


def read_text(file: Path, where: str | None = None) -> str:
    """Return the text of a UTF-8 file, without the mark that some editors put at its start; line ends become ``\\n``.

    Args:
        file: What is read.
        where: How it is called in a sentence; None: by its path.

    Raises:
        HarnessError: it cannot be read, or is no UTF-8.
    """
    where = where or str(file)
    with said_as(f"{where}: cannot be read"):
        try:
            return file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise HarnessError(f"{where}: is not UTF-8 text (byte {error.start})") from error


def parse_json(text: str | bytes, where: str) -> Any:
    """Return the value that JSON text spells.

    Args:
        text: Of a file or of one of its lines.
        where: How it is called in a sentence.

    Raises:
        HarnessError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise HarnessError(f"{where}: is not JSON: nested too deeply") from error
    except ValueError as error:  # also of a number with more digits than Python reads
        raise HarnessError(f"{where}: is not JSON: {error}") from error


def read_json(file: Path, where: str | None = None) -> Any:
    """Return the value in a JSON file.

    Args:
        file: What is read.
        where: How it is called in a sentence; None: by its path.

    Raises:
        HarnessError: it cannot be read, or is not JSON.
    """
    return parse_json(read_text(file, where), where or str(file))


def beside(target: Path) -> Path:
    """Return a place in the same folder, so on the same file system, that nobody else takes."""
    return target.parent / f".{target.name}.{os.urandom(4).hex()}{ENDING}"


def sweep_beside(target: Path) -> None:
    """Remove what killed processes left beside a place; the caller knows that no living one is at work there.

    Args:
        target: The place; its name may be a pattern.
    """
    for left in target.parent.glob(f".{target.name}.*{ENDING}"):
        remove(left)


def remove(path: Path) -> None:
    """Remove a file, a link or as much of a folder as can be removed, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a path beside ``target``; the file or folder made there takes its place at the end, unless it raises.

    Raises:
        OSError: it cannot take its place; what was there stays.
    """
    part = beside(target)
    try:
        yield part
        put(part, target)
    finally:
        remove(part)


def write_file(target: Path, content: str | bytes) -> None:
    """Put content (text as UTF-8, line ends kept) in the place of a file, whole and durably.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    make_folder(target.parent)
    with replacing(target) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def put(made: Path, target: Path, aside: Path | None = None) -> None:
    """Move a file or folder into its place durably, instead of what is there.

    A folder steps aside for another first and is removed last: killed between the two, nothing is in its place.

    Args:
        made: On the file system of ``target``.
        target: Its place.
        aside: Where a folder that is there waits; None: beside its place.

    Raises:
        OSError: it cannot be moved; what was there is there.
    """
    make_folder(target.parent)
    sync_tree(made)
    old = None
    if made.is_dir() and target.is_dir() and not target.is_symlink():
        old = aside if aside is not None else beside(target)
        target.replace(old)
    try:
        made.replace(target)
    except OSError:
        if old is not None:
            old.replace(target)
        raise
    sync(target.parent)
    if made.parent != target.parent:
        sync(made.parent)
    if old is not None:
        remove(old)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents durably, where they are not there.

    Raises:
        OSError: it cannot be made.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync(place.parent)


def sync_tree(path: Path) -> None:
    """Make a file durable, or a folder with all that is in it; links count as they are."""
    if path.is_dir() and not path.is_symlink():
        for base, _, names in os.walk(path, topdown=False):
            for file in (Path(base) / name for name in names):
                if not file.is_symlink():
                    sync(file)
            sync(Path(base))
    else:
        sync(path)


def sync(path: Path) -> None:
    """Make the content of a file durable, or which names a folder holds.

    Raises:
        OSError: the disk refuses.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems know no flushing of a folder; its names are as safe there as they can be.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


def append_line(file: Path, line: bytes) -> None:
    """Append one line and make it durable; nothing of it stays when that fails. The caller holds the file's lock.

    A line that a crash cut off is moved to ``<file>.cut`` first.

    Raises:
        OSError: it could not be written.
    """
    # Unbuffered: closing a buffer that could not be emptied would write what is left of it after the cut below.
    with file.open("ab", buffering=0) as stream:
        _set_cut_line_aside(file)
        size = stream.seek(0, os.SEEK_END)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[stream.write(rest) :]
            os.fsync(stream.fileno())
            if size == 0:
                sync(file.parent)
        except OSError:
            os.truncate(file, size)
            raise


def _set_cut_line_aside(file: Path) -> None:
    """Move what follows the last newline to ``<file>.cut``; the caller holds the lock."""
    with file.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return
        stream.seek(-1, os.SEEK_END)
        if stream.read(1) == b"\n":
            return
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    with Path(f"{file}.cut").open("ab") as stream:
        stream.write(data[whole:] + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.truncate(file, whole)
