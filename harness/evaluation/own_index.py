"""Which files of some folders define which tasks, groups and tags: read once, and nothing of it is run."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.catalogue.tasks import TaskPlaces
from harness.errors import HarnessError
from harness.evaluation.yaml_files import Table, read_table

IGNORED = ("__pycache__", ".ipynb_checkpoints")
MOST_FILES = 20_000
"""Of a folder that is searched for YAML: lm-eval itself has 14,000."""
NAME_LINE = re.compile(rb"""^["']?(?:task|group)["']?:[ ]*["']?([\w.+-]+)["']?[ ]*(?:#.*)?$""", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """What a name stands for."""

    name: str
    kind: Literal["task", "group", "tag"]
    file: Path
    root: Path
    table: Table | None = None
    """None of a tag, which is what its tasks say."""
    members: tuple[str, ...] = ()
    """Tasks of a tag."""


@dataclass(frozen=True)
class Index:
    """What folders define."""

    entries: dict[str, list[Entry]]
    """By name; more than one where files disagree."""
    unread: dict[str, str]
    """Why a file cannot be read, by the names that seem to stand in it, or by its path."""


def read_index(places: TaskPlaces) -> Index:
    """Return what the folders define. A file that cannot be read hides nothing but what it defines itself.

    Raises:
        HarnessError: a folder holds too many files.
    """
    entries: dict[str, list[Entry]] = {}
    unread: dict[str, str] = {}
    for root in places.include_path:
        tags: dict[str, list[str]] = {}
        for file in _yaml_files(root):
            try:
                table = read_table(file, None if places.trusts(root) else root)
            except HarnessError as error:
                data = file.read_bytes() if os.access(file, os.R_OK) else b""
                names = [name.decode(errors="replace") for name in NAME_LINE.findall(data)]
                unread |= {name: str(error) for name in names or [str(file)]}
                continue
            if (entry := _entry_of(table, root)) is not None:
                entries.setdefault(entry.name, []).append(entry)
                for tag in _texts(table.values.get("tag")) if entry.kind == "task" else ():
                    tags.setdefault(tag, []).append(entry.name)
        for tag, members in tags.items():
            if tag not in entries:
                entries[tag] = [Entry(tag, "tag", root, root, members=tuple(sorted(members)))]
    return Index(entries, {name: fault for name, fault in unread.items() if name not in entries})


def _yaml_files(root: Path) -> list[Path]:
    found: list[Path] = []
    seen = 0
    for base, folders, names in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if name not in IGNORED]
        seen += len(names) + len(folders)
        if seen > MOST_FILES:
            raise HarnessError(f"include_path: {root}: holds over {MOST_FILES} files: name the folder of tasks itself")
        found += [Path(base) / name for name in names if name.endswith(".yaml")]
    return sorted((file for file in found if file.is_file()), key=lambda file: file.as_posix())


def _entry_of(table: Table, root: Path) -> Entry | None:
    """Return what a file defines; None of one that others include."""
    kinds: tuple[Literal["group", "task"], ...] = ("group", "task")
    for kind in kinds:
        name = table.values.get(kind)
        if isinstance(name, str) and not (kind == "task" and "group" in table.values):
            return Entry(name, kind, table.file, root, table)
    return None


def _texts(value: Any) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
