"""Predictions for many runs, asked of a process of its own and kept in the cache. Imports no torch itself."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.models import BaseModelSpec
from harness.device_profile import DeviceProfile
from harness.errors import HarnessError
from harness.files import said_as, write_file
from harness.method import METHODS
from harness.progress import Progress
from harness.record import LOG_LINES
from harness.record_training import Horizon, Prediction
from harness.runs.children import collect_lines
from harness.settings import ComputeCapability
from harness.spec import RunSpec, identity

LAST_WORDS_SECONDS = 5.0
"""How long what a process said last may take to come."""
LIBRARIES = ("torch", "transformers", "peft", "tokenizers")
"""Whose versions can move a prediction or the block scores that it rests on, beside the harness's own source."""
NO_MEMORY = ("data", "prompt", "loss_on", "learning_rate", "validation_rows", "validation_every_steps")
"""Settings of training that move no byte; how many rows there are is in the number of steps."""


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
    num_ranks: PositiveInt = 1
    """Devices that share the run."""
    cache_folder: Path

    @property
    def num_steps(self) -> int | None:
        """Return the optimizer steps of the run, or None where the number of training rows is not known."""
        return planned_steps(self.spec, self.dataset)

    def key(self, source_checksum: str) -> str:
        """Return the identity of all that can move the answer; a seed is part of it where blocks are drawn."""
        draws = samples_blocks(self.spec.method)
        own = {"seed": self.spec.seed if draws else None, "model": self.spec.model, "name": self.model.name}
        return identity({**self._moving(source_checksum), "own": own})

    def shared_key(self, source_checksum: str) -> str:
        """Return the identity of what moves a prediction in which nothing rests on the seed's draws.

        Runs with one such key differ in their seed, in the rows that they read, in their learning rate, or in the name
        of a model of the same shape.
        """
        return identity(self._moving(source_checksum))

    def _moving(self, source_checksum: str) -> dict[str, Any]:
        spec, model = self.spec, self.model
        asked = {"method", "config", "files", "code"}
        if samples_blocks(spec.method):  # its blocks may be drawn by scores of these weights on that text
            asked |= {"model", "calibration", "sources"}
        train = spec.train
        apart = {"summary", "licence", "gated", "folder", "config"}
        if model.shape is not None and model.folder is None and model.packaged is None:
            apart |= {"name", "hub_id", "hub_id_source", "revision"}
        return {
            "spec": spec.model_dump(mode="json", include=asked),
            "train": None if train is None else train.model_dump(mode="json", exclude=set(NO_MEMORY)),
            "drawn": self.dataset is not None and self.dataset.drawn is not None,
            "num_steps": self.num_steps,
            "model": model.model_dump(mode="json", exclude=apart),
            "device": [self.device, self.device_name, self.compute_capability],
            "profile": None if self.profile is None else self.profile.model_dump(mode="json", exclude={"rates"}),
            "horizon": self.horizon,
            "num_ranks": self.num_ranks,
            "versions": _versions(),
            "source": source_checksum,
        }


class PlanAnswer(BaseModel):
    """A prediction, or why there is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prediction: Prediction | None = None
    error: str | None = None
    refused: bool = False
    """True where the method refuses the run: it would be refused when it is run, too."""
    lasting: bool = True
    """False where something was not known yet that may be known next time."""
    awaited: tuple[str, ...] = ()
    """Files in the cache folder that will hold what was not known: with none of them there, the answer is kept."""
    seed_matters: bool = True
    """False where no draw of the run's seed has a say in the prediction."""


@cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


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
    with Predictor(source_checksum, cores()) as predictor:
        return predictor.answers(tasks, progress)


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Predictor:
    """A process that predicts; it starts when something is asked that is not kept."""

    def __init__(self, source_checksum: str, processes: int = 1) -> None:
        """Take the checksum of the harness's own source, which is part of every question.

        Args:
            source_checksum: Of the harness.
            processes: That may predict at once, when several questions are asked together.
        """
        self._source_checksum = source_checksum
        self._processes = processes
        self._child: subprocess.Popen[bytes] | None = None
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._listener: threading.Thread | None = None

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def kept(self, task: PlanTask) -> PlanAnswer | None:
        """Return the answer that the cache keeps, or None."""
        return _kept(self._shared_file(task), task.cache_folder) or _kept(self._file(task), task.cache_folder)

    def answer(self, task: PlanTask) -> PlanAnswer:
        """Return what is predicted, kept in the cache for the next time.

        Raises:
            HarnessError: the process ended early, or the cache cannot be written.
        """
        kept = self.kept(task)
        return kept if kept is not None else next(iter(self._ask({"": task}, 1)))[1]

    def answers(self, tasks: Sequence[PlanTask], progress: Progress) -> list[PlanAnswer]:
        """Return an answer for each task, in order; equal questions are asked once.

        Raises:
            HarnessError: as :meth:`answer`.
        """
        keys = [task.key(self._source_checksum) for task in tasks]
        wanted = dict(zip(keys, tasks, strict=True))
        answers = {key: kept for key, task in wanted.items() if (kept := self.kept(task)) is not None}
        shared = {key: task.shared_key(self._source_checksum) for key, task in wanted.items() if key not in answers}
        total, groups = len(shared), {of: key for key, of in reversed(shared.items())}
        for asked in (set(groups.values()), set(shared)):  # one of each group; then those that do not share its answer
            missing = {key: wanted[key] for key in shared if key in asked and key not in answers}
            for key, answer in self._ask(missing, self._processes):
                progress("predicting memory", total - sum(one not in answers for one in shared), total)
                answers[key] = answer
            for key, of in shared.items():
                first = answers[groups[of]]
                if key not in answers and first.prediction is not None and not first.seed_matters:
                    answers[key] = first
        if total:
            progress("predicting memory", total, total)
        return [answers[key] for key in keys]

    def _ask(self, tasks: Mapping[str, PlanTask], processes: int) -> Iterator[tuple[str, PlanAnswer]]:
        """Yield the answers to questions, kept, in the order in which they come.

        Raises:
            HarnessError: as :meth:`answer`.
        """
        if not tasks:
            return
        child = self._child = self._child or self._started(min(processes, len(tasks)))
        assert child.stdin is not None and child.stdout is not None
        for key, task in tasks.items():
            try:
                child.stdin.write(f"{json.dumps([key, task.model_dump(mode='json')])}\n".encode())
                child.stdin.flush()
            except BrokenPipeError:
                break
        for _ in tasks:
            line = child.stdout.readline()
            if not line:
                raise HarnessError(f"the process that predicts memory ended early: {self._last_words()}")
            key, found = json.loads(line)
            yield key, self.keep(tasks[key], PlanAnswer.model_validate(found))

    def keep(self, task: PlanTask, answer: PlanAnswer) -> PlanAnswer:
        """Keep an answer in the cache, for all that share it; return it.

        Raises:
            HarnessError: the cache cannot be written.
        """
        if answer.lasting or answer.awaited:
            shares = answer.prediction is not None and not answer.seed_matters
            _keep(self._shared_file(task) if shares else self._file(task), answer)
        return answer

    def close(self) -> None:
        """End the process, from another thread too; a question under way is not answered."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def _file(self, task: PlanTask) -> Path:
        return task.cache_folder / "predictions" / f"{task.key(self._source_checksum)}.json"

    def _shared_file(self, task: PlanTask) -> Path:
        return task.cache_folder / "predictions" / f"{task.shared_key(self._source_checksum)}.json"

    def _started(self, processes: int) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "harness.planning.worker", str(processes)],
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


def _kept(file: Path, cache_folder: Path) -> PlanAnswer | None:
    """Return the answer in a file; None where there is none, or where what it did without is known by now."""
    try:
        found = PlanAnswer.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
    return None if any((cache_folder / name).exists() for name in found.awaited) else found


def _keep(file: Path, answer: PlanAnswer) -> None:
    advice = "set HARNESS_CACHE to a folder that can be written"
    with said_as(f"{file.parent}: predictions cannot be kept there", advice):
        write_file(file, answer.model_dump_json())
