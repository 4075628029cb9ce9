"""Predictions for many runs, asked of a process of its own and kept in the cache. Imports no torch itself."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.models import BaseModelSpec
from harness.device_profile import DeviceProfile
from harness.errors import HarnessError
from harness.files import said_as, write_file
from harness.method import METHODS
from harness.progress import Progress
from harness.record import LOG_LINES
from harness.record_training import Horizon, Prediction
from harness.runs.process import collect_lines
from harness.settings import ComputeCapability
from harness.spec import RunSpec, identity

LAST_WORDS_SECONDS = 5.0
"""How long what a process said last may take to come."""
LIBRARIES = ("torch", "transformers", "peft")
"""Whose versions can move a prediction, beside the harness's own source."""


class PlanTask(BaseModel):
    """One run to predict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: RunSpec
    model: BaseModelSpec
    dataset: DatasetSpec | None = None
    """What is trained on; None: not known."""
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
        return planned_steps(self.spec, self.dataset)

    def key(self, source_checksum: str) -> str:
        """Return the identity of all that can move the prediction; a seed is part of it where blocks are drawn."""
        spec = self.spec.model_dump(
            mode="json", include={"method", "config", "train", "model", "calibration", "sources", "files", "code"}
        )
        return identity(
            {
                "spec": spec,
                "seed": self.spec.seed if samples_blocks(self.spec.method) else None,
                "num_steps": self.num_steps,
                "model": self.model.model_dump(
                    mode="json", exclude={"summary", "licence", "gated", "folder", "config"}
                ),
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


def planned_steps(spec: RunSpec, dataset: DatasetSpec | None) -> int | None:
    """Return the optimizer steps of a run, or their upper bound, as far as known without its data; else None.

    Args:
        spec: Of the run.
        dataset: What is trained on; None: not known.
    """
    train = spec.train
    if train is None:
        return 0
    steps = train.num_steps
    if steps is None and not train.packing:
        rows = None if dataset is None else dataset.num_rows
        if rows is not None:
            assert train.num_epochs is not None
            batch = train.batch_size * train.gradient_accumulation_steps
            steps = max(1, -int(-(rows - train.validation_rows) * train.num_epochs // batch))
    known = [count for count in (steps, spec.max_steps) if count is not None]
    return min(known, default=None)


def samples_blocks(method: str) -> bool:
    """Return whether a method draws blocks."""
    return METHODS.get(method).samples_blocks


def ask(tasks: Sequence[PlanTask], source_checksum: str, progress: Progress) -> list[PlanAnswer]:
    """Return an answer for each task, in order; equal questions are asked once.

    Raises:
        HarnessError: as :meth:`Predictor.answer`.
    """
    with Predictor(source_checksum) as predictor:
        keys = [task.key(source_checksum) for task in tasks]
        wanted = dict(zip(keys, tasks, strict=True))
        answers = {key: kept for key, task in wanted.items() if (kept := predictor.kept(task)) is not None}
        missing = {key: task for key, task in wanted.items() if key not in answers}
        for number, (key, task) in enumerate(missing.items()):
            progress("predicting memory", number, len(missing))
            answers[key] = predictor.answer(task)
        if missing:
            progress("predicting memory", len(missing), len(missing))
    return [answers[key] for key in keys]


class Predictor:
    """A process that predicts, one question at a time; it starts when something is asked that is not kept."""

    def __init__(self, source_checksum: str) -> None:
        """Take the checksum of the harness's own source, which is part of every question."""
        self._source_checksum = source_checksum
        self._child: subprocess.Popen[bytes] | None = None
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._listener: threading.Thread | None = None

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def kept(self, task: PlanTask) -> PlanAnswer | None:
        """Return the answer that the cache keeps, or None."""
        return _kept(self._file(task))

    def answer(self, task: PlanTask) -> PlanAnswer:
        """Return what is predicted, kept in the cache for the next time.

        Raises:
            HarnessError: the process ended early, or the cache cannot be written.
        """
        if (kept := self.kept(task)) is not None:
            return kept
        child = self._child = self._child or self._started()
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(f"{json.dumps(['', task.model_dump(mode='json')])}\n".encode())
            child.stdin.flush()
        except BrokenPipeError:
            pass
        line = child.stdout.readline()
        if not line:
            raise HarnessError(f"the process that predicts memory ended early: {self._last_words()}")
        answer = PlanAnswer.model_validate(json.loads(line)[1])
        if answer.lasting:
            _keep(self._file(task), answer)
        return answer

    def close(self) -> None:
        """End the process, from another thread too; a question under way is not answered."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def _file(self, task: PlanTask) -> Path:
        return task.cache_folder / "predictions" / f"{task.key(self._source_checksum)}.json"

    def _started(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "harness.planning.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        self._listener = threading.Thread(target=collect_lines, args=(child.stderr, self._log), daemon=True)
        self._listener.start()
        return child

    def _last_words(self) -> str:
        assert self._listener is not None
        self._listener.join(LAST_WORDS_SECONDS)
        said = [line.strip() for line in self._log if line.strip()]
        return said[-1] if said else "it said nothing"


def _kept(file: Path) -> PlanAnswer | None:
    try:
        return PlanAnswer.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def _keep(file: Path, answer: PlanAnswer) -> None:
    advice = "set HARNESS_CACHE to a folder that can be written"
    with said_as(f"{file.parent}: predictions cannot be kept there", advice):
        write_file(file, answer.model_dump_json())
