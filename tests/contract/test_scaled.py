"""APOLLO and Fira in runs: with drawn blocks, where gradients are zero, and settings that do not fit."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError


def weights_of(run):
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def test_apollo_on_all_blocks_of_each_draw_is_apollo_bit_by_bit(tiny):
    drawn = tiny.start("ows-apollo", active_layers=4, interval_steps=2).steps(0, 6)
    whole = tiny.start("apollo").steps(0, 6)
    assert len(drawn.method.proof()["draws"]) == 3
    after = weights_of(drawn)
    assert all(torch.equal(after[name], p) for name, p in weights_of(whole).items())


@pytest.mark.parametrize("stored", [True, False])
def test_a_block_that_returns_finds_projector_and_norm_where_it_left_them(tiny, stored):
    """On the host meanwhile, or on the device: the same weights, so the same projectors and the same limits."""
    runs = []
    for policy in ("keep", "offload"):
        settings = {"state_policy": policy, "sampling": "tour", "store_projector": stored}
        runs.append(tiny.start("ows-apollo", active_layers=1, interval_steps=1, **settings).steps(0, 9))
    kept, offloaded = map(weights_of, runs)
    assert all(torch.equal(kept[name], p) for name, p in offloaded.items())
    state = runs[0].optimizer.state[runs[0].model.model.layers[0].mlp.up_proj.weight]
    assert state["update_norm"].shape == () and isinstance(state["projector"], torch.Tensor if stored else int)
    assert {entry["num_refreshes"] for entry in runs[0].method.proof()["projected"].values()} == {1}


def step_with_zero_gradients(run, step):
    def empty(p):
        p.grad.zero_()

    hooks = [p.register_post_accumulate_grad_hook(empty) for p in run.model.parameters()]
    run.steps(step, step + 1)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("way", ["reference", "skip"])
@pytest.mark.parametrize("name", ["apollo", "apollo-mini", "fira", "ows-apollo"])
def test_the_proof_says_which_matrices_stood_still_behind_a_gradient_of_zero(tiny, name, way):
    drawn = {"active_layers": 4} if name == "ows-apollo" else {}
    run = tiny.start(name, limiter_at_zero=way, moment_dtype="fp32", **drawn).steps(0, 2)
    step_with_zero_gradients(run, 2)
    before = weights_of(run)
    run.steps(3, 6)
    after, projected = weights_of(run), run.method.proof()["projected"]
    assert len(projected) == 4 * 7
    assert {entry["num_held_back"] for entry in projected.values()} == {3 if way == "reference" else 0}
    moved = min(float((after[matrix] - before[matrix]).abs().max()) for matrix in projected)
    stands = way == "reference" and name != "fira"  # Fira's projected part moves
    assert moved < 1e-8 if stands else moved > 1e-4
    assert float((after["lm_head.weight"] - before["lm_head.weight"]).abs().max()) > 1e-4


BAD = [
    ("apollo", {"growth_limit": 1.0}, "greater than 1"),
    ("apollo", {"rank": None}, "projection needs rank"),
    ("apollo", {"projector": None}, "projection needs projector"),
    ("apollo", {"scaling": "row"}, "'channel' or 'tensor'"),
    ("apollo-mini", {"projector": "randomized", "store_projector": False}, "no seed makes the one of 'randomized'"),
    ("fira", {"projector": "gaussian"}, "'svd' or 'randomized'"),
    ("fira", {"scale": None}, "projection needs scale"),
    ("fira", {"store_projector": True}, "Extra inputs"),
    ("ows-apollo", {"limiter_at_zero": "stop"}, "'reference' or 'skip'"),
    ("ows-apollo", {"update_gap": None}, "projection needs update_gap"),
    ("galore", {"projector": "gaussian"}, "'svd' or 'randomized'"),
]


@pytest.mark.parametrize(("name", "changes", "sentence"), BAD)
def test_settings_that_do_not_fit_are_errors(tiny, name, changes, sentence):
    method, values = tiny.settings_of(name, **changes)
    with pytest.raises(ValidationError, match=sentence):
        method.Config.model_validate(values)


def test_what_an_update_moves_by_is_declared_by_rank_and_side(tiny):
    run = tiny.start("apollo", scale=2.0)
    declared = run.method.declare(run.model, run.context)
    # The longest of the shorter sides is 32, the rank 4: sqrt(2 * 4 / 32)
    assert declared.projection.scale == pytest.approx(0.5)
    before = weights_of(run)
    run.steps(0, 1)
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (weights_of(run)[name] - before[name]).square().mean().sqrt()
    assert float(moved) == pytest.approx(0.01 * 0.5, rel=0.3)
