"""Files of a report: written beside their place and renamed into it, so that a reader never meets half of one."""

from __future__ import annotations

import os
from pathlib import Path

from harness.errors import HarnessError


def make_folder(folder: Path) -> None:
    """Make a folder and its parents.

    Raises:
        HarnessError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HarnessError(
            f"the report's folder {folder} cannot be made: {error.strerror or error}; name another with --out"
        ) from error


def replace_file(file: Path, content: str | bytes) -> Path:
    """Put ``content`` (text as UTF-8, line ends kept) in the place of ``file`` and return ``file``.

    Raises:
        HarnessError: it cannot be written; what was there stays.
    """
    data = content.encode("utf-8", errors="replace") if isinstance(content, str) else content
    beside = file.with_name(f".{file.name}-{os.getpid()}")
    try:
        try:
            beside.write_bytes(data)
            beside.replace(file)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise HarnessError(f"{file}: cannot be written: {error.strerror or error}; name another with --out") from error
    return file
