"""Tasks of one's own: which YAML files of some folders define which names, what a name stands for, and what it is.

Names, groups, tags and ``include`` are lm-eval's (0.4.13, tasks/_index.py and _factory.py). Differences: a name that
lm-eval has itself, or that two files define, is refused when it is asked for; code is refused, unless the folder is
trusted; paths of data are relative to the YAML that says them, not to where a process happens to run. No lm_eval here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.assets.cache import known_file_checksum as _checksum
from harness.catalogue.packaged_tasks import MMLU_GROUPS
from harness.catalogue.tasks import TaskPlaces
from harness.errors import HarnessError, near_miss
from harness.evaluation.own_index import IGNORED, Entry, Index, read_index
from harness.evaluation.own_rules import TASK_NAME, Files, check_group, check_task
from harness.evaluation.task_names import MMLU_PREFIX, is_stock_name, stock_tasks_folder
from harness.evaluation.yaml_files import Code, Table
from harness.settings import EvaluationSettings
from harness.spec import GROUP_ROLE, ROWS_ROLE, SCORED, TASK_ROLE

GROUP_FIELDS = ("group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag", "include")
"""Of a group's YAML; what else it says is said to each of its tasks."""


@dataclass(frozen=True)
class OwnTask:
    """A task that may be built: read, and nothing in it refused."""

    name: str
    table: Table
    root: Path
    files: Files
    """Of its rows by split; empty where they are the hub's."""
    trusted: bool
    overrides: dict[str, Any] = field(default_factory=dict)
    """What a group says to it."""

    @property
    def config(self) -> dict[str, Any]:
        """Return what its YAML and its group say."""
        return self.table.values | self.overrides


@dataclass(frozen=True)
class OwnGroup:
    """A group: its own settings and what it holds, in order."""

    name: str
    config: dict[str, Any]
    children: tuple[OwnGroup | str, ...]
    """Groups and names of tasks, own ones or lm-eval's."""

    def leaves(self) -> Iterator[str]:
        """Yield the names of its tasks."""
        for child in self.children:
            if isinstance(child, OwnGroup):
                yield from child.leaves()
            else:
                yield child


class OwnTasks:
    """The tasks of some folders. Files are read when they are first asked for."""

    def __init__(self, places: TaskPlaces) -> None:
        self.places = places
        self._overrides: dict[str, dict[str, Any]] = {}

    def __contains__(self, name: object) -> bool:
        return bool(self.places.include_path) and (name in self._index or name in self._unread)

    def names(self) -> list[Entry]:
        """Return what there is to ask for, by name."""
        return [entries[0] for _, entries in sorted(self._index.items())]

    def faults(self) -> list[str]:
        """Return why files of the folders cannot be read."""
        return list(dict.fromkeys(self._unread.values()))

    def expand(self, name: str) -> tuple[str, ...]:
        """Return the tasks that a name stands for, in order.

        Raises:
            HarnessError: there is no such name, it means two things, or something in it cannot be.
        """
        entry = self._entry(name)
        if entry.kind == "task":
            return (name,)
        if entry.kind == "tag":
            return entry.members
        return tuple(self.group(name).leaves())

    def is_group(self, name: str) -> bool:
        """Return whether a name is a group's."""
        return name in self and self._entry(name).kind == "group"

    def group(self, name: str) -> OwnGroup:
        """Return a group.

        Raises:
            HarnessError: it is none, or holds what it may not.
        """
        return self._group(name, {}, ())

    def task(self, name: str) -> OwnTask:
        """Return a task, with what the group that was expanded last says to it.

        Raises:
            HarnessError: there is no such task, or it says what it may not.
        """
        entry = self._entry(name)
        table, trusted = entry.table, self.places.trusts(entry.root)
        if entry.kind != "task" or table is None:
            raise HarnessError(f"{entry.file}: '{name}' is no single task")
        overrides = self._overrides.get(name, {})
        files = check_task(Table(table.file, table.values | overrides, table.places), entry.root, trusted=trusted)
        return OwnTask(name, table, entry.root, files, trusted, overrides)

    def identities(self, settings: EvaluationSettings) -> dict[str, str]:
        """Return what identifies own tasks, groups and rows among what is asked for, by role of a run's sources.

        Args:
            settings: What is scored.

        Raises:
            HarnessError: one cannot be read, or says what it may not.
        """
        found: dict[str, str] = {}
        leaves: list[str] = []
        for name in settings.tasks:
            of_name = self.expand(name) if name in self else (name,)
            if self.is_group(name):
                found[f"{GROUP_ROLE}{name}"] = f"yaml:{_digest(_said(self.group(name).config))}"
            elif name in self and self._entry(name).kind == "tag":
                found[f"{GROUP_ROLE}{name}"] = f"tag:{_digest(list(of_name))}"
            if of_name != (name,) and settings.subtasks is not None:
                of_name = tuple(task for task in of_name if task in settings.subtasks)
            leaves += of_name
        for name in leaves:
            if name in self:
                found |= _identity(self.task(name))
        of_mmlu = settings.subtasks is None and not set(settings.tasks).isdisjoint(MMLU_GROUPS)
        for name, rows in self.places.rows.items():
            if name in (settings.subtasks or leaves) or (of_mmlu and name.startswith(MMLU_PREFIX)):
                parts: Files = {f"{SCORED}rows": (rows.scored,), "fewshot": (rows.fewshot,) if rows.fewshot else ()}
                found[f"{ROWS_ROLE}{name}"] = _rows_identity(parts)
        return found

    def check_rows(self, settings: EvaluationSettings) -> None:
        """Refuse ``rows = 'own'`` where a task has none of its own.

        Raises:
            HarnessError: one of lm-eval's has not.
        """
        for name in settings.tasks if settings.rows == "own" else ():
            for task in self.expand(name) if name in self else (name,):
                given = task in self or task in self.places.rows
                if not given and not (task in MMLU_GROUPS and self.places.rows):
                    raise HarnessError(
                        f"rows = 'own', and task '{task}' is lm-eval's: name its rows in [tasks.rows], or set rows"
                    )

    def needs_network(self, tasks: Iterable[str]) -> bool:
        """Return whether the rows of one of the tasks may have to be fetched."""
        leaves = [leaf for name in tasks if name in self for leaf in self.expand(name) if leaf in self]
        return any(not self.task(leaf).files for leaf in leaves)

    def _entry(self, name: str) -> Entry:
        entries = self._index.get(name, [])
        if not entries:
            if name in self._unread:
                raise HarnessError(self._unread[name])
            unread = f"; {self.faults()[0]}" if self._unread else ""
            raise HarnessError(f"{self._where()} define no task '{name}'{near_miss(name, self._index)}{unread}")
        if not TASK_NAME.match(name):
            raise HarnessError(
                f"{entries[0].file}: {name!r:.80} is no name of a task: take letters, digits, . _ and -, at most 64"
            )
        if len(entries) > 1:
            raise HarnessError(
                f"task '{name}' is defined twice, in {entries[0].file} and in {entries[1].file}: rename one of them"
            )
        if is_stock_name(name):
            raise HarnessError(
                f"{entries[0].file}: '{name}' is the name of a task or a group that lm-eval has itself, and a name "
                "means one thing: choose another"
            )
        return entries[0]

    def _where(self) -> str:
        return " and ".join(map(str, self.places.include_path))

    def _group(self, name: str, said: dict[str, Any], above: tuple[str, ...]) -> OwnGroup:
        entry = self._entry(name)
        if entry.kind != "group" or entry.table is None:
            raise HarnessError(f"{entry.file}: '{name}' is no group")
        if name in above:
            raise HarnessError(f"{entry.file}: group '{name}' holds itself, by {' -> '.join((*above, name))}")
        check_group(entry.table)
        return self._filled(name, entry.table.values, said, (*above, name), entry)

    def _filled(
        self, name: str, config: dict[str, Any], said: dict[str, Any], above: tuple[str, ...], entry: Entry
    ) -> OwnGroup:
        members = config.get("task")
        members = [members] if isinstance(members, str) else members
        if not isinstance(members, list) or not members:
            raise HarnessError(f"{entry.file}: group '{name}' names no tasks: give it a list, task")
        to_all = {key: value for key, value in config.items() if key not in GROUP_FIELDS} | said
        children: list[OwnGroup | str] = []
        for member in members:
            children += self._member(name, member, to_all, above, entry)
        own = {key: value for key, value in config.items() if key in GROUP_FIELDS and key not in ("tag", "include")}
        return OwnGroup(name, own, tuple(children))

    def _member(
        self, group: str, member: Any, said: dict[str, Any], above: tuple[str, ...], entry: Entry
    ) -> list[OwnGroup | str]:
        """Return what one line of a group's list stands for, and note what is said to it."""
        if isinstance(member, dict):
            name = member.get("group", member.get("task"))
            own = {key: value for key, value in member.items() if key not in ("group", "task")}
            if "group" in member and isinstance(name, str) and name not in self:
                return [self._filled(f"{group}::{name}", member, said, above, entry)]
            said = said | own
        else:
            name = member
        if not isinstance(name, str) or not TASK_NAME.match(name):
            raise HarnessError(f"{entry.file}: group '{group}' holds {name!r:.60}, which is no name of a task")
        if name not in self:
            if not is_stock_name(name):
                raise HarnessError(
                    f"{entry.file}: group '{group}' holds '{name}', which neither lm-eval nor {self._where()} has"
                )
            if said:
                raise HarnessError(
                    f"{entry.file}: group '{group}' sets {sorted(said)[0]} of '{name}', which is lm-eval's: write a "
                    "task of your own that includes what it needs"
                )
            return [name]
        if self._entry(name).kind == "group":
            return [self._group(name, said, above)]
        names = self.expand(name)
        for task in names:
            self._overrides[task] = said
        return list(names)

    @cached_property
    def _read(self) -> Index:
        return read_index(self.places)

    @property
    def _index(self) -> dict[str, list[Entry]]:
        return self._read.entries

    @property
    def _unread(self) -> dict[str, str]:
        return self._read.unread


def check_places(places: TaskPlaces) -> None:
    """Refuse folders and files that are not there, and trust in what is no folder of tasks.

    Raises:
        HarnessError: one is not.
    """
    for folder in places.include_path:
        if not folder.is_dir():
            raise HarnessError(f"include_path: {folder}: there is no such folder")
    for folder in places.trusted:
        if folder.resolve() not in {path.resolve() for path in places.include_path}:
            raise HarnessError(f"--trust-tasks {folder}: is none of the folders of tasks, so nothing in it is used")
    for task, rows in places.rows.items():
        if stock_tasks_folder() is not None and not is_stock_name(task):
            raise HarnessError(f"[tasks.rows]: lm-eval has no task '{task}': an own task's YAML names its rows itself")
        for file in filter(None, (rows.scored, rows.fewshot)):
            if not file.is_file():
                raise HarnessError(f"[tasks.rows]: {task}: there is no file {file}")
            if file.suffix not in (".jsonl", ".json", ".parquet"):
                raise HarnessError(
                    f"[tasks.rows]: {task}: {file} is neither JSON, JSON Lines nor Parquet, in which a number is told "
                    "from text"
                )
        if rows.fewshot is not None and _checksum(rows.fewshot) == _checksum(rows.scored):
            raise HarnessError(
                f"[tasks.rows]: {task}: the few-shot examples are the rows that are scored, so that prompts would hold "
                "the answer: name other rows as fewshot"
            )


def _identity(task: OwnTask) -> dict[str, str]:
    """Return what identifies a task: what it says, the code beside it where that may run, and its rows."""
    said: dict[str, Any] = {"config": _said(task.config)}
    if task.files:
        options = {key: value for key, value in task.config["dataset_kwargs"].items() if key != "data_files"}
        said["config"] = said["config"] | {"dataset_kwargs": _said(options)}
    if task.trusted:
        code = sorted(file for file in task.root.rglob("*.py") if not set(IGNORED) & set(file.parts))
        said["code"] = {file.relative_to(task.root).as_posix(): _checksum(file) for file in code}
    scored = task.config.get("test_split") or task.config.get("validation_split")
    files = {f"{SCORED if split == scored else ''}{split}": of_split for split, of_split in task.files.items()}
    found = {f"{TASK_ROLE}{task.name}": f"yaml:{_digest(said)}"}
    return found | ({f"{ROWS_ROLE}{task.name}": _rows_identity(files)} if task.files else {})


def _rows_identity(files: Files) -> str:
    """Return what identifies rows: ``split:SHA-256`` of every file."""
    return " ".join(f"{split}:{_checksum(file)}" for split in sorted(files) for file in files[split])


def _said(value: Any) -> Any:
    """Return a value as JSON has it, code as its text."""
    if isinstance(value, Code):
        return {value.tag: value.text}
    if isinstance(value, dict):
        return {str(key): _said(inner) for key, inner in value.items()}
    return [_said(inner) for inner in value] if isinstance(value, list) else value


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
