"""Predictions with a device profile: each measured constant stands where an assumed one stood."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.calibration.attention import Shape, planned_bytes
from harness.catalogue.datasets import load_datasets
from harness.commands import plan
from harness.device_profile import AttentionConstants, DeviceProfile, Rates, SolverConstants
from harness.planning.cuda import LARGE_WORKSPACE, solver_bytes
from harness.planning.kernels import backward_workspace
from harness.planning.questions import PlanAnswer, PlanTask
from tests.unit.test_prediction import ROWS, SMALL, predicted, small_spec

MiB = 1 << 20


def profile(**changes: Any) -> DeviceProfile:
    known: dict[str, Any] = {
        "device_name": "a GPU",
        "device_type": "cuda",
        "torch": "2.13.0",
        "sizes": "full",
        "measured_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return DeviceProfile(**{**known, **changes})


def peak(label: str = "full", given: DeviceProfile | None = None, **train: Any) -> int:
    spec = small_spec(label, dtype="bf16", gradient_checkpointing=False, **train)
    return predicted(spec, device="cuda", profile=given).peak_bytes


def test_a_profile_that_measured_nothing_changes_nothing() -> None:
    assert peak(given=profile()) == peak()


def test_measured_blas_workspaces_stand_in_place_of_the_assumed() -> None:
    given = profile(blas_workspace_bytes=(40 * MiB, 2 * MiB, 0))
    assert peak(given=given) - peak() == 42 * MiB - 2 * LARGE_WORKSPACE


def test_what_attention_keeps_is_kept_in_every_layer() -> None:
    shape = SMALL.shape
    assert shape is not None
    length = 96
    heads_and_tokens = ROWS * shape.num_heads * length
    more = AttentionConstants(
        mask=False, grouped=True, head_size=32, kernel="cudnn", kept_bytes=4 + 64, backward_bytes=0
    )
    as_flash = more.model_copy(update={"kept_bytes": 4.0})
    difference = peak(given=profile(attention=(more,))) - peak(given=profile(attention=(as_flash,)))
    assert difference == pytest.approx(shape.num_layers * 64 * heads_and_tokens, rel=0.01)


def test_constants_of_another_way_to_call_attention_are_not_taken() -> None:
    other = AttentionConstants(
        mask=True, grouped=False, head_size=32, kernel="efficient", kept_bytes=1e4, backward_bytes=1e6
    )
    assert peak(given=profile(attention=(other,))) == peak()


@pytest.mark.parametrize(
    ("mask", "grouped", "assumed"), [(True, False, True), (False, False, True), (False, True, False)]
)
def test_a_kernel_is_assumed_where_its_way_to_call_attention_was_not_measured(
    mask: bool, grouped: bool, assumed: bool
) -> None:
    constants = AttentionConstants(
        mask=mask, grouped=grouped, head_size=32, kernel="cudnn", kept_bytes=4, backward_bytes=0
    )
    spec = small_spec("full", dtype="bf16", gradient_checkpointing=False)
    given = profile(attention=(constants,))
    told = predicted(spec, device="cuda", compute_capability="9.0", profile=given).assumptions
    assert any("attention was taken as torch's flash attention" in sentence for sentence in told) is assumed


def test_a_measured_solver_moves_the_peak_of_a_refresh() -> None:
    large = profile(solver=SolverConstants(svd=400.0))
    assert peak("owlore-code", large) > 1.5 * peak("owlore-code")


@pytest.mark.parametrize(("kind", "expected"), [("svd", 2 * 60 + 36), ("qr", 640), ("eigh", 72)])
def test_assumed_work_space_of_factorisations(kind: str, expected: int) -> None:
    assert solver_bytes(kind, 6, 10, 4) == 4 * expected
    assert solver_bytes(kind, 6, 10, 4, SolverConstants.model_validate({kind: 1.5})) == 4 * 90


def test_what_is_assumed_of_flash_attention_is_its_closed_form() -> None:
    plain = Shape(batch=2, heads=8, kv_heads=8, tokens=256, head_size=128, masked=False)
    kept, backward = planned_bytes(plain, torch.bfloat16)
    assert kept == 4 * plain.heads_and_tokens  # logsumexp, fp32
    assert backward == (4 + 4 * 128) * plain.heads_and_tokens  # softmax_d and dq_accum, fp32
    grouped = Shape(batch=2, heads=8, kv_heads=2, tokens=256, head_size=128, masked=False)
    assert planned_bytes(grouped, torch.bfloat16)[1] == backward + 2 * 2 * 128 * plain.heads_and_tokens


def test_what_is_assumed_of_efficient_attention_is_its_closed_form_without_the_bias() -> None:
    shape = Shape(batch=2, heads=8, kv_heads=8, tokens=256, head_size=128, masked=True)
    kept, backward = planned_bytes(shape, torch.bfloat16)
    assert kept == 4 * shape.heads_and_tokens
    assert backward == 4 * shape.heads_and_tokens + 4 * backward_workspace(2, 8, 256, 256, 128)


def test_the_measured_context_decides_what_fits() -> None:
    spec = small_spec("full", dtype="bf16")
    told = predicted(spec, device="cuda")
    assert told.reserved_bytes is not None
    memory = told.reserved_bytes + 400_000_000
    rows = load_datasets()["random-tokens"]

    def fits(given: DeviceProfile | None) -> str:
        against = plan._Against(memory, given, None, None)
        return str(plan._line(spec, PlanAnswer(prediction=told), against, rows, 1)["fits"])

    assert fits(None) == fits(profile()) == "no"  # 500 MB are assumed
    assert fits(profile(context_bytes=400_000_000)) == "yes"
    assert fits(profile(context_bytes=400_000_001)) == "tight"


def test_a_kept_prediction_answers_for_the_constants_that_it_was_made_with(tmp_path: Path) -> None:
    def key(given: DeviceProfile | None) -> str:
        spec = small_spec("full", dtype="bf16")
        return PlanTask(spec=spec, model=SMALL, device="cuda", profile=given, cache_folder=tmp_path).key("0")

    asked = [None, profile(), profile(context_bytes=1), profile(solver=SolverConstants(svd=2.0))]
    assert len({key(given) for given in asked}) == len(asked)
    assert key(profile()) == key(profile(rates=Rates(bf16_flops=1e12)))


def test_rates_are_no_part_of_what_is_asked_of_a_prediction() -> None:
    slow, fast = (profile(rates=Rates(bf16_flops=rate)) for rate in (1e12, 1e15))
    assert peak(given=slow) == peak(given=fast)
