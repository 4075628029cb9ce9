"""What is planned of a run that several devices share, against what its processes hold: point 9 of such runs."""

from __future__ import annotations

import resource
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from harness.catalogue.models import BaseModelSpec, ModelShape, load_models
from harness.engine.ranks import ALONE, Ranks
from harness.engine.step_memory import adopt_training
from harness.errors import Refused
from harness.planning.fake_ranks import fake_ranks
from harness.planning.predict import Question, predict
from harness.record_training import MemoryBreakdown, Prediction
from harness.spec import RunSpec
from harness.tensors.sharded import _let_go
from harness.tensors.storage_tracker import StorageTracker
from tests.ranks import on_ranks
from tests.real_runs import SCORES, STEPS, batches_of, loop_of, spec_of

SMALL = BaseModelSpec(
    name="small",
    architecture="LlamaForCausalLM",
    hub_id="nobody/small",
    shape=ModelShape(
        hidden_size=64,
        intermediate_size=160,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=640,
        max_positions=64,
        rope_theta=10000.0,
        tied_head=False,
    ),
)
LENGTH, ROWS = 32, 2
TINY = {"rank": 8, "active_layers": 2, "interval_steps": 2, "update_gap": 2}
CASES = [
    (label, dtype, number)
    for label in ("full", "lisa", "lora", "galore")
    for dtype in ("fp32", "bf16")
    for number in (2,)
] + [("full", "fp32", 4), ("galore-layerwise", "bf16", 2)]
"""Label, dtype, and micro-batches of a step."""
PADDING = 512
"""Bytes that a process's parts may take beyond their share: one row of what two do not divide, for each tensor."""


@dataclass(frozen=True)
class Held:
    """What a process holds and held."""

    peak: MemoryBreakdown
    moment: str
    weights: int
    gradients: int
    """Of parts, summed over all that are trained at a step: the most."""
    state: int
    counted: dict[str, int]
    """By the tracker, after the last step."""


def asked(label: str, dtype: str, number: int) -> RunSpec:
    settings = {**TINY, "moment_dtype": dtype, "projector_dtype": dtype, "adapter_dtype": dtype}
    train: dict[str, Any] = {"dtype": dtype, "sequence_length": LENGTH, "batch_size": ROWS}
    if label == "galore-layerwise":
        train["max_grad_norm"] = None
    return spec_of(label, SMALL, settings, gradient_accumulation_steps=number, gradient_checkpointing=True, **train)


def held(ranks: Ranks, specs: list[RunSpec]) -> list[Held]:
    """Return what a process holds in each run, of two takes the one with the lower peak.

    In one take of some fifty beside other work a tensor of a collective outlives the next one: nothing makes a peak
    lower than it is.
    """
    torch.set_num_threads(1)
    takes = [[_held(ranks, spec) for _ in range(2 if ranks.several else 1)] for spec in specs]
    return [min(of_one, key=lambda one: one.peak.total_bytes) for of_one in takes]


def _held(ranks: Ranks, spec: RunSpec) -> Held:
    loop = loop_of(spec, SMALL, [LENGTH] * ROWS, tracked_steps=STEPS, ranks=ranks)
    loop.model.train()
    gradients = 0
    for micro_batches in batches_of(spec, SMALL, [LENGTH] * ROWS, STEPS):
        placed = {number: loop.placed(batch) for number, batch in ranks.share(micro_batches)}
        batches = [placed.get(number, batch) for number, batch in enumerate(micro_batches)]
        with loop.memory.step(loop.step, (tensor for batch in placed.values() for tensor in batch.tensors)):
            loop.train_step(batches)
        trained = [p for p in loop.model.parameters() if p.requires_grad]
        gradients = max(gradients, bytes_of(trained))
        loop.step += 1
    tracker = StorageTracker("cpu")
    adopt_training(tracker, loop.model, loop.optimizer)
    peak = loop.memory.tracked_peak
    assert peak is not None
    weights = bytes_of([*loop.model.parameters(), *loop.model.buffers()])
    state = [
        value for state in loop.optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]
    return Held(peak.at_peak, peak.moment, weights, gradients, bytes_of(state), dict(tracker.alive()))


def bytes_of(tensors: list[Any]) -> int:
    """Return the bytes of the numbers that are here, by torch's own part of each."""
    parts = [one.to_local() if hasattr(one, "to_local") else one for one in tensors]
    return sum(part.numel() * part.element_size() for part in parts)


def told(spec: RunSpec, num_ranks: int, **question: Any) -> Prediction:
    asked = {"device": "cpu", "horizon": "run", "num_steps": STEPS, **question}
    return predict(spec, SMALL, Question(**asked, num_ranks=num_ranks), lambda request: SCORES)


@pytest.fixture(scope="module")
def on_two() -> list[tuple[Held, ...]]:
    """Of each case what both processes hold."""
    return list(zip(*on_ranks(2, held, [asked(*case) for case in CASES], timeout=300), strict=True))


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(map(str, case)) for case in CASES])
def test_what_is_planned_of_two_devices_is_what_two_processes_hold(case: int, on_two: list[tuple[Held, ...]]) -> None:
    label, _, number = CASES[case]
    spec = asked(*CASES[case])
    found, plan = on_two[case], told(spec, 2)
    first = found[0]
    unseen = (number // 2 - 1) * ROWS * (3 * LENGTH - 1) * 8  # a plan has the same micro-batch every time
    assert first.peak.total_bytes == plan.peak_bytes + unseen
    assert (first.moment, plan.num_ranks) == (plan.peak_phase, 2)
    for category in ("weights_bytes", "gradients_bytes", "optimizer_state_bytes", "activations_bytes"):
        assert getattr(first.peak, category) == getattr(plan.at_peak, category)
    for one in found:
        assert one.counted["weights"] == pytest.approx(one.weights, abs=PADDING)
        assert one.counted["optimizer_state"] == one.state
        assert one.peak.total_bytes <= first.peak.total_bytes
    assert plan.weights_bytes == pytest.approx(first.weights, abs=PADDING)
    assert plan.optimizer_state_bytes == first.state
    if label != "galore-layerwise":  # there a group's gradients are gone when the next group's come
        assert plan.gradients_bytes == pytest.approx(first.gradients, abs=PADDING)


@pytest.mark.parametrize("label", ["full", "lisa", "lora"])
def test_parts_of_all_devices_are_what_one_holds(label: str, on_two: list[tuple[Held, ...]]) -> None:
    found, (alone,) = on_two[CASES.index((label, "fp32", 2))], held(ALONE, [asked(label, "fp32", 2)])
    buffers = (
        2 * 16 // 2 * 4
    )  # cosines' frequencies, which each process has whole, once as they are and once as they began
    assert sum(one.weights for one in found) - buffers == alone.weights
    assert sum(one.gradients for one in found) == alone.gradients
    assert sum(one.state for one in found) == alone.state


def test_operations_are_those_of_one_device() -> None:
    whole, half = told(asked("full", "fp32", 4), 1), told(asked("full", "fp32", 4), 2)
    assert half.flops_per_step == whole.flops_per_step // 2
    assert half.recomputed_flops_per_step == whole.recomputed_flops_per_step // 2
    assert half.trainable_params == whole.trainable_params


@pytest.mark.parametrize("horizon", ["first", "all-visited"])
def test_every_horizon_can_be_asked(horizon: str) -> None:
    spec = asked("lisa", "bf16", 2)
    one, two = told(spec, 1, horizon=horizon), told(spec, 2, horizon=horizon)
    assert two.optimizer_state_bytes == pytest.approx(one.optimizer_state_bytes / 2, abs=PADDING)


def test_the_group_is_left_again_and_steps_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(Refused, match="multiple of 4"):
        told(asked("full", "fp32", 2), 4)
    assert not torch.distributed.is_initialized()
    with fake_ranks(3) as ranks:
        assert (ranks.rank, ranks.size, torch.distributed.get_world_size()) == (0, 3, 3)
    assert not torch.distributed.is_initialized()


def test_on_cuda_what_was_not_measured_is_said_in_bytes() -> None:
    spec = asked("full", "bf16", 2)
    said = " ".join(told(spec, 2, device="cuda").assumptions)
    block = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160 + 2 * 64)
    assert f"the weights of one block, {block / 2**30:.2f} GiB" in said
    assert "NCCL" in said
    assert "NCCL" not in " ".join(told(spec, 1, device="cuda").assumptions)


def test_weights_that_a_resize_makes_and_frees_are_counted_as_weights() -> None:
    """As FSDP2 gathers: no operation shows it."""
    tracker = StorageTracker("cpu")
    with tracker:
        tracker.moment = "forward"
        kept = torch.empty(1000, dtype=torch.uint8)
        kept.untyped_storage().resize_(0)
        assert sum(tracker.alive().values()) == 0
        kept.untyped_storage().resize_(3000)
        assert tracker.alive()["weights"] == 3000
        kept.untyped_storage().resize_(0)
    span = tracker.take()
    assert (span.peak.num_bytes, span.peak.by_category["weights"]) == (3000, 3000)
    kept.untyped_storage().resize_(500)  # nobody looks any more
    assert tracker.take().events == ()


def test_a_collective_is_over_when_gloo_has_let_go_of_its_tensors() -> None:
    """A thread stands for gloo's, which holds a view of them a moment longer; so peaks hang on nobody's pace."""
    tensor, seen = torch.zeros(8), []

    def holding(view: torch.Tensor) -> None:
        time.sleep(0.2)
        seen.append("let go")

    assert _let_go(lambda: threading.Thread(target=holding, args=(tensor.view(2, 4),)).start(), tensor) is None
    assert seen == ["let go"]


@pytest.mark.long
def test_llama2_70b_on_eight_devices_is_planned_in_little_memory() -> None:
    """Against the arithmetic: an eighth of 68,976,648,192 numbers, in bf16, and twice that for moments in bf16."""
    entry, before = load_models()["llama2-70b"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train = {"batch_size": 1, "sequence_length": 4096, "max_grad_norm": None}
    spec = spec_of("full", entry, {"moment_dtype": "bf16"}, gradient_accumulation_steps=8, **train)
    plan = predict(spec, entry, Question("cuda", num_steps=STEPS, num_ranks=8), lambda request: None)
    eighth = 68_976_648_192 // 8
    assert plan.weights_bytes == pytest.approx(2 * eighth, rel=1e-6)
    assert plan.optimizer_state_bytes == pytest.approx(4 * eighth, rel=1e-6)
    assert 71.0 < plan.peak_bytes / 2**30 < 71.6
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 2**20  # KiB
