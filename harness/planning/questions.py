"""Predictions for many runs, asked of a process of its own and kept in the cache. Imports no torch itself."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.datasets import load_datasets
from harness.device_profile import DeviceProfile
from harness.errors import HarnessError
from harness.method import METHODS, Method
from harness.models import BaseModelSpec
from harness.record import Prediction
from harness.settings import ComputeCapability
from harness.suite import RunSpec, identity

Progress = Callable[[str, int, int | None], None]
Horizon = Literal["first", "run", "all-visited"]
LIBRARIES = ("torch", "transformers", "peft")
"""Whose versions can move a prediction, beside the harness's own source."""


class PlanTask(BaseModel):
    """One run to predict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: RunSpec
    model: BaseModelSpec
    device: Literal["cuda", "cpu"]
    device_name: str | None = None
    """As torch reports it."""
    compute_capability: ComputeCapability | None = None
    """None: not known, or not an NVIDIA device."""
    profile: DeviceProfile | None = None
    """What was measured of the device, in place of what is assumed of it."""
    horizon: Horizon = "run"
    cache_folder: Path

    @property
    def num_steps(self) -> int | None:
        """Return the optimizer steps of the run, or None where the number of training rows is not known."""
        return planned_steps(self.spec)

    def key(self, source_checksum: str) -> str:
        """Return the identity of all that can move the prediction; a seed is part of it where blocks are drawn."""
        spec = self.spec.model_dump(
            mode="json", include={"method", "config", "train", "model", "calibration", "sources"}
        )
        return identity(
            {
                "spec": spec,
                "seed": self.spec.seed if samples_blocks(self.spec.method) else None,
                "num_steps": self.num_steps,
                "model": self.model.model_dump(mode="json", exclude={"summary", "licence", "gated", "folder"}),
                "device": [self.device, self.device_name, self.compute_capability],
                "profile": None if self.profile is None else self.profile.model_dump(mode="json", exclude={"rates"}),
                "horizon": self.horizon,
                "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
                "source": source_checksum,
            }
        )


class PlanAnswer(BaseModel):
    """A prediction, or why there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prediction: Prediction | None = None
    error: str | None = None
    refused: bool = False
    """True where the method refuses the run: it would be refused when it is run, too."""
    lasting: bool = True
    """False where something was not known yet that may be known next time: not kept."""


def planned_steps(spec: RunSpec) -> int | None:
    """Return the optimizer steps of a run, or their upper bound, as far as known without its data; else None."""
    train = spec.train
    if train is None:
        return 0
    steps = train.num_steps
    if steps is None and not train.packing:
        rows = next((entry.num_rows for name, entry in load_datasets().items() if name == train.data), None)
        if rows is not None:
            assert train.num_epochs is not None
            batch = train.batch_size * train.gradient_accumulation_steps
            steps = max(1, -int(-(rows - train.validation_rows) * train.num_epochs // batch))
    known = [count for count in (steps, spec.max_steps) if count is not None]
    return min(known, default=None)


def samples_blocks(method: str) -> bool:
    """Return whether a method draws blocks."""
    return METHODS.get(method).visit is not Method.visit


def ask(tasks: Sequence[PlanTask], source_checksum: str, progress: Progress) -> list[PlanAnswer]:
    """Return an answer for each task, in order; equal questions are asked once.

    Raises:
        HarnessError: the process that predicts cannot be started or ended early.
    """
    keys = [task.key(source_checksum) for task in tasks]
    wanted = dict(zip(keys, tasks, strict=True))
    folder = tasks[0].cache_folder / "predictions" if tasks else None
    answers = {key: kept for key in wanted if folder and (kept := _kept(folder / f"{key}.json")) is not None}
    missing = {key: task for key, task in wanted.items() if key not in answers}
    if missing:
        assert folder is not None
        for key, answer in _compute(missing, progress):
            answers[key] = answer
            if answer.lasting:
                _keep(folder / f"{key}.json", answer)
    return [answers[key] for key in keys]


def _compute(missing: Mapping[str, PlanTask], progress: Progress) -> Iterator[tuple[str, PlanAnswer]]:
    """Yield each answer as it comes, in the order of the questions."""
    num_answers = 0
    lines = "".join(f"{json.dumps([key, task.model_dump(mode='json')])}\n" for key, task in missing.items())
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "harness.planning.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        text=True,
    )
    assert child.stdin and child.stdout and child.stderr
    try:
        progress("predicting memory", 0, len(missing))
        child.stdin.write(lines)
        child.stdin.close()
        for line in child.stdout:
            key, answer = json.loads(line)
            num_answers += 1
            yield key, PlanAnswer.model_validate(answer)
            progress("predicting memory", num_answers, len(missing))
        errors = child.stderr.read()
    finally:
        child.kill()
        child.wait()
    if num_answers < len(missing):
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        raise HarnessError(f"the process that predicts memory ended early: {last}")


def _kept(file: Path) -> PlanAnswer | None:
    try:
        return PlanAnswer.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def _keep(file: Path, answer: PlanAnswer) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(f".{os.getpid()}.tmp")
    beside.write_text(answer.model_dump_json())
    beside.replace(file)
