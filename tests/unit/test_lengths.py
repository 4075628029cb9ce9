"""Which runs start first: the longest where several go on at once, else the suite's order."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.models import load_models
from harness.record import Record
from harness.record_training import Prediction, TrainResult
from harness.runs.claims import Claims
from harness.runs.executor import Runs
from harness.runs.lengths import Lengths
from harness.runs.queue import RunQueue
from harness.runs.settling import work_folder
from harness.store import Store
from harness.task import RunTask
from tests.records import make_record, make_spec


def make_task(folder: Path, label: str, seed: int = 1, flops: int | None = None, **more: Any) -> RunTask:
    spec = make_spec(label=label, seed=seed, **more)
    name = f"{label}-{seed}"
    return RunTask(
        spec=spec,
        uuid=name,
        model=load_models()["smollm2-135m"],
        model_folder=None,
        rows_folder=None,
        cache_folder=folder,
        work_folder=work_folder(Store(folder), spec.run_id, name),
        run_id=spec.run_id,
        prediction=None if flops is None else predicted(flops),
    )


def predicted(flops: int) -> Prediction:
    at_peak = dict.fromkeys(
        ("weights_bytes", "gradients_bytes", "optimizer_state_bytes", "activations_bytes", "other_bytes"), 1
    )
    return Prediction.model_validate(
        {
            "device": "cpu",
            "horizon": "run",
            "weights_bytes": 1,
            "gradients_bytes": 1,
            "optimizer_state_bytes": 1,
            "peak_bytes": 5,
            "peak_phase": "backward",
            "peak_step": 1,
            "at_peak": at_peak,
            "trainable_params": 1,
            "flops_per_step": flops,
            "recomputed_flops_per_step": 0,
            "predict_seconds": 1.0,
            "torch": "2.13.0",
        }
    )


def ended(task: RunTask, seconds: float, **changes: Any) -> Record:
    record, settings = make_record(spec=task.spec, prediction=task.prediction), task.spec.train
    train = None if settings is None else TrainResult.model_construct(num_steps=settings.num_steps)
    ended = {"finished_at": record.started_at + timedelta(seconds=seconds), "train": train}
    return record.model_copy(update=ended | changes)


def begun(queue: RunQueue) -> list[str]:
    names = []
    while (task := queue.next()) is not None:
        names.append(task.uuid)
    return names


@pytest.fixture
def tasks(tmp_path: Path) -> list[RunTask]:
    asked = [("a", 3), ("b", 9), ("c", 3), ("d", 5)]
    return [make_task(tmp_path, label, seed, flops) for label, flops in asked for seed in (1, 2)]


def test_several_at_once_start_longest_first_and_equal_ones_in_the_order_of_the_suite(
    tmp_path: Path, tasks: list[RunTask]
) -> None:
    with Claims(tmp_path) as claims:
        queue = RunQueue(Runs(tasks, Store(tmp_path)), claims, at_once=True)
        assert begun(queue) == ["b-1", "b-2", "d-1", "d-2", "a-1", "a-2", "c-1", "c-2"]


def test_one_at_a_time_keeps_the_order_of_the_suite(tmp_path: Path, tasks: list[RunTask]) -> None:
    with Claims(tmp_path) as claims:
        assert begun(RunQueue(Runs(tasks, Store(tmp_path)), claims)) == [task.uuid for task in tasks]


def test_one_at_a_time_beside_another_process_takes_the_longest(tmp_path: Path, tasks: list[RunTask]) -> None:
    with Claims(tmp_path) as others, Claims(tmp_path) as claims:
        queue = RunQueue(Runs(tasks, Store(tmp_path)), claims)
        first = queue.next()
        assert first is not None
        assert first.uuid == "a-1"
        assert others.take("something", "work")
        assert begun(queue) == ["b-1", "b-2", "d-1", "d-2", "a-2", "c-1", "c-2"]


def test_a_length_that_is_recorded_goes_before_one_that_is_predicted(tmp_path: Path, tasks: list[RunTask]) -> None:
    records = [ended(tasks[0], 1000.0), ended(tasks[2], 90.0)]
    lengths = Lengths(records)
    assert lengths.of(tasks[1]) == 1000.0  # its own label
    assert [task.uuid for task in lengths.longest_first(tasks)][:2] == ["a-1", "a-2"]
    # c has none: its operations, at the rate between those of a and of b
    steps = tasks[0].spec.train.num_steps  # type: ignore[union-attr]
    assert lengths.of(tasks[4]) == pytest.approx(3 * steps * (1000 / (3 * steps) + 90 / (9 * steps)) / 2)


def test_the_order_follows_what_ended_runs_took(tmp_path: Path, tasks: list[RunTask]) -> None:
    with Claims(tmp_path) as claims:
        queue = RunQueue(Runs(tasks, Store(tmp_path)), claims, at_once=True)
        first, second = queue.next(), queue.next()
        assert first is not None
        assert second is not None
        queue.note(ended(first, 10.0))
        queue.note(ended(tasks[4], 5000.0))
        assert begun(queue)[:3] == ["c-1", "c-2", "d-1"]


@pytest.mark.parametrize("status", ["failed", "out_of_memory", "interrupted", "timed_out", "refused"])
def test_a_run_that_was_cut_off_says_nothing_of_lengths(tmp_path: Path, tasks: list[RunTask], status: str) -> None:
    lengths = Lengths([ended(tasks[0], 1e6, status=status, reason="x")])
    assert lengths.longest_first(tasks)[0].uuid == "b-1"


def test_an_unknown_length_may_be_the_longest_and_what_only_scores_is_short(tmp_path: Path) -> None:
    tasks = [
        make_task(tmp_path, "base", method="base", config={}, train=None, max_steps=None),
        make_task(tmp_path, "known", flops=10**15),
        make_task(tmp_path, "unknown"),
        make_task(tmp_path, "refused", flops=10**18).model_copy(update={"refusal": "too large"}),
    ]
    lengths = Lengths()
    assert [task.uuid for task in lengths.longest_first(tasks)] == ["unknown-1", "known-1", "base-1", "refused-1"]
    assert lengths.of(tasks[2]) == math.inf


def test_a_run_that_did_not_begin_takes_its_old_place(tmp_path: Path, tasks: list[RunTask]) -> None:
    with Claims(tmp_path) as claims:
        queue = RunQueue(Runs(tasks, Store(tmp_path)), claims, at_once=True)
        first, second = queue.next(), queue.next()
        assert first is not None
        assert second is not None
        queue.take_back(second)
        queue.take_back(first)
        assert begun(queue)[:3] == ["b-1", "b-2", "d-1"]
