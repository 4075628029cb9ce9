"""Predictions of padded rows and of short sliding windows: against torch's own allocator, and in closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.catalogue.datasets import load_datasets
from harness.catalogue.models import BaseModelSpec, ModelShape
from harness.data.drawn import rows_may_be_padded
from harness.errors import Refused
from harness.planning.fake_run import PlanTracker
from harness.planning.kernels import EfficientAttention, FlashAttention, backward_workspace, kept_bias
from harness.planning.predict import Question, predict
from harness.record_training import Prediction
from harness.spec import RunSpec
from harness.tensors.loading import build_model
from harness.tensors.rotary import rotation_limit
from harness.tensors.storage_tracker import Span
from tests.real_runs import SCORES, peak_of_real_run, spec_of

STEPS = 2
HEADS, KV_HEADS, HEAD_SIZE, LAYERS = 6, 2, 16, 2
SETTINGS = {"rank": 8, "active_layers": 1, "interval_steps": 2, "update_gap": 2}


def model_of(architecture: str, window: int | None = None) -> BaseModelSpec:
    """Return a narrow model of grouped heads, in which what attention keeps is a good part of the peak."""
    shape = ModelShape(
        hidden_size=HEADS * HEAD_SIZE,
        intermediate_size=256,
        num_layers=LAYERS,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_SIZE,
        vocab_size=160,
        max_positions=2048,
        rope_theta=10000.0,
        tied_head=False,
        sliding_window=window,
    )
    return BaseModelSpec(name="narrow", architecture=architecture, hub_id="nobody/narrow", shape=shape)


def spec_for(label: str, model: BaseModelSpec, length: int, rows: int, dtype: str = "fp32", **train: Any) -> RunSpec:
    settings = {**SETTINGS, "moment_dtype": dtype, "projector_dtype": dtype, "adapter_dtype": dtype}
    shape = {"sequence_length": length, "batch_size": rows}
    return spec_of(label, model, settings, dtype=dtype, num_steps=STEPS, **shape, **train)


def predicted(spec: RunSpec, model: BaseModelSpec, device: str = "cpu") -> Prediction:
    question = Question(device, "run", None, STEPS)  # type: ignore[arg-type]
    return predict(spec, model, question, lambda request: SCORES[:LAYERS])


def assert_met(label: str, model: BaseModelSpec, lengths: list[int], **settings: Any) -> Prediction:
    """Compare the predicted peak with the allocator's; the longest row has the length of the prediction."""
    spec = spec_for(label, model, max(lengths), len(lengths), **settings)
    told = predicted(spec, model)
    real = peak_of_real_run(spec, model, lengths, steps=STEPS, scores=SCORES[:LAYERS])
    assert told.peak_bytes == pytest.approx(real, rel=0.01)
    return told


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("length", [96, 250, 512, 1024])
@pytest.mark.parametrize("label", ["full", "lora", "owlore"])
def test_the_peak_of_padded_rows_is_the_allocators_own(label: str, length: int, checkpointing: bool) -> None:
    model = model_of("LlamaForCausalLM")
    told = assert_met(label, model, [length, length // 2, 11], gradient_checkpointing=checkpointing)
    assert not any("mask" in sentence for sentence in told.assumptions)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("length", [250, 1024])
@pytest.mark.parametrize("label", ["full", "lora"])
def test_the_peak_under_a_mask_that_stays_is_the_allocators_own(label: str, length: int, checkpointing: bool) -> None:
    model = model_of("Olmo2ForCausalLM")
    told = assert_met(label, model, [length, length // 2, 11], gradient_checkpointing=checkpointing)
    assert any("under a mask" in sentence for sentence in told.assumptions)


def test_the_peak_under_a_mask_that_stays_is_the_allocators_own_in_bf16() -> None:
    assert_met("full", model_of("Olmo2ForCausalLM"), [250, 20, 11], dtype="bf16", gradient_checkpointing=False)


@pytest.mark.parametrize("label", ["full", "lora"])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        {
            **{"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 1024},
            **{"short_factor": [1.0] * (HEAD_SIZE // 2), "long_factor": [4.0] * (HEAD_SIZE // 2)},
        },
    ],
    ids=["dynamic", "longrope"],
)
def test_positions_that_are_scaled_by_length_are_planned(rope: dict[str, Any], label: str, tmp_path: Path) -> None:
    plain = model_of("LlamaForCausalLM")
    assert plain.shape is not None
    config = {**plain.shape.config_settings("LlamaForCausalLM"), "rope_parameters": rope}
    transformers.LlamaConfig(**config, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    model = plain.model_copy(update={"folder": tmp_path})
    limit = rotation_limit(build_model(model, "fp32", "cpu"))
    assert limit in (1024, 2048)
    assert_met(label, model, [250, 125, 11], gradient_checkpointing=True)
    with pytest.raises(Refused, match=f"beyond {limit} tokens"):
        predicted(spec_for(label, model, limit + 1, 3), model)


def test_drawn_rows_have_one_length() -> None:
    train = spec_for("full", model_of("LlamaForCausalLM"), 250, 3).train
    known = load_datasets()
    assert train is not None and rows_may_be_padded(train, known["alpaca-gpt4"])
    assert not rows_may_be_padded(train, known["random-tokens"])
    assert rows_may_be_padded(train, None), "what is not known may be padded"


@pytest.mark.parametrize("settings", [{"packing": True}, {"batch_size": 1}], ids=["packed", "one row"])
def test_rows_that_are_never_padded_are_planned_without_a_mask(settings: dict[str, Any]) -> None:
    model = model_of("Olmo2ForCausalLM")
    rows = settings.get("batch_size", 3)
    told = assert_met("full", model, [250] * rows, packing=settings.get("packing", False), gradient_checkpointing=False)
    assert not any("under a mask" in sentence for sentence in told.assumptions)


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(("length", "window"), [(250, 64), (1024, 256), (256, 256), (256, 257)], ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["full rows", "padded rows"])
def test_the_peak_of_a_sliding_window_is_the_allocators_own(
    length: int, window: int, checkpointing: bool, padded: bool
) -> None:
    lengths = [length, length // 2, 11] if padded else [length] * 3
    assert_met("full", model_of("MistralForCausalLM", window), lengths, gradient_checkpointing=checkpointing)


@pytest.mark.parametrize("length", [256, 250])
def test_a_window_costs_on_cuda_what_the_closed_form_says(length: int) -> None:
    rows = 4

    def activations(window: int | None) -> int:
        model = model_of("MistralForCausalLM", window)
        told = predicted(spec_for("full", model, length, rows, "bf16", gradient_checkpointing=False), model, "cuda")
        assert (window is not None) == any("memory-efficient kernel" in sentence for sentence in told.assumptions)
        assert told.peak_phase == "backward"  # in the loss, all layers' kept tensors beside it
        return told.at_peak.activations_bytes

    aligned = -(-length // 8) * 8
    bias = rows * length * aligned * 2
    repeated = 2 * rows * (HEADS - KV_HEADS) * length * HEAD_SIZE * 2
    logsumexp = rows * HEADS * (-(-length // 32) * 32 - length) * 4
    # The boolean mask itself, which all layers share, is gone when the loss is computed.
    assert activations(64) - activations(None) == LAYERS * (bias + repeated + logsumexp)


def step_of(kernel: str) -> tuple[Span, Span]:
    """Return what one attention forward and backward pass make: 2 rows of 100 tokens, 4 heads of 16."""
    tracker = PlanTracker("cuda")
    with FakeTensorMode():
        query, key, value = (torch.empty(2, 4, 100, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        seen = torch.empty(2, 1, 100, 100, dtype=torch.bool)
        grad = torch.empty(2, 4, 100, 16, dtype=torch.bfloat16)
        tracker.adopt((query, key, value, seen, grad), "other")
        tracker.take()
        with tracker:
            if kernel == "flash":
                out = FlashAttention.apply(query, key, value)
            else:
                out = EfficientAttention.apply(query, key, value, kept_bias(seen, query))
            forward = tracker.take()
            torch.autograd.grad(out, (query, key, value), grad)
            return forward, tracker.take()


def made(span: Span) -> list[int]:
    return sorted(event.num_bytes for event in span.events if event.num_bytes > 0)


def test_memory_efficient_attention_makes_the_tensors_of_its_source() -> None:
    forward, backward = step_of("efficient")
    tensor = 2 * 4 * 100 * 16 * 2
    zero, infinity, unaligned, bias, logsumexp = 2, 2, 2 * 100 * 100 * 2, 2 * 100 * 104 * 2, 2 * 4 * 128 * 4
    assert made(forward) == sorted([zero, infinity, unaligned, bias, tensor, logsumexp])
    delta, workspace = 2 * 4 * 100 * 4, 2 * 4 * 2 * (4 + 64 * 64) * 4
    copied_grad = tensor  # it comes laid out by head here; from transformers it comes laid out by token
    assert made(backward) == sorted([copied_grad, tensor, tensor, tensor, delta, workspace])


def test_flash_attention_makes_the_tensors_of_its_source() -> None:
    forward, backward = step_of("flash")
    tensor = 2 * 4 * 100 * 16 * 2
    assert made(forward) == sorted([tensor, 2 * 4 * 100 * 4])
    assert made(backward) == sorted([tensor, tensor, tensor, 2 * 4 * 128 * 4, 2 * 128 * 4 * 32 * 4])


@pytest.mark.parametrize(
    ("heads", "size", "elements"),
    [
        (32, 64, 16 * 32 * (8 * (4 + 64 * 64))),
        (32, 80, 16 * 32 * (4 * (4 + 128 * 128))),
        (32, 128, 16 * 32 * (4 * (4 + 128 * 128))),
        (8, 256, 16 * 8 * (2 * 1 * 64 * 256 + 4 * 4 * (4 + 128 * 64))),
    ],
)
def test_the_workspace_of_the_efficient_backward_pass_is_its_sources(heads: int, size: int, elements: int) -> None:
    assert backward_workspace(16, heads, 512, 512, size) == elements


def test_keys_are_split_where_few_heads_leave_the_device_idle() -> None:
    # 512 keys are 8 tiles of 64; with 1 row and 8 heads, 200 // 8 = 25 splits would do.
    assert backward_workspace(1, 8, 512, 512, 256) == 8 * (2 * 8 * 64 * 256 + 4 * 4 * (4 + 128 * 64))
    assert backward_workspace(5, 8, 512, 512, 256) == 40 * (2 * 5 * 64 * 256 + 4 * 4 * (4 + 128 * 64))
