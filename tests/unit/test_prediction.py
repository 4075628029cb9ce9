"""Predictions against what torch's own allocator says of the real run, and against the arithmetic of the papers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from harness.catalogue.labels import load_labels
from harness.catalogue.models import BaseModelSpec, ModelShape, load_models
from harness.engine.training import TrainingLoop
from harness.errors import HarnessError
from harness.planning import worker
from harness.planning.cuda import blas_workspaces
from harness.planning.fake_run import FakeRun
from harness.planning.predict import Question, predict
from harness.planning.questions import PlanTask
from harness.record_training import Prediction
from harness.spec import RunSpec
from harness.tensors.loading import build_model
from tests.real_runs import SCORES, STEPS, peak_of_real_run, spec_of

LABELS = sorted(label for label in load_labels() if label != "base")
SMALL = BaseModelSpec(
    name="small",
    architecture="LlamaForCausalLM",
    hub_id="nobody/small",
    shape=ModelShape(
        hidden_size=192,
        intermediate_size=512,
        num_layers=4,
        num_heads=6,
        num_kv_heads=2,
        head_dim=32,
        vocab_size=1600,
        max_positions=512,
        rope_theta=10000.0,
        tied_head=False,
    ),
)
LENGTH, ROWS = 96, 4
UNSEEN_BYTES = 6112
"""Of the batch's tensors, which are there before the tracker of a real run looks; the same for every label."""
TINY = {"rank": 16, "active_layers": 2, "active_share": 1.0, "interval_steps": 2, "update_gap": 2}
"""Of draws that hang on the training the worst is planned: there is one if all blocks are active (else: test_ist)."""


def small_spec(label: str, dtype: str = "fp32", **train: Any) -> RunSpec:
    settings = {**TINY, "moment_dtype": dtype, "projector_dtype": dtype, "adapter_dtype": dtype}
    if label == "galore-layerwise":
        train.setdefault("max_grad_norm", None)
    return spec_of(label, SMALL, settings, dtype=dtype, sequence_length=LENGTH, batch_size=ROWS, **train)


def allocator_peak(
    spec: RunSpec, spoil: Callable[[TrainingLoop], None] = lambda loop: None, tracked_steps: int = 0
) -> int:
    return peak_of_real_run(spec, SMALL, [LENGTH] * ROWS, spoil=spoil, tracked_steps=tracked_steps)


def predicted(spec: RunSpec, model: BaseModelSpec = SMALL, **question: Any) -> Prediction:
    asked = {"device": "cpu", "horizon": "run", "num_steps": STEPS, **question}
    return predict(spec, model, Question(**asked), lambda request: SCORES if model is SMALL else None)


def either_way(labels: list[str]) -> list[Any]:
    """Return every label with checkpointing and without; one of the two is long, but of those that others stand on."""
    short = ("full", "galore", "lisa", "lora", "owlore")
    return [
        pytest.param(
            label,
            way,
            marks=[pytest.mark.long] if (number % 2 == 0) == way and label not in short else [],
            id=f"{label}-{way}",
        )
        for number, label in enumerate(labels)
        for way in (True, False)
    ]


@pytest.mark.parametrize(("label", "checkpointing"), either_way(LABELS))
def test_a_predicted_peak_is_the_allocators_own(
    label: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)  # weights are random, and some choices hang on them
    spec = small_spec(label, gradient_checkpointing=checkpointing)
    if spec.config.get("active_state", "resident") != "resident":  # a CPU's allocator counts what is on the host too
        changed = {"active_state": "resident", "interval_steps": STEPS, **DROP}
        spec = spec.model_copy(update={"config": {**spec.config, **changed}})

    def draw_the_worst(loop: TrainingLoop) -> None:
        if loop.method.draws_depend_on_training:
            loop.method.visit([2, 3] if checkpointing else [0, 3], loop.optimizer)

    if label == "spectrum":  # its choice hangs on the weights, which are random here; planning's keeps the most
        assert 0.96 <= allocator_peak(spec) / predicted(spec).peak_bytes <= 1.001
        monkeypatch.setattr("harness.methods.spectrum.selected", lambda scores, percent: [*scores][len(scores) // 2 :])
    assert predicted(spec).peak_bytes == pytest.approx(allocator_peak(spec, draw_the_worst), rel=0.01)


@pytest.mark.parametrize("label", ["full", "lora", "owlore"])
def test_a_predicted_peak_is_the_allocators_own_in_bf16(label: str) -> None:
    spec = small_spec(label, dtype="bf16", gradient_checkpointing=True)
    assert predicted(spec).peak_bytes == pytest.approx(allocator_peak(spec), rel=0.01)


@pytest.mark.parametrize("label", ["lisa", "owlore", "ows-fullrank"])
@pytest.mark.parametrize("policy", ["drop", "keep"])
@pytest.mark.parametrize("sampling", ["tour", "its own"])
def test_blocks_that_stay_one_step_are_without_state_in_its_backward_pass(
    label: str, policy: str, sampling: str
) -> None:
    settings = {"state_policy": policy, "returning_step_counter": "reset" if policy == "drop" else "keep"}
    law = {"sampling": "tour"} if sampling == "tour" else {}
    base = small_spec(label, gradient_checkpointing=True)
    spec = base.model_copy(update={"config": {**base.config, **settings, **law, "interval_steps": 1}})
    assert spec.config["active_layers"] == 2
    assert predicted(spec).peak_bytes == pytest.approx(allocator_peak(spec), rel=0.01)


def test_a_hidden_allocation_is_noticed() -> None:
    spec = small_spec("lisa")
    right = predicted(spec).peak_bytes

    def keep_memory_that_no_operation_shows(loop: TrainingLoop) -> None:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            with _disable_current_modes():
                loop.hidden = torch.empty(right // 50, dtype=torch.uint8)  # type: ignore[attr-defined]

        loop.context.decoder.blocks[0].register_forward_hook(hook)

    assert allocator_peak(spec, keep_memory_that_no_operation_shows) > 1.015 * right


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("label", ["full", "lora", "galore", "lisa", "owlore"])
def test_the_tracker_of_a_real_run_sees_what_is_predicted(label: str, rounding: str) -> None:
    """The same tracker on real tensors, category by category."""
    spec = small_spec(label, gradient_checkpointing=True)
    if rounding == "stochastic":
        changed = {"moment_dtype": "bf16", "moment_rounding": "stochastic"}
        spec = spec.model_copy(update={"config": spec.config | changed})
    seen: list[Any] = []

    allocator_peak(spec, seen.append, tracked_steps=STEPS)
    tracked, told = seen[0].memory.tracked_peak, predicted(spec)
    peak = tracked.at_peak
    assert tracked.moment == told.peak_phase
    assert peak.weights_bytes == told.weights_bytes
    assert peak.optimizer_state_bytes == told.at_peak.optimizer_state_bytes
    assert peak.gradients_bytes == told.at_peak.gradients_bytes
    assert peak.activations_bytes == pytest.approx(told.at_peak.activations_bytes, rel=0.002, abs=ROWS * LENGTH * 8)
    assert told.peak_bytes - peak.total_bytes == UNSEEN_BYTES


# The arithmetic of weights, gradients and optimizer state (decimal GB), with bf16 gradients and projectors; recomputed
# by hand from the shapes, independently of any code: parameters x bytes, 2 moments, r x n projectors.
BF16, FP32 = {"moment_dtype": "bf16"}, {"moment_dtype": "fp32"}
DROP = {"state_policy": "drop", "returning_step_counter": "reset"}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROWS_OF_ARITHMETIC = [
    ("full", {}, "first", (53.91, 80.86), (64.24, 96.36)),
    ("lisa", {"active_layers": 2, **DROP}, "first", (17.48, 20.15), (24.98, 30.93)),
    ("lisa", {"active_layers": 4, **DROP}, "first", (19.91, 24.19), (27.60, 35.29)),
    ("lisa", {"active_layers": 2}, "all-visited", (41.76, 68.72), (51.16, 83.28)),
    ("ows-fullrank", {"active_layers": 5, **DROP}, "first", (21.12, 26.22), (28.91, 37.47)),
    ("ows-fullrank", {"active_layers": 5}, "all-visited", (42.98, 69.93), (52.46, 84.59)),
    ("owlore", {"active_layers": 2, "rank": 128, **DROP}, "first", (15.92, 17.02), (23.31, 27.57)),
    ("owlore", {"active_layers": 5, "rank": 128, **DROP}, "first", (17.24, 18.41), (24.73, 29.08)),
    ("owlore", {"active_layers": 5, "rank": 128}, "all-visited", (18.12, 19.98), (25.70, 30.88)),
    ("owlore", {"active_layers": 5, "rank": 256, **DROP}, "first", (17.40, 18.70), (24.91, 29.41)),
    ("owlore", {"active_layers": 5, "rank": 256}, "all-visited", (19.16, 21.83), (26.86, 33.01)),
    ("galore", {"rank": 128}, "first", (29.05, 30.91), (37.48, 42.66)),
    ("galore-layerwise", {"rank": 128}, "first", (15.83, 17.69), (22.47, 27.65)),
    ("galore", {"rank": 1024}, "first", (36.36, 43.88), (45.59, 57.57)),
]
BADAM_OF_LLAMA2 = {"weights_bytes": 13.477, "gradients_bytes": 0.405, "optimizer_state_bytes": 2.429}
"""One block of 202,383,360 numbers: gradients in bf16, two fp32 moments and an fp32 master. The badam distribution
holds an fp32 copy of the block's gradients too, 0.81 GB; here it is one parameter's, a temporary of its update."""
MODELS = ("llama2-7b", "llama3-8b")
MODELS_AT_LENGTH = [pytest.param(MODELS[0], marks=pytest.mark.slow), pytest.param(MODELS[1], marks=pytest.mark.long)]


def static(label: str, model: str, settings: dict[str, Any], horizon: str = "first") -> Prediction:
    """Predict with one short row: what is static does not depend on the batch, and less is simulated."""
    entry = load_models()[model]
    train: dict[str, Any] = {"batch_size": 1, "sequence_length": 16}
    if label == "galore-layerwise":
        train["max_grad_norm"] = None
    spec = spec_of(label, entry, {"projector": "randomized", **settings}, **train)
    return predict(spec, entry, Question("cuda", horizon), lambda request: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("model", MODELS_AT_LENGTH)
@pytest.mark.parametrize(("label", "settings", "horizon", "llama2", "llama3"), ROWS_OF_ARITHMETIC)
def test_static_memory_is_the_arithmetic(
    label: str,
    settings: dict[str, Any],
    horizon: str,
    llama2: tuple[float, float],
    llama3: tuple[float, float],
    model: str,
    dtype: str,
) -> None:
    expected = (llama2 if model == "llama2-7b" else llama3)[("bf16", "fp32").index(dtype)]
    found = static(label, model, {**settings, "moment_dtype": dtype}, horizon)
    assert found.static_bytes / 1e9 == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("model", MODELS_AT_LENGTH)
@pytest.mark.parametrize(
    ("rank", "dtype", "llama2", "llama3"),
    [(16, "bf16", 13.80, 16.40), (16, "fp32", 14.12, 16.73), (128, "bf16", 16.04, 18.74), (128, "fp32", 18.59, 21.43)],
)
def test_static_memory_of_lora_is_the_arithmetic(
    rank: int, dtype: str, llama2: float, llama3: float, model: str
) -> None:
    settings = {"rank": rank, "adapter_dtype": dtype, "moment_dtype": dtype, "target_modules": ALL_LINEAR}
    found = static("lora", model, settings)
    assert found.static_bytes / 1e9 == pytest.approx(llama2 if model == MODELS[0] else llama3, rel=0.005)
    if (rank, model) == (16, MODELS[0]):
        assert found.trainable_params == 39_976_960


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "static_gb"),
    # 2 r (in + out) of each matrix, fp32, four times: adapters, gradients, two moments; beside 13.477 GB of weights.
    # Spectrum: half of 32 x 202,375,168 matrix elements, embedding and head, in bf16: gradient and two moments each.
    [("pissa", 18.594), ("rslora", 14.374), ("lora-plus", 14.374), ("olora", 14.374), ("spectrum", 34.477)],
)
def test_static_memory_of_loras_variants_and_spectrum_is_that_of_their_shapes(label: str, static_gb: float) -> None:
    assert static(label, "llama2-7b", {}).static_bytes / 1e9 == pytest.approx(static_gb, rel=0.005)


@pytest.mark.slow
def test_lisas_published_breakdown_is_met() -> None:
    # LISA (arXiv 2403.17919), figure of memory for LLaMA-2-7B: optimizer 2.7 GB with E+H+2L; full fine-tuning 13.3
    # weights, 13.8 gradients, 26.3 optimizer, digitised to 0.3; their arithmetic is 13.48, 13.48, 26.95.
    lisa = static("lisa", "llama2-7b", {"active_layers": 2, **DROP})
    assert lisa.optimizer_state_bytes / 1e9 == pytest.approx(2.67, rel=0.005)
    full = static("full", "llama2-7b", {})
    parts = (full.weights_bytes, full.gradients_bytes, full.optimizer_state_bytes)
    assert [part / 1e9 for part in parts] == pytest.approx([13.48, 13.48, 26.95], rel=0.005)


@pytest.mark.slow
def test_static_memory_of_badam_is_the_arithmetic() -> None:
    found = static("badam", "llama2-7b", {}).model_dump()
    assert {part: found[part] / 1e9 for part in BADAM_OF_LLAMA2} == pytest.approx(BADAM_OF_LLAMA2, rel=0.005)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_blocks_at_which_the_backward_pass_ends_are_looked_at_from_both_sides(checkpointing: bool) -> None:
    """With a frozen embedding the lowest blocks keep the most activations, the deepest their gradients the longest."""
    spec = small_spec("badam", dtype="bf16", gradient_checkpointing=checkpointing)
    told = predicted(spec, horizon="all-visited").peak_bytes
    assert told == pytest.approx(allocator_peak(spec), rel=0.01)


@pytest.mark.parametrize(("dtype", "peak_is_the_loss"), [("fp32", False), ("bf16", True)])
def test_nested_checkpoints_keep_no_more_than_checkpointed_blocks(dtype: str, peak_is_the_loss: bool) -> None:
    nested, block = (
        predicted(small_spec("full", dtype=dtype, gradient_checkpointing=True, checkpoint_granularity=granularity))
        for granularity in ("nested", "block")
    )
    assert nested.recomputed_flops_per_step > block.recomputed_flops_per_step
    if peak_is_the_loss:  # whatever else is kept for the backward pass would show there
        assert nested.peak_bytes == block.peak_bytes
    else:
        assert nested.peak_bytes < block.peak_bytes


def test_kept_states_are_there_when_every_block_was_visited() -> None:
    spec = small_spec("lisa")
    told = predicted(spec, horizon="all-visited")
    parameters = sum(parameter.numel() for parameter in build_model(SMALL, "fp32", "meta").parameters())
    assert told.optimizer_state_bytes == 2 * 4 * parameters
    assert predicted(spec, horizon="first").optimizer_state_bytes < told.optimizer_state_bytes


def test_coin_flips_have_a_bound_of_their_own() -> None:
    told = predicted(small_spec("lisa-paper"))
    assert told.all_active_peak_bytes is not None
    assert told.all_active_peak_bytes >= told.peak_bytes
    assert predicted(small_spec("lisa")).all_active_peak_bytes is None


@pytest.mark.parametrize("accumulation", [1, 2, 5])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_operations_of_a_step_are_those_of_the_closed_form(accumulation: int, device: str) -> None:
    # Full fine-tuning: 2 operations a weight and token forward, 4 backward; attention 4 B H S S D forward, twice that
    # backward, the causal half not left out. The embedding multiplies nothing.
    spec = small_spec("full", dtype="bf16", gradient_checkpointing=True, gradient_accumulation_steps=accumulation)
    shape = SMALL.shape
    assert shape is not None
    kv = shape.num_kv_heads * shape.head_dim
    block = 2 * shape.hidden_size**2 + 2 * shape.hidden_size * kv + 3 * shape.hidden_size * shape.intermediate_size
    weights = shape.num_layers * block + shape.hidden_size * shape.vocab_size
    tokens = ROWS * LENGTH
    attention = 12 * shape.num_layers * ROWS * shape.num_heads * LENGTH**2 * shape.head_dim
    told = predicted(spec, device=device)
    assert told.flops_per_step == accumulation * (6 * weights * tokens + attention)
    assert 0 < told.recomputed_flops_per_step < told.flops_per_step / 3
    kept = predicted(small_spec("full", dtype="bf16", gradient_checkpointing=False), device=device)
    assert kept.recomputed_flops_per_step == 0


def operations_of_real_step(spec: RunSpec) -> int:
    """Return what torch counts in the first step of a real run, with what it does not know of attention on a CPU."""

    def attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def attention_backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
        return 2 * int(sdpa_flop_count(query, key, value))

    aten, counts = torch.ops.aten, []
    known = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }

    def count(loop: TrainingLoop) -> None:
        take = loop.train_step

        def counted(micro_batches: Any) -> Any:
            with FlopCounterMode(display=False, custom_mapping=known) as counter:
                taken = take(micro_batches)
            counts.append(counter.get_total_flops())
            return taken

        loop.train_step = counted  # type: ignore[method-assign]

    peak_of_real_run(spec, SMALL, [LENGTH] * ROWS, steps=1, spoil=count)
    return counts[0]


CHECKPOINTED = {"gradient_checkpointing": True}
NESTED = {**CHECKPOINTED, "checkpoint_granularity": "nested"}


@pytest.mark.parametrize("checkpointing", [CHECKPOINTED, NESTED], ids=["block", "nested"])
@pytest.mark.parametrize("label", ["badam", "lora"])
def test_operations_of_a_step_are_those_that_torch_counts(label: str, checkpointing: dict[str, Any]) -> None:
    """With the embedding frozen nothing goes below the lowest trained block, under checkpointing too."""
    spec = small_spec(label, **checkpointing)
    told = predicted(spec, horizon="first")
    assert told.flops_per_step + told.recomputed_flops_per_step == operations_of_real_step(spec)
    plain = predicted(small_spec(label, gradient_checkpointing=False), horizon="first")
    assert told.flops_per_step == plain.flops_per_step


@pytest.mark.parametrize("checkpointing", [True, False])
def test_operations_are_told_of_the_blocks_from_which_gradients_go_furthest(checkpointing: bool) -> None:
    spec = small_spec("badam", gradient_checkpointing=checkpointing)  # two blocks are active
    run = FakeRun(spec, SMALL, device="cpu", num_steps=STEPS, block_scores=lambda request, number: SCORES)
    run.draw(0)
    run.visit([0, 3])
    run.step()
    told = predicted(spec, horizon="all-visited")
    assert told.flops_per_step == run.tracker.flops
    assert told.recomputed_flops_per_step == run.tracker.recomputed_flops


@pytest.mark.parametrize(("active", "computed_again"), [([3], 1), ([2], 2), ([1, 3], 3), ([0], 4)])
def test_blocks_are_computed_again_from_the_lowest_active_one_up(active: list[int], computed_again: int) -> None:
    base = small_spec("lisa", gradient_checkpointing=True)
    spec = base.model_copy(update={"config": {**base.config, "train_embedding": False}})
    run = FakeRun(spec, SMALL, device="cpu", num_steps=STEPS, block_scores=lambda request, number: SCORES)
    run.draw(0)
    found = []
    for blocks in (active, range(4)):
        before = run.tracker.recomputed_flops
        run.visit(blocks)
        run.step()
        found.append(run.tracker.recomputed_flops - before)
    assert found[0] * 4 == found[1] * computed_again


@pytest.mark.parametrize(
    ("compute_capability", "workspace"),
    [
        ("7.5", 8_519_680),  # what a T4's allocator shows for ":4096:2:16:8"
        ("8.0", 8_519_680),
        ("8.6", 8_519_680),
        ("8.9", 8_519_680),
        ("9.0", 32 * 2**20),
        ("10.3", 32 * 2**20),
        ("12.0", 32 * 2**20),
        (None, 32 * 2**20),
    ],
)
def test_older_devices_have_smaller_workspaces(compute_capability: str | None, workspace: int) -> None:
    assert blas_workspaces(compute_capability) == [workspace, workspace]


def test_a_prediction_holds_the_workspaces_of_its_device() -> None:
    spec = small_spec("full", dtype="bf16")
    newer, older, unknown = (
        predicted(spec, device="cuda", compute_capability=capability) for capability in ("9.0", "8.9", None)
    )
    # The allocator leaves up to 1 MiB of a block unsplit, and the workspaces change which block a tensor goes to.
    difference = pytest.approx(2 * (32 * 2**20 - 8_519_680), abs=2**20)
    assert newer.peak_bytes - older.peak_bytes == difference
    assert newer.at_peak.other_bytes - older.at_peak.other_bytes == difference
    assert unknown.peak_bytes == newer.peak_bytes


def test_the_process_that_predicts_is_told_the_compute_capability(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Question] = []

    def note(spec: RunSpec, model: BaseModelSpec, question: Question, scores: object) -> Prediction:
        asked.append(question)
        raise HarnessError("noted")

    monkeypatch.setattr(worker, "predict_and_tell", note)
    spec = small_spec("full")
    worker.answer(
        PlanTask(
            spec=spec, model=SMALL, device="cuda", device_name="A", compute_capability="8.6", cache_folder=tmp_path
        )
    )
    assert asked == [Question("cuda", "run", "8.6", STEPS)]
