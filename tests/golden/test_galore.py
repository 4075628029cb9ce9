"""GaLore against its reference: live, fed the same gradients, and against numbers that the reference made."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from harness.methods._optimizers import AdamW, Group
from harness.methods._projection import LowRankProjection
from harness.methods._settings import AdamWSettings, LowRank


def load(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = load(Path(__file__).with_name("make_galore_golden.py"))


def stream(name):
    return torch.Generator().manual_seed(0)


def ours(p, *, lr, weight_decay, dtype="fp32", projected=True, **projection):
    settings = AdamWSettings(
        adamw_rule="transformers",
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=weight_decay,
        moment_dtype=dtype,
        master_weights=False,
        stochastic_rounding=False,
    )
    low_rank = LowRankProjection(low_rank_of(dtype, **projection), streams=stream, read_scalar=float)
    return AdamW([Group([("w", p)], low_rank if projected else None)], settings, learning_rate=lr, streams=stream)


def low_rank_of(dtype, *, rank, update_gap, scale, side="reference", kind="svd"):
    return LowRank(
        rank=rank,
        update_gap=update_gap,
        update_gap_counter="parameter",
        projection_side=side,
        projector=kind,
        scale=scale,
        projector_dtype=dtype,
    )


def relative(a, b):
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


@pytest.mark.parametrize("name", list(golden.SHAPES))
def test_weights_are_the_stored_ones_of_the_reference(name):
    shape = golden.SHAPES[name]
    p = torch.nn.Parameter(golden.weights(shape))
    optimizer = ours(p, **golden.SETTINGS)
    with golden.signed_svd():
        for step in range(golden.NUM_STEPS):
            p.grad = golden.gradient(shape, step)
            optimizer.step()
    stored = torch.tensor(json.loads(golden.FILE.read_text(encoding="utf-8"))["weights"][name])
    assert relative(p.detach(), stored) < 1e-5
    assert relative(golden.weights(shape), stored) > 0.05
    assert optimizer.projections()["w"]["num_refreshes"] == 5


def live(
    shape, *, rank=8, gap=10, scale=0.25, decay=0.1, dtype=torch.float32, side="reference", proj_type="std", kind="svd"
):
    """Return our weights and the reference's after 50 steps on the same random gradients."""
    galore_torch = pytest.importorskip("galore_torch")
    generator = torch.Generator().manual_seed(3)
    start = (0.1 * torch.randn(shape, generator=generator)).to(dtype)
    first, second = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    name = "fp32" if dtype == torch.float32 else "bf16"
    settings = {"lr": 0.01, "weight_decay": decay, "rank": rank, "update_gap": gap, "scale": scale}
    optimizer = ours(first, **settings, dtype=name, side=side, kind=kind)
    group = {"params": [second], "rank": rank, "update_proj_gap": gap, "scale": scale, "proj_type": proj_type}
    reference = galore_torch.GaLoreAdamW([group], lr=0.01, weight_decay=decay, no_deprecation_warning=True)
    for _ in range(50):
        first.grad = torch.randn(shape, generator=generator).to(dtype)
        second.grad = first.grad.clone()
        optimizer.step()
        reference.step()
    assert relative(first.detach(), start) > 0.05
    return first.detach(), second.detach()


@pytest.mark.parametrize("shape", [(48, 20), (20, 48), (32, 32)])
@pytest.mark.parametrize("scale", [0.25, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weights_after_50_steps_are_those_of_galore_torch(shape, scale, decay):
    assert relative(*live(shape, scale=scale, decay=decay)) < 1e-5


@pytest.mark.parametrize("shape", [(48, 20), (20, 48)])
def test_the_smaller_side_is_galore_torchs_reverse_std(shape):
    assert relative(*live(shape, side="smaller", proj_type="reverse_std")) < 1e-5


@pytest.mark.parametrize("shape", [(48, 20), (20, 48), (32, 32)])
def test_pure_bf16_is_galore_torchs_bit_by_bit(shape):
    a, b = live(shape, dtype=torch.bfloat16, decay=0.0)
    assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(48, 20), (20, 48), (32, 32)])
def test_a_wrong_side_or_scale_would_show(shape):
    a, b = live(shape)
    wrong, _ = live(shape, scale=0.26)
    assert relative(wrong, b) > 1e-3
    if shape[0] != shape[1]:
        wrong, _ = live(shape, side="smaller")
        assert relative(wrong, b) > 1e-3
    assert relative(a, b) < 1e-5


def test_full_rank_parameters_step_as_the_reference_steps_them():
    galore_torch = pytest.importorskip("galore_torch")
    first, second = (torch.nn.Parameter(golden.weights((7, 12))) for _ in range(2))
    optimizer = ours(first, **golden.SETTINGS, projected=False)
    reference = galore_torch.GaLoreAdamW([second], lr=0.01, weight_decay=0.1, no_deprecation_warning=True)
    for step in range(50):
        first.grad = golden.gradient((7, 12), step)
        second.grad = first.grad.clone()
        optimizer.step()
        reference.step()
    assert relative(first.detach(), second.detach()) < 1e-6
