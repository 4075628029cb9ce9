"""A bundle cut into parts of at most a given size: one compressed archive, split."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import IO

from harness.progress import Progress

NAME = "bundle.tar.gz"
_LEVEL = 1
"""Of gzip: wheels are compressed already, and rows shrink nearly as well as at any level."""


def write_parts(folder: Path, parts: Path, part_bytes: int, progress: Progress) -> int:
    """Write an archive of a folder's files into parts; return how many.

    Args:
        folder: What is packed.
        parts: Where they go, ``bundle.tar.gz.0000`` the first.
        part_bytes: The largest part.
        progress: Called once a file.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    total, done = sum(file.stat().st_size for file in files), 0
    with (
        _Parts(parts, part_bytes) as sink,
        gzip.GzipFile(filename="", fileobj=sink, mode="wb", compresslevel=_LEVEL, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        for file in files:
            archive.add(file, file.relative_to(folder).as_posix(), filter=_nobody)
            done += file.stat().st_size
            progress("packing parts", done, total)
    return sink.count


def _nobody(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who packed it."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


class _Parts(io.RawIOBase):
    """A file that goes on in the next one when a size is reached."""

    def __init__(self, folder: Path, part_bytes: int) -> None:
        self._folder, self._part_bytes = folder, part_bytes
        self._file: IO[bytes] | None = None
        self._room = 0
        self.count = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Write all of the data."""
        view = memoryview(data)
        while view:
            if self._file is None or self._room == 0:
                self._next()
            assert self._file is not None
            taken = view[: self._room]
            self._file.write(taken)
            self._room -= len(taken)
            view = view[len(taken) :]
        return len(data)

    def close(self) -> None:
        """End the last part."""
        if self._file is not None:
            self._file.close()
        super().close()

    def _next(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = (self._folder / f"{NAME}.{self.count:04d}").open("wb")
        self._room = self._part_bytes
        self.count += 1
