"""Runs of named configurations on a tiny model, from task to record as the engine makes them, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.datasets import load_datasets
from harness.catalogue.labels import load_labels
from harness.catalogue.models import BaseModelSpec
from harness.engine import run_training, runner
from harness.method import METHODS, BlockScoreRequest
from harness.record import Record
from harness.settings import EvaluationSettings, TrainSettings
from harness.task import RunTask
from tests.records import ENVIRONMENT, TRAIN, make_spec

SMALL = {
    "active_layers": 2,
    "active_share": 0.5,
    "interval_steps": 2,
    "rank": 4,
    "score_interval": 2,
    "score_rows": 2,
    "update_gap": 3,
}
"""Settings that a published configuration gets to fit a tiny model."""
SCORES = [4.0, 3.0, 2.0, 1.0]
"""Of the blocks, in the place of those of a calibration text."""


def task_of(label: str, folder: Path, work: Path, **changes: Any) -> RunTask:
    """Return the task of a label, or of a plug-in by its name with the defaults of its settings.

    ``changes`` are settings of the method, of training, or of the task.
    """
    entry = load_labels().get(label)
    name = label if entry is None else entry.method
    method = METHODS.get(name)
    config = method.Config
    given = config().model_dump() if entry is None else entry.values()
    values = {key: value for key, value in given.items() if key in config.model_fields}
    values |= {key: value for key, value in SMALL.items() if key in values}
    if changes.get("dtype", TRAIN.dtype) == "fp32" and "master_weights" in values:
        values["master_weights"] = False  # refused of fp32 weights
    values |= {key: value for key, value in changes.items() if key in config.model_fields}
    train = {"data": "random-tokens", "loss_on": "all", "sequence_length": 16, "num_steps": 8, "learning_rate": 1e-2}
    train |= {key: value for key, value in changes.items() if key in TrainSettings.model_fields}
    spec = make_spec(
        label=label,
        method=name,
        config=config.model_validate(values).model_dump(mode="json"),
        train=TrainSettings(**{**TRAIN.model_dump(), **train}) if method.trains else None,
        evaluation=EvaluationSettings(tasks=()),
        sources={"train": "random-tokens"},
    )
    return RunTask(
        spec=spec,
        uuid="u",
        model=BaseModelSpec(name="tiny", architecture="LlamaForCausalLM", folder=folder),
        datasets=load_datasets(),
        model_folder=folder,
        rows_folder=None,
        cache_folder=work,
        work_folder=work,
        run_id=spec.run_id,
        **{key: value for key, value in changes.items() if key in ("checkpoint_folder", "checkpoint_every")},
    )


def record_of(task: RunTask, patch: pytest.MonkeyPatch) -> Record:
    """Return the record of a task as a file would give it back; block scores are at hand."""

    def scores(run: Any, method: Any, *_: Any) -> dict[BlockScoreRequest, list[float]]:
        request = method.block_scores_needed()
        return {} if request is None else {request: SCORES}

    patch.setattr(run_training, "_block_scores", scores)
    patch.setattr(runner, "describe_environment", lambda: ENVIRONMENT)
    record = runner.execute(task, lambda *_: None)
    return Record.model_validate_json(record.model_dump_json())
