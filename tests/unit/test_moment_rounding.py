"""Moments in bf16: what rounding to nearest loses, and that rounding at random keeps it on average."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.methods import _moment_rounding
from harness.methods._layer_sampled import LayerSampledConfig
from harness.methods._moment_rounding import noise_of
from harness.methods._optimizers import AdamW
from harness.methods._settings import AdamWSettings
from harness.settings import later_settings
from harness.tensors.seeding import torch_generator
from tests.unit.test_optimizers import optimizer_of, parameter
from tests.unit.test_training import train

ROUNDED: dict[str, Any] = {"moment_dtype": "bf16", "moment_rounding": "stochastic"}
STEADY, QUIET = 300, 700


def second_moment(**changes: Any) -> float:
    """Return the mean second moment of steady gradients of 1 followed by none, under betas (0.9, 0.999)."""
    p = torch.nn.Parameter(torch.zeros(4096))
    optimizer = optimizer_of({"w": p}, **changes)
    optimizer._streams = partial(torch_generator, 1)
    for step in range(STEADY + QUIET):
        p.grad = torch.full_like(p, 1.0 if step < STEADY else 0.0)
        optimizer.step()
    return float(optimizer.state[p]["exp_avg_sq"].float().mean())


def test_a_second_moment_in_bf16_falls_only_when_rounded_at_random() -> None:
    right = (1 - 0.999**STEADY) * 0.999**QUIET
    assert second_moment(moment_dtype="fp32") == pytest.approx(right, rel=1e-3)
    assert second_moment(**ROUNDED) == pytest.approx(right, rel=0.01)
    stuck = second_moment(moment_dtype="bf16")
    assert stuck >= 1 - 0.999**STEADY, "it fell"


@pytest.mark.parametrize("rule", ["torch", "transformers"])
@pytest.mark.parametrize("projected", [False, True])
def test_the_mean_of_rounded_updates_is_the_update_in_fp32(rule: str, projected: bool) -> None:
    """One update from the same bf16 moments, many times: what is stored is right on average, what moves exactly."""
    projection = {
        "rank": 8, "update_gap": 100, "update_gap_counter": "parameter", "projection_side": "reference",
        "projector": "svd", "scale": 0.5, "projector_dtype": "fp32",
    }  # fmt: skip
    tries, seed = 400, iter(range(10**6))
    streams = partial(torch_generator, 3)

    def update(**changes: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        p = parameter(16, 8, seed=1)
        optimizer = optimizer_of({"w": p}, projection=dict(projection) if projected else None, **changes)
        optimizer._streams = lambda name: streams(f"{name}/{next(seed)}")
        for step in range(2):
            p.grad = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
            if step == 1:  # from the same moments, such as bf16 holds exactly
                for name in ("exp_avg", "exp_avg_sq"):
                    start = torch.rand(16, 8, generator=torch.Generator().manual_seed(9)).to(torch.bfloat16)
                    optimizer.state[p][name].copy_(start)
            before = p.detach().clone()
            optimizer.step()
        state = optimizer.state[p]
        return p.detach() - before, state["exp_avg"].double(), state["exp_avg_sq"].double()

    exact = update(adamw_rule=rule, moment_dtype="fp32")
    found = [update(adamw_rule=rule, **ROUNDED) for _ in range(tries)]
    for moved, _, _ in found[:3]:
        torch.testing.assert_close(moved, exact[0], rtol=1e-5, atol=1e-8)
    for index in (1, 2):
        values = torch.stack([one[index] for one in found])
        error = values.mean(0) - exact[index]
        spread = values.std(0) / tries**0.5
        assert int((spread > 0).sum()) > 100, "hardly a number was rounded"
        z = error[spread > 0] / spread[spread > 0]
        assert float(z.square().mean()) == pytest.approx(1.0, abs=0.5)
        assert float(z.abs().max()) < 5.5


@pytest.mark.parametrize("start", [0, 1, 63, 64, 130])
def test_noise_of_a_part_is_that_of_the_whole(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_moment_rounding, "PIECE", 64)

    def noise(seed: int, start: int, count: int) -> torch.Tensor:
        return noise_of(torch.Generator().manual_seed(seed), start, count, 200, torch.device("cpu"))

    whole = noise(7, 0, 200)
    assert torch.equal(noise(7, start, 70), whole[start : start + 70])
    assert len(whole.unique()) > 190 and not torch.equal(whole, noise(8, 0, 200))
    low = (whole & 0xFFFF).double().mean() / 2**16
    assert 0.3 < float(low) < 0.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slices_change_not_a_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_moment_rounding, "PIECE", 96)
    ended = []
    for elements in (None, 130, 640):
        p = parameter(40, 16, dtype=dtype)
        optimizer = optimizer_of({"w": p}, update_slice_elements=elements, weight_decay=0.1, **ROUNDED)
        for step in range(4):
            p.grad = torch.randn(40, 16, generator=torch.Generator().manual_seed(step)).to(dtype)
            optimizer.step()
        ended.append((p.detach(), optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]))
    for other in ended[1:]:
        assert all(torch.equal(one, two) for one, two in zip(ended[0], other, strict=True))


def test_state_is_bf16_and_nothing_more(tiny_llama: Path, tokenizer: Any) -> None:
    plain = train("owlore", tiny_llama, tokenizer, dtype="bf16")[2].optimizer
    rounded = train("owlore", tiny_llama, tokenizer, dtype="bf16", settings=ROUNDED)[2].optimizer
    assert isinstance(rounded, AdamW) and rounded.state_bytes() == plain.state_bytes()
    moments = [state[name] for state in rounded.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert {moment.dtype for moment in moments} == {torch.bfloat16}


def test_rounding_what_is_not_rounded_is_refused() -> None:
    with pytest.raises(ValueError, match="moment_rounding = 'stochastic' is for moment_dtype = 'bf16': fp32 moments"):
        optimizer_of({"w": parameter(2, 2)}, moment_dtype="fp32", moment_rounding="stochastic")


def test_without_it_a_run_is_what_it_was() -> None:
    for settings in (AdamWSettings, LayerSampledConfig):
        assert later_settings(settings)["moment_rounding"] == "nearest"
