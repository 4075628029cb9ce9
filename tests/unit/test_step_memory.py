"""What the tracker counts, and what a record says of a run that runs out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import harness.engine.loss
from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.labels import load_labels
from harness.catalogue.models import BaseModelSpec
from harness.engine.peak_laps import PeakLaps
from harness.engine.runner import execute
from harness.engine.step_memory import StepMemory
from harness.engine.stepwise import Stepwise
from harness.method import METHODS
from harness.methods._optimizers import AdamW
from harness.record import Record
from harness.settings import EvaluationSettings
from harness.task import RunTask
from harness.tensors.storage_tracker import StorageTracker
from tests.records import TRAIN, make_spec
from tests.unit.test_peak_laps import FakeAllocator
from tests.unit.test_training import build

MODEL_BYTES = 4 * (2 * 260 * 32 + 4 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32) + 32)
"""Parameters of the tiny model in fp32; its buffers, the rotary frequencies, come on top."""

STATE_BYTES = MODEL_BYTES
"""Two moments in bf16, as the label ``full`` asks."""


def test_storages_elsewhere_than_on_the_device_are_the_hosts() -> None:
    tracker = StorageTracker("meta")
    with tracker:
        host = torch.empty(1000)
        device = torch.empty(10, device="meta")
    span = tracker.take()
    assert (span.peak.num_bytes, host.device.type, device.device.type) == (40, "cpu", "meta")
    tracker.classify([host, device], "weights")
    assert tracker.alive()["weights"] == 40


def test_the_waiting_micro_batches_count_as_other(tiny_llama: Path, tokenizer: Any) -> None:
    loop, _, data = build("full", tiny_llama, tokenizer)
    (batch,) = next(data.step_batches())
    peaks = []
    for inputs in ([], batch.tensors):
        watched = StepMemory(loop.model, loop.optimizer, tracked_steps=1)
        with watched.step(0, inputs):
            pass
        assert watched.tracked_peak is not None
        peaks.append(watched.tracked_peak.at_peak)
    size = sum(tensor.numel() * 8 for tensor in batch.tensors)
    assert size > 0
    assert (peaks[0].other_bytes, peaks[1].other_bytes) == (0, size)


def task(folder: Path, work: Path, **train: Any) -> RunTask:
    rows = work / "rows.jsonl"
    rows.write_text("".join(f'{{"instruction": "item {i}", "input": "", "output": "y{i}"}}\n' for i in range(300)))
    entry = load_labels()["full"]
    config = METHODS.get(entry.method).Config
    values = {key: value for key, value in entry.values().items() if key in config.model_fields}
    spec = make_spec(
        config=config.model_validate(values).model_dump(mode="json"),
        train=TRAIN.model_copy(update={"data": "alpaca-gpt4", "num_steps": 6, "max_grad_norm": 1.0, **train}),
        evaluation=EvaluationSettings(tasks=(), rows="packaged-scored"),
        sources={"train": "rows"},
    )
    return RunTask(
        spec=spec,
        uuid="u",
        model=BaseModelSpec(name="tiny", architecture="LlamaForCausalLM", folder=folder),
        model_folder=folder,
        rows_folder=None,
        datasets={"alpaca-gpt4": DatasetSpec(name="alpaca-gpt4", layout="instructions", file=rows)},
        cache_folder=work,
        work_folder=work,
        run_id=spec.run_id,
    )


@pytest.fixture(params=["MemoryError", "torch.OutOfMemoryError", "DefaultCPUAllocator"])
def error(request: pytest.FixtureRequest) -> Exception:
    return {
        "MemoryError": MemoryError("no room"),
        "torch.OutOfMemoryError": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        "DefaultCPUAllocator": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    }[request.param]


def plant(patch: pytest.MonkeyPatch, moment: str, step: int, error: Exception) -> None:
    """Let memory run out in one moment of one step, through what the loop calls there."""
    calls: Iterator[int] = iter(range(1000))
    loss_of = harness.engine.loss.summed_loss

    def failing(gradient: torch.Tensor) -> None:
        raise error

    def loss(model: Any, batch: Any) -> torch.Tensor:
        value = loss_of(model, batch)
        if next(calls) == step:
            if moment == "forward":
                raise error
            value.register_hook(failing)
        return value

    def update(optimizer: AdamW, closure: None = None) -> None:
        if next(calls) == step:
            raise error
        own_update(optimizer)

    own_update = AdamW.step
    if moment == "optimizer":
        patch.setattr(AdamW, "step", update)
    else:
        patch.setattr(harness.engine.loss, "summed_loss", loss)


def out_of_memory(patch: pytest.MonkeyPatch, moment: str, step: int, error: Exception, run: RunTask) -> Record:
    plant(patch, moment, step, error)
    record = execute(run, lambda *_: None)
    assert record.status == "out_of_memory", record.log_tail or record.reason
    return Record.model_validate_json(record.model_dump_json())


@pytest.mark.parametrize("moment", ["forward", "backward", "optimizer"])
def test_a_record_says_step_phase_and_moment_and_what_was_alive(
    moment: str, error: Exception, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, tmp_path: Path
) -> None:
    record = out_of_memory(monkeypatch, moment, 1, error, task(tiny_llama, tmp_path))
    at = record.out_of_memory_at
    assert at is not None
    assert (at.phase, at.step, at.moment) == ("train", 1, moment)
    assert f"out of memory in phase train, step 1, moment {moment}: " in str(record.reason)
    assert at.weights_bytes is not None and 0 <= at.weights_bytes - MODEL_BYTES < 1000
    assert at.gradients_bytes == (MODEL_BYTES if moment == "optimizer" else 0)
    tracked = at.tracked
    assert tracked is not None
    assert (at.weights_bytes, at.gradients_bytes) == (tracked.weights_bytes, tracked.gradients_bytes)
    assert at.optimizer_state_bytes == tracked.optimizer_state_bytes == STATE_BYTES
    assert at.rest_bytes == tracked.activations_bytes + tracked.other_bytes
    if moment != "optimizer":
        assert tracked.activations_bytes > 0  # the graph is alive while the record is made
    assert record.train is not None and record.train.num_steps == 1


def test_after_the_tracked_steps_a_cpu_gives_the_sums_alone(
    monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, tmp_path: Path
) -> None:
    at = out_of_memory(monkeypatch, "forward", 4, MemoryError(), task(tiny_llama, tmp_path)).out_of_memory_at
    assert at is not None
    assert (at.step, at.moment, at.rest_bytes, at.tracked) == (4, "forward", None, None)
    assert at.optimizer_state_bytes == STATE_BYTES


def test_on_a_device_the_rest_is_what_is_allocated_less_the_sums() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = Stepwise(torch.optim.SGD(model.parameters(), lr=1.0))
    allocator = FakeAllocator()
    allocator.use(1000)
    watched = StepMemory(model, optimizer, tracked_steps=0, laps=PeakLaps(allocator))
    with pytest.raises(torch.OutOfMemoryError), watched.step(7):
        watched.moment("backward")
        raise torch.OutOfMemoryError("full")
    assert watched.out_of_memory is not None
    assert watched.out_of_memory.model_dump(exclude_none=True) == {
        "phase": "train",
        "step": 7,
        "moment": "backward",
        "weights_bytes": 24,
        "gradients_bytes": 0,
        "optimizer_state_bytes": 0,
        "rest_bytes": 976,
    }


def test_what_is_alive_is_found_without_a_single_tensor_operation() -> None:
    """A dispatch mode sees every operation that could allocate: there is none."""

    class Refusing(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            raise AssertionError(f"{func} was called while memory was full")

    model = torch.nn.Linear(2, 2)
    optimizer = Stepwise(torch.optim.AdamW(model.parameters()))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    watched = StepMemory(model, optimizer, tracked_steps=0, laps=PeakLaps(FakeAllocator()))
    with Refusing(), pytest.raises(MemoryError), watched.step(0):
        raise MemoryError
    assert watched.out_of_memory is not None
    assert watched.out_of_memory.gradients_bytes == 24


def test_outside_training_the_phase_alone_is_known(
    monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, tmp_path: Path
) -> None:
    def load(*_: Any) -> None:
        raise MemoryError("no room for weights")

    monkeypatch.setattr("harness.engine.runner.load_model", load)
    record = execute(task(tiny_llama, tmp_path), lambda *_: None)
    assert record.reason == "out of memory in phase load: no room for weights"
    assert record.out_of_memory_at is not None
    assert record.out_of_memory_at.model_dump(exclude_none=True) == {"phase": "load"}


def test_another_error_is_no_out_of_memory(monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, tmp_path: Path) -> None:
    plant(monkeypatch, "forward", 1, RuntimeError("shapes differ"))
    record = execute(task(tiny_llama, tmp_path), lambda *_: None)
    assert (record.status, record.out_of_memory_at) == ("failed", None)
