"""One side of a comparison: records or pytest-benchmark's JSON, from a file, a folder or a git revision."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from harness.beside import within
from harness.errors import HarnessError
from harness.files import parse_json, read_bytes, read_bytes_if_there, said_as
from harness.record import Record
from harness.report.reading.items import ItemFile, ItemKey, parse_items
from harness.store import parse_files

MOST_ITEMS = 2048
"""Files of items that a report holds on to: of more runs than that, pages that compare labels read some again."""
DOCUMENT = ".json"
"""Ending of a file that holds no records."""
Part = bytes | Iterable[bytes]
"""A file's bytes, whole or line by line."""
RECORDS = "results/records"
"""Where a revision keeps its records, from the top of its repository."""


@dataclass
class Side:
    """What one argument of ``harness compare`` holds."""

    name: str
    """As it was asked for, a revision with its commit."""
    records: tuple[Record, ...] = ()
    benchmarks: tuple[dict[str, Any], ...] = ()
    """Whole documents of pytest-benchmark."""
    warnings: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    """Those of the warnings that are of records that could not be read."""
    read_file: Callable[[str], bytes | None] = lambda name: None
    """Bytes of a file beside the records, or None where it is not."""
    most_items: int | None = None
    """How many files of items are held on to, those read last; None: all."""
    _items: dict[str, ItemFile | None] = field(default_factory=dict)
    _alike: dict[ItemKey, ItemKey] = field(default_factory=dict)
    """Names of items, which the files of all seeds share."""

    def forget_items(self) -> None:
        """Hold on to no file of items any more; one that is asked for again is read again."""
        self._items.clear()

    def items(self, name: str) -> ItemFile | None:
        """Return the outcomes in a file of items; None where it is missing or damaged, the latter with a warning."""
        if name not in self._items:
            try:
                data = self.read_file(name)
                found = None if data is None else parse_items(data, f"{self.name}: {name}", self._alike)
                self._items[name] = found
            except HarnessError as error:
                self.warnings.append(f"{error}; its items are not used")
                self._items[name] = None
            if self.most_items is not None and len(self._items) > self.most_items:
                del self._items[next(iter(self._items))]
        return self._items[name]


def load_side(text: str) -> Side:
    """Return what a file, a folder or a git revision (``REVISION`` or ``REVISION:PATH``) holds; a path comes first.

    Raises:
        HarnessError: it is none of these, cannot be read, or holds neither records nor a pytest-benchmark document.
    """
    path = Path(text).expanduser()
    if path.exists():
        return _from_disk(text, path)
    return _from_git(text)


def _from_disk(text: str, path: Path) -> Side:
    folder = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else sorted(path.glob("*.jsonl")) or sorted(path.glob("*.json"))
    parts: list[tuple[str, Part]] = [
        (str(file), read_bytes(file) if str(file).endswith(DOCUMENT) else _lines(file)) for file in files
    ]
    return _side(text, parts, items_beside(folder).read_file)


def _lines(file: Path) -> Iterator[bytes]:
    """Yield the lines of a file, one in memory at a time.

    Raises:
        HarnessError: it cannot be read.
    """
    with said_as(f"{file}: cannot be read"), file.open("rb") as stream:
        yield from stream


def items_beside(folder: Path) -> Side:
    """Return a side that holds no records and reads the files of items of a folder."""

    def read_file(name: str) -> bytes | None:
        return read_bytes_if_there(within(folder, name))

    return Side(str(folder), read_file=read_file, most_items=MOST_ITEMS)


def _from_git(text: str) -> Side:
    if shutil.which("git") is None:
        raise HarnessError(f"git is not installed, and no file or folder is called '{text}'")
    revision, _, within = text.partition(":")
    place = within.strip("/") or RECORDS
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if commit is None:
        raise HarnessError(
            f"'{text}' is neither a file, nor a folder, nor a revision of a git repository here; in a shallow clone "
            "fetch the revision first"
        )
    commit_id = commit.decode().strip()
    listed = (_git("ls-tree", "-r", "-z", "--name-only", "--full-tree", commit_id, "--", place) or b"").decode()
    paths = [PurePosixPath(name) for name in listed.split("\0") if name]
    top = PurePosixPath(place)
    wanted = [path for path in paths if path == top or (path.parent == top and path.suffix == ".jsonl")]
    if not wanted:
        raise HarnessError(f"revision '{revision}' ({commit_id[:12]}) has no records in {place}; name REVISION:PATH")
    known = set(paths)
    if wanted == [top]:  # a file: its items lie beside it
        top = top.parent
        beside = _git("ls-tree", "-r", "-z", "--name-only", "--full-tree", commit_id, "--", f"{top}/") or b""
        known |= {PurePosixPath(name) for name in beside.decode().split("\0") if name}

    def read_file(name: str) -> bytes | None:
        path = top / name
        return _git("cat-file", "blob", f"{commit_id}:{path}") if path in known else None

    parts: list[tuple[str, Part]] = []
    for path in wanted:
        data = _git("cat-file", "blob", f"{commit_id}:{path}")
        if data is None:
            raise HarnessError(f"git cannot read {path} of revision '{revision}' ({commit_id[:12]})")
        parts.append((f"{revision}:{path}", data))
    return _side(f"{text} ({commit_id[:12]})", parts, read_file)


def _side(name: str, parts: list[tuple[str, Part]], read_file: Callable[[str], bytes | None]) -> Side:
    documents = [document for where, data in parts if (document := _benchmark_document(where, data)) is not None]
    if documents and len(documents) == len(parts):
        return Side(name, benchmarks=tuple(documents))
    contents = parse_files(parts)
    if not contents.records:
        why = f": {contents.warnings[0]}" if contents.warnings else ""
        raise HarnessError(f"{name} holds no record and no document of pytest-benchmark{why}")
    damage = list(contents.warnings)
    return Side(name, contents.records, warnings=list(damage), damage=damage, read_file=read_file)


def _benchmark_document(where: str, data: Part) -> dict[str, Any] | None:
    """Return a whole JSON document of pytest-benchmark; None where the file is something else."""
    if not where.endswith(DOCUMENT) or not isinstance(data, bytes):
        return None
    document = parse_json(data, where)
    if not isinstance(document, dict) or not isinstance(document.get("benchmarks"), list):
        raise HarnessError(f"{where}: is no document of pytest-benchmark: it has no list 'benchmarks'")
    return document


def _git(*arguments: str) -> bytes | None:
    """Return what git prints, or None where it fails."""
    done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None
