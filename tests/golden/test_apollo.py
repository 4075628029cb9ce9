"""APOLLO and Fira beside their wheels, fed the same gradients, and APOLLO the wheel's own random projectors.

Formula and order of operations are the wheels', so that equal dtypes give equal bits: in fp32 the limit is 1e-6 of the
largest weight, as other kernels may sum norms in another order; in bf16, where the limiter's norm is bf16 in both, it
is equality.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from apollo_torch import APOLLOAdamW
from fira import FiraAdamW

from harness.methods._declared import Trained, state_bytes
from harness.methods._optimizers import AdamW, Group
from harness.methods._scaling import ApolloProjection, FiraProjection
from harness.methods._scaling_settings import ApolloSettings, ScalingSettings
from harness.methods._settings import AdamWSettings

SHAPES = [(48, 20), (20, 48), (32, 32)]
KINDS = {"channel": 4, "tensor": 1}
"""Scaling, with the rank of APOLLO and of Mini."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STEPS, GAP = 50, 10


def stream(name):
    return torch.Generator().manual_seed(sum(name.encode()))


class OfTheWheel(ApolloProjection):
    """APOLLO's projection with the projectors of a reference, which steps first."""

    reference = SimpleNamespace()

    def made(self, name, grad, count):
        return self.reference.state[self.reference.param_groups[0]["params"][0]]["projector"].ortho_matrix.clone()


def settings_of(kind, dtype="fp32", **changes):
    """Return settings of APOLLO, or without ``scaling`` given otherwise of Fira's channels."""
    values = {
        "rank": 4,
        "update_gap": GAP,
        "update_gap_counter": "parameter",
        "projection_side": "reference",
        "projector": "gaussian" if kind is ApolloSettings else "svd",
        "scale": 1.0,
        "projector_dtype": dtype,
        "scaling": "channel",
        "growth_limit": 1.01,
        "limiter_dtype": dtype,
        "limiter_at_zero": "reference",
    }
    stored = {"store_projector": True} if kind is ApolloSettings else {}
    return kind(**(values | stored | changes))


def optimizer_of(p, projection, *, decay=0.0, dtype="fp32", lr=0.01, eps=1e-6):
    settings = AdamWSettings(
        adamw_rule="transformers",
        betas=(0.9, 0.999),
        eps=eps,
        weight_decay=decay,
        moment_dtype=dtype,
        master_weights=False,
        stochastic_rounding=False,
    )
    return AdamW([Group([("w", p)], projection)], settings, learning_rate=lr, streams=stream)


def projection_of(kind, settings):
    return kind(settings, names=["w"], streams=stream, read_scalar=float)


def gradients(shape, dtype, zero_at=None):
    """Yield random gradients; every seventh is four times as large, so that their growth is limited."""
    generator = torch.Generator().manual_seed(3)
    for step in range(STEPS):
        gradient = torch.randn(shape, generator=generator) * (4.0 if step % 7 == 6 else 1.0)
        yield (torch.zeros(shape) if step == zero_at else gradient).to(DTYPES[dtype])


def weight(shape, dtype="fp32"):
    start = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return torch.nn.Parameter(start.to(DTYPES[dtype]))


def apollo(p, *, rank, kind, scale, decay=0.0):
    group = {
        "params": [p], "rank": rank, "scale_type": kind, "scale": scale,
        "update_proj_gap": GAP, "proj_type": "std", "proj": "random",
    }  # fmt: skip
    return APOLLOAdamW([group], lr=0.01, weight_decay=decay, no_deprecation_warning=True)


def fira(p, *, rank, scale, decay=0.0):
    group = {"params": [p], "rank": rank, "alpha": scale, "update_proj_gap": GAP, "proj_type": "std"}
    return FiraAdamW([group], lr=0.01, weight_decay=decay, no_deprecation_warning=True)


def beside(ours, theirs, shape, dtype, zero_at=None, steps=STEPS):
    """Step both on the same gradients, theirs first; return weights of ours and theirs after each step."""
    seen = []
    a, b = (optimizer.param_groups[0]["params"][0] for optimizer in (ours, theirs))
    for gradient, _ in zip(gradients(shape, dtype, zero_at), range(steps), strict=False):
        a.grad, b.grad = gradient.clone(), gradient.clone()
        theirs.step()
        ours.step()
        seen.append((a.detach().clone(), b.detach().clone()))
    return seen


def apollo_beside(shape, dtype="fp32", kind="channel", scale=1.0, decay=0.0, zero_at=None, wheel=None, **changes):
    """Return our optimizer, the wheel's, and what :func:`beside` does; ``wheel`` changes the wheel's settings alone."""
    rank = KINDS[kind]
    projection = projection_of(
        OfTheWheel, settings_of(ApolloSettings, dtype, rank=rank, scaling=kind, scale=scale, **changes)
    )
    theirs = apollo(
        weight(shape, dtype), **({"rank": rank, "kind": kind, "scale": scale, "decay": decay} | (wheel or {}))
    )
    projection.reference = theirs
    ours = optimizer_of(weight(shape, dtype), projection, decay=decay, dtype=dtype)
    return ours, theirs, beside(ours, theirs, shape, dtype, zero_at)


def fira_beside(shape, dtype="fp32", scale=1.0, decay=0.0, **changes):
    settings = settings_of(ScalingSettings, dtype, scale=scale, **changes)
    ours = optimizer_of(weight(shape, dtype), projection_of(FiraProjection, settings), decay=decay, dtype=dtype)
    theirs = fira(weight(shape, dtype), rank=4, scale=scale, decay=decay)
    return ours, theirs, beside(ours, theirs, shape, dtype)


def relative(a, b):
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


def assert_equal(seen, dtype, start):
    """Assert that ours are theirs at the end, and moved."""
    ours, theirs = seen[-1]
    assert relative(start.detach(), theirs) > 0.05
    if dtype == "bf16":
        assert torch.equal(ours, theirs)
    else:
        assert relative(ours, theirs) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "scale"), [("channel", 1.0), ("channel", 32.0), ("tensor", 128.0)])
def test_weights_after_50_steps_are_those_of_apollo_torch(shape, dtype, kind, scale):
    ours, _, seen = apollo_beside(shape, dtype, kind, scale)
    assert_equal(seen, dtype, weight(shape, dtype))
    assert ours.projections()["w"]["num_refreshes"] == 5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_weights_after_50_steps_are_those_of_fira(shape, dtype, scale):
    ours, _, seen = fira_beside(shape, dtype, scale)
    assert_equal(seen, dtype, weight(shape, dtype))
    assert ours.projections()["w"]["num_refreshes"] == 5


def test_weight_decay_is_the_wheels():
    assert_equal(apollo_beside((48, 20), decay=0.1)[2], "fp32", weight((48, 20)))
    assert_equal(fira_beside((20, 48), decay=0.1)[2], "fp32", weight((20, 48)))


@pytest.mark.parametrize("other", [{"growth_limit": 1.02}, {"scaling": "tensor"}, {"update_gap": 9}, {"scale": 1.05}])
def test_another_setting_would_show(other):
    """The limiter among them: it was active in what is compared above."""
    settings = settings_of(ScalingSettings, **other)
    ours = optimizer_of(weight((48, 20)), projection_of(FiraProjection, settings))
    ours, theirs = beside(ours, fira(weight((48, 20)), rank=4, scale=1.0), (48, 20), "fp32")[-1]
    assert relative(ours, theirs) > 1e-3


def test_another_factor_of_apollo_would_show():
    _, _, seen = apollo_beside((48, 20), "fp32", "channel", wheel={"scale": 1.05})
    assert relative(*seen[-1]) > 1e-3
    _, _, seen = apollo_beside((48, 20), "fp32", "channel", growth_limit=1.02)
    assert relative(*seen[-1]) > 1e-3


# The first step in closed form: Adam's direction is the sign of the gradient in the subspace.


def first_step(kind, settings, shape):
    """Return the gradient, the projector and minus the change of the first step over the learning rate."""
    p = weight(shape)
    before, optimizer = p.detach().clone(), optimizer_of(p, projection_of(kind, settings), lr=1.0, eps=1e-12)
    p.grad = gradient = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    optimizer.step()
    return gradient, optimizer.state[p]["projector"], before - p.detach()


@pytest.mark.parametrize("side", ["reference", "smaller"])
@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (24, 24)])
@pytest.mark.parametrize("kind", KINDS)
def test_apollos_first_step_is_the_closed_form(shape, kind, side):
    settings = settings_of(ApolloSettings, scaling=kind, scale=2.0, projection_side=side)
    G, P, step = first_step(ApolloProjection, settings, shape)
    right = shape[0] == shape[1] or (shape[0] > shape[1]) == (side == "reference")
    assert P.shape == ((4, shape[1]) if right else (shape[0], 4))
    R = G @ P.t() if right else P.t() @ G
    if kind == "channel":
        expected = math.sqrt(2.0) * math.sqrt(4) * G / R.norm(dim=1 if right else 0, keepdim=True)
    else:
        expected = math.sqrt(2.0) * math.sqrt(R.numel()) * G / R.norm()
    assert relative(step, expected) < 1e-3


@pytest.mark.parametrize("alpha", [1.0, 0.25])
@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_firas_first_step_is_the_closed_form(shape, alpha):
    settings = settings_of(ScalingSettings, scale=alpha)
    G, P, step = first_step(FiraProjection, settings, shape)
    tall = shape[0] >= shape[1]
    R = G @ P.t() if tall else P.t() @ G
    back = (lambda low: low @ P) if tall else (lambda low: P @ low)
    channel = math.sqrt(4) / R.norm(dim=1 if tall else 0, keepdim=True)
    expected = alpha * back(R.sign()) + (G - alpha * back(R)) * channel
    assert relative(step, expected) < 1e-3
    without_slip = alpha * back(R.sign()) + (G - back(R)) * channel
    assert (relative(step, without_slip) > 0.05) == (alpha != 1.0)


# A gradient of zero: the norm that the next one is measured by is zero


def movements(seen):
    """Return by how much ours and theirs moved in each step: two lists of norms."""
    return [
        [float((after[which].float() - before[which].float()).norm()) for before, after in itertools.pairwise(seen)]
        for which in (0, 1)
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_gradient_of_zero_stops_the_wheel_and_ours_where_it_is_asked_to(dtype):
    ours, _, seen = apollo_beside((48, 20), dtype, zero_at=20)
    assert_equal(seen, dtype, weight((48, 20), dtype))
    for moved in movements(seen):
        assert min(moved[:18]) > 0.02 and max(moved[19:]) < 1e-5
    assert ours.projections()["w"]["num_held_back"] == STEPS - 21


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_of_zero_may_be_left_out_of_the_limiter(dtype):
    ours, _, seen = apollo_beside((48, 20), dtype, zero_at=20, limiter_at_zero="skip")
    moved, theirs = movements(seen)
    assert moved[19] == 0.0 and min(moved[20:]) > 0.02 and max(theirs[19:]) < 1e-5
    assert ours.projections()["w"]["num_held_back"] == 0


def test_after_a_gradient_of_zero_growth_is_measured_by_the_norm_before_it():
    p = weight((48, 20))
    optimizer = optimizer_of(p, projection_of(ApolloProjection, settings_of(ApolloSettings, limiter_at_zero="skip")))
    found = []
    for gradient in itertools.islice(gradients((48, 20), "fp32", zero_at=5), 7):  # the last is four times as large
        p.grad = gradient
        optimizer.step()
        found.append(float(optimizer.state[p]["update_norm"]))
    assert found[5] == found[4] > 0.0
    assert found[6] == pytest.approx(1.01 * found[4], rel=1e-6)


def test_a_first_gradient_of_zero_is_left_out_of_the_limiter_too():
    moved = movements(apollo_beside((48, 20), zero_at=0, limiter_at_zero="skip")[2])[0]
    assert min(moved) > 0.02
    assert max(movements(apollo_beside((48, 20), zero_at=0)[2])[0]) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_gradient_of_zero_both_ways_are_one(dtype):
    runs = [apollo_beside((48, 20), dtype, limiter_at_zero=way)[2][-1][0] for way in ("reference", "skip")]
    assert torch.equal(*runs)


def test_updates_held_back_are_counted_across_a_checkpoint():
    settings = settings_of(ApolloSettings)
    p, again = weight((48, 20)), weight((48, 20))
    optimizer, other = (optimizer_of(one, projection_of(ApolloProjection, settings)) for one in (p, again))
    for gradient in itertools.islice(gradients((48, 20), "fp32", zero_at=2), 6):
        p.grad = gradient
        optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    assert other.projections()["w"]["num_held_back"] == 3
    again.grad = torch.ones_like(again)
    other.step()
    assert other.projections()["w"]["num_held_back"] == 4


# The limiter's arithmetic


def norms(dtype):
    """Return the norms that are kept while gradients are ten times as large as the first, in bf16."""
    p = weight((48, 20), "bf16")
    settings = settings_of(ApolloSettings, "bf16", scaling="tensor", limiter_dtype=dtype)
    optimizer, found = optimizer_of(p, projection_of(ApolloProjection, settings), dtype="bf16"), []
    for step in range(30):
        p.grad = torch.full_like(p, 1.0)
        if step == 5:
            optimizer.state[p]["update_norm"].div_(100.0)
        optimizer.step()
        found.append(float(optimizer.state[p]["update_norm"]))
    return found[6:]


def test_growth_is_the_limit_in_fp32_and_up_to_a_rounding_in_bf16():
    exact, rounded = ([b / a for a, b in itertools.pairwise(norms(dtype))] for dtype in ("fp32", "bf16"))
    assert exact == pytest.approx([1.01] * len(exact), rel=1e-5)
    assert rounded == pytest.approx([1.01] * len(rounded), rel=2**-7)
    assert rounded != pytest.approx([1.01] * len(rounded), rel=2**-10)


@pytest.mark.parametrize("kind", [ApolloProjection, FiraProjection])
def test_no_update_reads_a_value_but_those_that_refresh(kind):
    reads = []
    settings = settings_of(ApolloSettings if kind is ApolloProjection else ScalingSettings)
    projection = kind(settings, names=["w"], streams=stream, read_scalar=lambda x: reads.append(x) or float(x))
    p = weight((48, 20))
    optimizer = optimizer_of(p, projection)
    for gradient in itertools.islice(gradients((48, 20), "fp32"), 15):
        p.grad = gradient
        optimizer.step()
    assert len(reads) == 2


# The projector, kept or drawn at every update


@pytest.mark.parametrize("shape", SHAPES)
def test_a_seed_in_the_place_of_a_projector_gives_the_same_bits_and_is_not_held(shape):
    weights, held = [], []
    for stored in (True, False):
        p = weight(shape)
        settings = settings_of(ApolloSettings, store_projector=stored)
        optimizer = optimizer_of(p, projection_of(ApolloProjection, settings))
        for gradient in itertools.islice(gradients(shape, "fp32"), 12):
            p.grad = gradient
            optimizer.step()
        weights.append(p.detach())
        held.append(optimizer.state_bytes()["device"])
        one = Trained("w", 0, shape, "float32", projected=True)
        assert held[-1] == state_bytes(one, optimizer._settings, settings)
        assert held[-1] == 4 * (2 * 4 * max(shape) + (4 * min(shape) if stored else 0) + 1)
    assert torch.equal(*weights)
    assert relative(weights[0], weight(shape).detach()) > 0.02


def test_projectors_are_normal_of_variance_one_over_rank_and_new_at_each_refresh():
    projection = projection_of(ApolloProjection, settings_of(ApolloSettings, rank=50))
    one, two = (projection.made("w", torch.zeros(400, 200), count) for count in (0, 1))
    assert one.shape == (50, 200) and not torch.equal(one, two)
    assert float(one.square().mean()) == pytest.approx(1 / 50, rel=0.05)
    assert float(one.mean()) == pytest.approx(0.0, abs=0.005)
    assert torch.equal(one, projection.made("w", torch.zeros(400, 200), 0))
    assert not torch.equal(one, projection.made("v", torch.zeros(400, 200), 0))


def test_singular_vectors_may_take_the_place_of_random_ones():
    settings = settings_of(ApolloSettings, projector="svd")
    G, P, _ = first_step(ApolloProjection, settings, (30, 20))
    torch.testing.assert_close(P.abs(), torch.linalg.svd(G).Vh[:4].abs(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="store_projector = false is for projector = 'gaussian'"):
        settings_of(ApolloSettings, projector="svd", store_projector=False)


def test_the_wheel_has_no_projector_for_what_is_thawed_later():
    p = weight((48, 20)).requires_grad_(False)
    theirs = apollo(p, rank=4, kind="channel", scale=1.0)
    p.requires_grad_(True)
    p.grad = torch.ones_like(p)
    with pytest.raises(KeyError, match="seed"):
        theirs.step()
