"""Tasks and evaluation rows of the user's own: where they lie, as a suite, a catalogue or the command line says it.

What is in them is read elsewhere (``harness.evaluation.own_tasks``): a contract names places, and opens none.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from harness.errors import HarnessError
from harness.settings import Name, Strict


def _or_one(schema: dict[str, Any]) -> None:
    """Have an editor take one path where there may be a list of them."""
    listed = {key: schema.pop(key) for key in ("type", "items") if key in schema}
    schema["anyOf"] = [listed["items"], listed]


def _or_a_path(schema: dict[str, Any]) -> None:
    """Have an editor take a path where there may be a table."""
    by_name = schema["patternProperties"]
    schema["patternProperties"] = {name: {"anyOf": [{"type": "string"}, table]} for name, table in by_name.items()}


class TaskRows(Strict):
    """Files whose rows stand in for those of a task of lm-eval's, with the fields that its YAML reads."""

    scored: Path
    """The rows that are scored: JSON, JSON Lines or Parquet."""
    fewshot: Path | None = None
    """From which few-shot examples are drawn; None: there are none to draw."""


class TaskTable(Strict):
    """``[tasks]`` of a suite or a catalogue."""

    include_path: tuple[Path, ...] = Field(default=(), json_schema_extra=_or_one)
    """Folders with lm-eval's YAML files of tasks of one's own, one or a list, relative to the file that names them."""
    rows: dict[Name, TaskRows] = Field(default_factory=dict, json_schema_extra=_or_a_path)
    """By task of lm-eval's the rows that are scored in place of its own, as a file or as ``{scored, fewshot}``."""

    @field_validator("include_path", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value

    @field_validator("rows", mode="before")
    @classmethod
    def _scored_alone(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {task: {"scored": rows} if isinstance(rows, str | Path) else rows for task, rows in value.items()}

    def placed(self, folder: Path) -> TaskTable:
        """Return this with its paths, relative to a folder, made absolute."""
        rows = {
            task: TaskRows(scored=_at(folder, rows.scored), fewshot=rows.fewshot and _at(folder, rows.fewshot))
            for task, rows in self.rows.items()
        }
        return TaskTable(include_path=tuple(_at(folder, path) for path in self.include_path), rows=rows)


class TaskPlaces(TaskTable):
    """All of them together, as a process is handed them."""

    trusted: tuple[Path, ...] = ()
    """Of the folders those whose code may be run, which no file but only the command line can say."""

    @property
    def any(self) -> bool:
        """Return whether there are any."""
        return bool(self.include_path or self.rows)

    def with_table(self, table: TaskTable, where: str) -> TaskPlaces:
        """Return these with those of a file.

        Args:
            table: Its ``[tasks]``, paths absolute.
            where: How to call the file in a message.

        Raises:
            HarnessError: the rows of a task are named already.
        """
        for task, rows in table.rows.items():
            if self.rows.get(task, rows) != rows:
                raise HarnessError(f"{where}: [tasks.rows]: the rows of task '{task}' are given already: leave one out")
        paths = tuple(dict.fromkeys((*self.include_path, *table.include_path)))
        return self.model_copy(update={"include_path": paths, "rows": {**self.rows, **table.rows}})

    def with_folders(self, include: Iterable[Path], trusted: Iterable[Path]) -> TaskPlaces:
        """Return these with folders of the command line."""
        paths = tuple(dict.fromkeys((*self.include_path, *include)))
        return self.model_copy(update={"include_path": paths, "trusted": tuple(dict.fromkeys(trusted))})

    def trusts(self, folder: Path) -> bool:
        """Return whether the code in a folder may be run."""
        return folder.resolve() in {place.resolve() for place in self.trusted}


def _at(folder: Path, path: Path) -> Path:
    return (folder / path.expanduser()).absolute()
