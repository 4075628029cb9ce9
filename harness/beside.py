"""The files and folders that lie beside the records and are named in them, which stay within that folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

from harness.errors import HarnessError


def _beside(name: str) -> str:
    """Return the name of a file beside the records, which stays within their folder.

    Raises:
        ValueError: it does not.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or set(name) & set("\\:\0"):
        raise ValueError("it leads out of the folder of the records")
    return name


Beside = Annotated[str, AfterValidator(_beside)]
"""A file or folder, relative to the folder of the records."""


def within(folder: Path, name: str) -> Path:
    """Return the path of what a record names, which no link leads out of the folder of the records either.

    Raises:
        HarnessError: one does.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise HarnessError(f"{path}: a link leads out of the folder of the records; move what it leads to there")
    return path
