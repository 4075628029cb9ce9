"""8-bit moments: both rules, slices, remedies for bf16, bytes, plans, and what becomes of their state."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.calibration.bench import Bench, Skip
from harness.calibration.methods import steps_of
from harness.catalogue.labels import load_labels
from harness.catalogue.models import load_models
from harness.errors import Refused
from harness.expansion import expand, load_suite
from harness.method import METHODS
from harness.methods import _eight_bit
from harness.methods._declared import moment_bytes
from harness.planning import fake_run
from harness.planning.fake_run import PlanTracker
from harness.planning.predict import Question, predict
from harness.planning.savers import savers
from harness.planning.sizes import SizesMode
from tests.real_runs import peak_of_real_run, spec_of
from tests.unit.test_optimizers import PROJECTION, gradient, optimizer_of, parameter
from tests.unit.test_prediction import SMALL, TINY, predicted

LARGE, SMALLER = (64, 128), (63, 65)
"""8,192 numbers and 4,095."""
LENGTH = 24
assert SMALL.shape is not None
FLAT = SMALL.model_copy(update={"shape": SMALL.shape.model_copy(update={"num_layers": 1})})


def stepped(p: torch.nn.Parameter, steps: int = 3, **settings: Any) -> Any:
    """Return the optimizer after steps on a parameter."""
    optimizer = optimizer_of({"w": p}, **{"moment_dtype": "int8", **settings})
    for step in range(steps):
        p.grad = gradient(p, step)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("projection", [None, {**PROJECTION, "rank": 40}])
@pytest.mark.parametrize("rule", ["torch", "transformers"])
@pytest.mark.parametrize("shape", [LARGE, SMALLER])
def test_the_first_update_under_both_rules_is_that_of_fp32_moments(
    shape: tuple[int, int], rule: str, projection: dict[str, Any] | None
) -> None:
    """Moments are rounded after the update that they make, so the first one shows the arithmetic alone."""
    how = {"adamw_rule": rule, "eps": 1e-2, "weight_decay": 0.5, "lr": 0.1, "projection": projection}
    mine, theirs = parameter(*shape), parameter(*shape)
    stepped(mine, 1, **how)
    stepped(theirs, 1, **how, moment_dtype="fp32")
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    other = parameter(*shape)
    stepped(other, 1, **{**how, "adamw_rule": "torch" if rule == "transformers" else "transformers"})
    assert (mine - other).abs().max() > 1e-3


@pytest.mark.parametrize("rule", ["torch", "transformers"])
def test_later_updates_stay_near_those_of_fp32_moments(rule: str) -> None:
    mine, theirs = parameter(*LARGE), parameter(*LARGE)
    stepped(mine, 20, adamw_rule=rule)
    stepped(theirs, 20, adamw_rule=rule, moment_dtype="fp32")
    away = (mine - theirs).norm() / (theirs - parameter(*LARGE)).norm()
    assert 1e-4 < away < 0.05


@pytest.mark.parametrize("elements", [1, 300, 1 << 13])
@pytest.mark.parametrize("own", [{}, {"master_weights": True}])
def test_slices_are_whole_blocks_and_change_no_bit(elements: int, own: dict[str, Any]) -> None:
    whole, sliced = (parameter(100, 41, dtype=torch.bfloat16) for _ in range(2))
    first = stepped(whole, **own)
    second = stepped(sliced, **own, update_slice_elements=elements)
    assert torch.equal(whole, sliced)
    one, other = first.state[whole], second.state[sliced]
    assert all(torch.equal(one[key], other[key]) for key in set(one) - {"step"})


def test_the_largest_call_is_cut_too(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = parameter(*LARGE), parameter(*LARGE)
    stepped(whole)
    monkeypatch.setattr(_eight_bit, "LARGEST_CALL", 512)
    calls = []
    real = _eight_bit.library()
    monkeypatch.setattr(
        real, "optimizer_update_8bit_blockwise", _noting(calls, real.optimizer_update_8bit_blockwise), raising=True
    )
    stepped(cut, 3)
    assert torch.equal(whole, cut) and set(calls) == {512} and len(calls) == 3 * 16


def _noting(calls: list[int], function: Any) -> Any:
    def noting(**given: Any) -> None:
        calls.append(given["p"].numel())
        function(**given)

    return noting


def test_remedies_for_bf16_weights_work_on_fp32_ones() -> None:
    """A master is what fp32 weights with the same gradients are; rounding at random is unbiased about it."""
    master, exact = parameter(*LARGE, dtype=torch.bfloat16), parameter(*LARGE, dtype=torch.bfloat16)
    exact = torch.nn.Parameter(exact.detach().float())
    optimizer = optimizer_of({"w": master}, moment_dtype="int8", master_weights=True)
    plain = optimizer_of({"w": exact}, moment_dtype="int8")
    for step in range(3):
        master.grad = gradient(master, step)
        exact.grad = master.grad.float()
        optimizer.step()
        plain.step()
    assert torch.equal(optimizer.state[master]["master"], exact) and torch.equal(master, exact.to(torch.bfloat16))
    rounded = parameter(*LARGE, dtype=torch.bfloat16)
    stepped(rounded, 1, stochastic_rounding=True, lr=1e-5)
    nearest = parameter(*LARGE, dtype=torch.bfloat16)
    stepped(nearest, 1, lr=1e-5)
    moved = rounded.detach().float() - parameter(*LARGE, dtype=torch.bfloat16).detach().float()
    assert (moved != 0).double().mean() > (nearest != parameter(*LARGE, dtype=torch.bfloat16)).double().mean()
    assert abs(float(moved.abs().mean()) / 1e-5 - 1) < 0.2


def test_a_parameter_that_does_not_lie_in_one_piece_moves_alike() -> None:
    plain = parameter(*LARGE)
    turned = torch.nn.Parameter(parameter(*LARGE).detach().t().contiguous().t())
    assert not turned.is_contiguous()
    for p in (plain, turned):
        stepped(p)
    assert torch.equal(plain, turned)


@pytest.mark.parametrize(("numbers", "wanted"), [(4095, 4 * 4095), (4096, 4096 + 64), (4097, 4097 + 68), (1, 4)])
def test_a_moment_takes_a_byte_a_number_and_four_a_block(numbers: int, wanted: int) -> None:
    p = parameter(numbers)
    assert stepped(p, 1).state_bytes() == {"device": 2 * wanted, "host": 0}
    assert moment_bytes(numbers, "int8", numbers) == wanted


def test_of_a_projected_matrix_the_numbers_in_the_subspace_count() -> None:
    p = parameter(*LARGE)
    state = stepped(p, 1, projection={**PROJECTION, "rank": 31}).state[p]
    assert state["exp_avg"].dtype == torch.float32 and state["exp_avg"].shape == (31, 128)
    q = parameter(*LARGE)
    state = stepped(q, 1, projection={**PROJECTION, "rank": 32}).state[q]
    assert state["exp_avg"].dtype == torch.uint8 and state["exp_avg_absmax"].shape == (16,)


@pytest.mark.parametrize("mode", [FakeTensorMode, SizesMode])
def test_without_values_the_tables_are_made_outside_the_mode_and_states_have_their_bytes(mode: Any) -> None:
    _eight_bit._values.cache_clear()
    device = "meta" if mode is SizesMode else "cpu"
    with mode():
        p = torch.nn.Parameter(torch.empty(256, 256, dtype=torch.bfloat16, device=device))
        optimizer = optimizer_of({"w": p}, moment_dtype="int8")
        p.grad = torch.empty_like(p)
        optimizer.step()
        assert optimizer.state_bytes() == {"device": 133_120, "host": 0}
    assert 133_120 / p.numel() == 2.03125
    signed = _eight_bit._values(True)
    assert (len(signed), signed[-1], sorted(signed)) == (256, 1.0, list(signed))


@pytest.mark.parametrize(("label", "dtype"), [("adamw-8bit", "fp32"), ("galore-8bit", "bf16")])
def test_a_predicted_peak_is_the_allocators_own(label: str, dtype: str) -> None:
    """It lies in an update: on a CPU, bitsandbytes' operator makes and frees the most of all inside itself."""
    own = {**TINY, "rank": 32, "projector_dtype": dtype}
    asked = spec_of(label, FLAT, own, dtype=dtype, sequence_length=LENGTH, batch_size=1, gradient_checkpointing=True)
    told = predicted(asked, FLAT)
    assert told.peak_phase == "optimizer"
    assert told.peak_bytes == pytest.approx(peak_of_real_run(asked, FLAT, [LENGTH]), rel=0.01)


@pytest.mark.parametrize(("device", "hidden"), [("cpu", 6 * 4 * 65_536), ("cuda", 0)])
def test_what_is_assumed_inside_an_update_by_device(device: Any, hidden: int) -> None:
    tracker = PlanTracker(device)
    with FakeTensorMode(), tracker:
        p = torch.nn.Parameter(torch.empty(256, 256, dtype=torch.bfloat16))
        p.grad = torch.empty_like(p)
        optimizer_of({"w": p}, moment_dtype="int8").step()
    span = tracker.take()
    assert span.peak.num_bytes == 2 * 2 * p.numel() + 133_120 + 2 * 1024 + hidden


@pytest.mark.slow
@pytest.mark.parametrize(("in_backward", "total"), [(False, 28.1), (True, 14.9)])
def test_galore_in_8_bits_on_llama2_7b_is_the_arithmetic(in_backward: bool, total: float) -> None:
    """Decimal GB: projected moments 0.411, those of embedding and head 0.532, projectors 0.235; bf16 weights 13.477."""
    entry = load_models()["llama2-7b"]
    own = {"update_in_backward": in_backward}
    one = spec_of("galore-8bit", entry, own, batch_size=1, sequence_length=16, max_grad_norm=None)
    found = predict(one, entry, Question("cuda", "first"), lambda request: None)  # type: ignore[arg-type]
    assert found.optimizer_state_bytes / 1e9 == pytest.approx(0.411 + 0.532 + 0.235, rel=0.005)
    assert found.static_bytes / 1e9 == pytest.approx(total, rel=0.005)


def configured(label: str, **changes: Any) -> Any:
    method = METHODS.get(load_labels()[label].method)
    return method, method.Config.model_validate({**load_labels()[label].values(), **changes})


def is_installed(patch: pytest.MonkeyPatch, found: str | None) -> None:
    """Let a release of bitsandbytes be the one that is installed; None: none is."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name != "bitsandbytes":
            return real(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    patch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize(("found", "sentence"), [(None, "which is not installed"), ("0.45.2", "0.45.2 is installed")])
def test_without_bitsandbytes_runs_and_plans_are_refused_before_a_model_is_built(
    found: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = spec_of("adamw-8bit", SMALL, {}, batch_size=1)
    is_installed(monkeypatch, found)
    monkeypatch.setattr(fake_run, "build_model", lambda *_, **__: pytest.fail("a model is built"))
    with pytest.raises(Refused, match=rf"int8' needs bitsandbytes.*{sentence}.*pip install '\.\[quantized\]'"):
        predicted(asked)
    method, config = configured("full")
    method.check(config, asked.train)  # whoever does not ask for 8 bits needs none


def test_a_suite_without_bitsandbytes_goes_on_with_its_other_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load_suite("configurations")
    models = {name: load_models()[name] for name in suite.models}
    asked = [spec.run_id for spec in expand(suite, models=models, sources={})]
    is_installed(monkeypatch, None)
    assert [spec.run_id for spec in expand(suite, models=models, sources={})] == asked
    assert {"adamw-8bit", "galore-8bit", "full"} < set(suite.labels)  # those of 8 bits are refused one by one


def test_a_calibration_without_bitsandbytes_skips_its_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    is_installed(monkeypatch, None)
    with pytest.raises(Skip, match="needs bitsandbytes"):
        steps_of(Bench(torch.device("cpu"), "smoke"), "galore-8bit")


def test_8_bit_moments_are_not_rounded_at_random() -> None:
    with pytest.raises(ValueError, match="bitsandbytes rounds 8-bit moments to the nearest"):
        configured("adamw-8bit", moment_rounding="stochastic")


def test_8_bit_moments_are_a_saver_and_bf16_ones_are_none_beside_them() -> None:
    def offered(label: str, **own: Any) -> list[str]:
        asked = spec_of(label, SMALL, own, dtype="bf16", batch_size=1)
        return [str(one.changes["moment_dtype"]) for one in savers(asked) if "moment_dtype" in one.changes]

    assert offered("full") == offered("lora", moment_dtype="bf16") == ["int8"]
    assert offered("galore", moment_dtype="fp32") == ["bf16", "int8"]
    assert offered("adamw-8bit") == []
