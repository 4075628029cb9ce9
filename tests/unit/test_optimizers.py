"""The optimizer by itself: its rules against torch's, its dtypes, its state, its projector's age."""

from __future__ import annotations

import math

import pytest
import torch

from harness.methods._optimizers import AdamW, Group
from harness.methods._projection import LowRankProjection
from harness.methods._settings import AdamWSettings, LowRank
from harness.methods._update_rules import round_stochastically

PROJECTION = {
    "rank": 3,
    "update_gap": 4,
    "update_gap_counter": "parameter",
    "projection_side": "reference",
    "projector": "svd",
    "scale": 0.5,
    "projector_dtype": "fp32",
}


SETTINGS = {
    "adamw_rule": "torch",
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "moment_dtype": "fp32",
    "master_weights": False,
    "stochastic_rounding": False,
}


def stream(name):
    return torch.Generator().manual_seed(sum(name.encode()))


def optimizer_of(named, *, projection=None, lr=0.01, **changes):
    """Return the optimizer of parameters by name; ``projection`` holds settings or is one."""
    if isinstance(projection, dict):
        projection = LowRankProjection(LowRank(**projection), streams=stream, read_scalar=float)
    settings = AdamWSettings(**(SETTINGS | changes))
    return AdamW([Group(list(named.items()), projection)], settings, learning_rate=lr, streams=stream)


def parameter(*shape, seed=0, dtype=torch.float32):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.Parameter(values.to(dtype))


def gradient(p, step):
    return torch.randn(p.shape, generator=torch.Generator().manual_seed(1000 + step)).to(p.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_torch_rule_is_torchs_adamw_bit_by_bit(dtype, decay):
    ours, theirs = parameter(6, 5, dtype=dtype), parameter(6, 5, dtype=dtype)
    moment_dtype = "fp32" if dtype == torch.float32 else "bf16"
    first = optimizer_of({"w": ours}, weight_decay=decay, moment_dtype=moment_dtype)
    second = torch.optim.AdamW([theirs], lr=0.01, weight_decay=decay, eps=1e-8, foreach=False)
    for step in range(50):
        ours.grad, theirs.grad = gradient(ours, step), gradient(theirs, step)
        first.step()
        second.step()
    assert torch.equal(ours, theirs)


def test_the_two_rules_differ_where_eps_matters():
    results = {}
    for rule in ("torch", "transformers"):
        p = parameter(4, 4)
        optimizer = optimizer_of({"w": p}, adamw_rule=rule, eps=1e-2)
        p.grad = torch.full_like(p, 1e-3)
        before = p.detach().clone()
        optimizer.step()
        results[rule] = float((before - p.detach()).mean())
    # m/c1 = g, sqrt(v/c2) = g: torch g/(g + eps), transformers g/(g + eps/sqrt(c2)) with sqrt(c2) = sqrt(1e-3)
    assert results["torch"] == pytest.approx(0.01 * 1e-3 / (1e-3 + 1e-2), rel=1e-3)
    assert results["transformers"] == pytest.approx(0.01 * 1e-3 / (1e-3 + 1e-2 / math.sqrt(1e-3)), rel=1e-3)


def test_weight_decay_comes_before_or_after_the_update():
    values = {}
    for rule in ("torch", "transformers"):
        p = torch.nn.Parameter(torch.ones(1, 1))
        optimizer = optimizer_of({"w": p}, adamw_rule=rule, lr=0.1, weight_decay=0.5, eps=1e-30)
        p.grad = torch.ones(1, 1)
        optimizer.step()
        values[rule] = float(p)
    assert values["torch"] == pytest.approx(0.95 - 0.1)
    assert values["transformers"] == pytest.approx(0.9 * 0.95)


def test_single_parameters_are_stepped_and_nothing_else():
    a, b = parameter(3, 3), parameter(3, 3, seed=1)
    optimizer = optimizer_of({"a": a, "b": b})
    a.grad, b.grad = gradient(a, 0), gradient(b, 0)
    before = b.detach().clone()
    optimizer.step_parameters([a])
    assert torch.equal(b, before) and set(optimizer.state) == {a}


def test_the_rank_is_clipped_and_recorded():
    p = parameter(6, 2)
    optimizer = optimizer_of({"w": p}, projection=PROJECTION)
    p.grad = gradient(p, 0)
    optimizer.step()
    assert optimizer.projections() == {"w": {"side": "right", "rank": 2, "num_refreshes": 1, "num_updates": 1}}


def refresh_steps(counter, active, gap=4):
    """Return the steps at which a matrix that is updated at the steps ``active`` gets a new projector."""
    p = parameter(6, 5)
    optimizer = optimizer_of({"w": p}, projection=PROJECTION | {"update_gap": gap, "update_gap_counter": counter})
    seen, steps = 0, []
    for step in active:
        optimizer.begin_step(step)
        p.grad = gradient(p, step)
        optimizer.step()
        if (now := optimizer.projections()["w"]["num_refreshes"]) != seen:
            steps.append(step)
            seen = now
    return steps


def test_both_counters_refresh_every_gap_when_a_matrix_is_always_active():
    assert refresh_steps("parameter", range(10)) == [0, 4, 8]
    assert refresh_steps("global", range(10)) == [0, 4, 8]


def test_the_parameters_counter_counts_active_steps_and_the_global_one_all():
    active = [0, 1, 2, 7, 8, 9, 10, 11, 12]
    assert refresh_steps("parameter", active) == [0, 8, 12]
    assert refresh_steps("global", active) == [0, 7, 8, 12]


def test_moments_survive_a_refresh_and_projectors_can_be_dropped():
    p = parameter(6, 5)
    optimizer = optimizer_of({"w": p}, projection=PROJECTION)
    for step in range(2):
        p.grad = gradient(p, step)
        optimizer.step()
    moment = optimizer.state[p]["exp_avg"].clone()
    optimizer.drop_projectors([p])
    assert "projector" not in optimizer.state[p] and torch.equal(optimizer.state[p]["exp_avg"], moment)
    p.grad = gradient(p, 2)
    optimizer.step()
    assert optimizer.projections()["w"]["num_refreshes"] == 2 and optimizer.refresh_seconds > 0.0


@pytest.mark.parametrize("counter", ["parameter", "global"])
def test_projectors_that_expire_stay_until_the_next_update(counter):
    p = parameter(6, 5)
    optimizer = optimizer_of({"w": p}, projection=PROJECTION | {"update_gap_counter": counter})
    assert not optimizer.expire_projectors([p])
    for step in range(2):
        p.grad = gradient(p, step)
        optimizer.step()
    assert optimizer.expire_projectors([p])
    assert "projector" in optimizer.state[p]
    p.grad = gradient(p, 2)
    optimizer.step()
    assert optimizer.projections()["w"]["num_refreshes"] == 2


@pytest.mark.parametrize("kind", ["svd", "randomized"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_never_reaches_a_projector(kind, bad):
    p = parameter(6, 5)
    optimizer = optimizer_of({"blocks.0.w": p}, projection=PROJECTION | {"projector": kind})
    p.grad = gradient(p, 0)
    p.grad[2, 3] = bad
    before = p.detach().clone()
    with pytest.raises(FloatingPointError, match=r"the gradient of blocks.0.w is not finite at step 0"):
        optimizer.step()
    assert torch.equal(p, before)


def test_state_bytes_see_a_view_that_keeps_a_larger_tensor_alive():
    p = parameter(6, 5)
    optimizer = optimizer_of({"w": p}, projection=PROJECTION)
    p.grad = gradient(p, 0)
    optimizer.step()
    exact = (2 * 6 * 3 + 3 * 5) * 4
    assert optimizer.state_bytes() == {"device": exact, "host": 0}
    optimizer.state[p]["projector"] = torch.zeros(5, 5)[:3]
    assert optimizer.state_bytes()["device"] == exact + 2 * 5 * 4
    optimizer.offload_state([p])
    assert optimizer.state_bytes() == {"device": 0, "host": exact}  # a copy holds what is looked at, as from a GPU
    optimizer.restore_state([p])
    optimizer.drop_state([p])
    assert optimizer.state_bytes() == {"device": 0, "host": 0}


def test_state_on_the_host_is_not_stepped():
    p = parameter(3, 3)
    optimizer = optimizer_of({"w": p})
    p.grad = gradient(p, 0)
    optimizer.step()
    optimizer.offload_state([p])
    with pytest.raises(AssertionError, match="w is updated while its state is on the host"):
        optimizer.step()


@pytest.mark.parametrize("offloaded", [False, True])
def test_loading_keeps_every_dtype(offloaded):
    p = parameter(6, 5, dtype=torch.bfloat16)
    options = {"projection": PROJECTION, "master_weights": True, "moment_dtype": "fp32"}
    optimizer = optimizer_of({"w": p}, **options)
    p.grad = gradient(p, 0)
    optimizer.step()
    if offloaded:
        optimizer.offload_state([p])
    other = optimizer_of({"w": parameter(6, 5, dtype=torch.bfloat16)}, **options)
    other.load_state_dict(optimizer.state_dict())
    (loaded,) = other.state.values()
    for key, value in optimizer.state[p].items():
        if isinstance(value, torch.Tensor):
            assert loaded[key].dtype == torch.float32 and torch.equal(loaded[key], value)
            assert loaded[key].untyped_storage()._cdata != value.untyped_storage()._cdata
        else:
            assert loaded[key] == value
    assert other.state_bytes() == optimizer.state_bytes()
    assert other.projections() == optimizer.projections()


def test_state_of_other_parameters_is_not_loaded():
    first, second = optimizer_of({"a": parameter(2, 2)}), optimizer_of({"b": parameter(2, 2)})
    with pytest.raises(ValueError, match="of other parameters"):
        second.load_state_dict(first.state_dict())


def after_small_steps(num_steps, **options):
    """Return a bf16 weight of 1 after steps of 1e-4 downwards, each below half the spacing of 2^-8."""
    p = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = optimizer_of({"w": p}, lr=1e-4, **options)
    for _ in range(num_steps):
        p.grad = torch.ones_like(p)
        optimizer.step()
    return p.detach().float()


def test_bf16_loses_small_updates_and_the_two_remedies_do_not():
    assert torch.equal(after_small_steps(100), torch.ones(64, 64))
    assert after_small_steps(100, master_weights=True).unique().tolist() == [float(torch.tensor(0.99).bfloat16())]
    rounded = after_small_steps(100, stochastic_rounding=True)
    assert float(rounded.mean()) == pytest.approx(0.99, abs=5e-4)
    assert len(rounded.unique()) > 1


def test_stochastic_rounding_is_unbiased_and_stays_between_neighbours():
    values = torch.full((100_000,), 1.0 + 2**-7 * 0.3)
    rounded = round_stochastically(values, torch.Generator().manual_seed(0)).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + 2**-7}
    assert float((rounded > 1.0).float().mean()) == pytest.approx(0.3, abs=0.01)


def test_stochastic_rounding_leaves_what_is_exact_or_not_finite():
    exact = torch.tensor([0.0, -1.5, 3.0, math.inf, -math.inf, 2.0**-130])
    assert torch.equal(round_stochastically(exact, torch.Generator().manual_seed(0)).float(), exact)
    payload = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    assert bool(round_stochastically(payload, torch.Generator().manual_seed(0)).isnan().all())


def test_rounding_noise_is_new_at_every_update_even_after_a_drop():
    p = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = optimizer_of({"w": p}, lr=1e-3, stochastic_rounding=True)
    results = []
    for _ in range(2):
        p.data.fill_(1.0)
        p.grad = torch.ones_like(p)
        optimizer.step()
        results.append(p.detach().clone())
        optimizer.drop_state([p])
    assert not torch.equal(*results)


# Other projections: what a new method brings in place of a subclass of the optimizer


class Residual(LowRankProjection):
    """Fira's (arXiv 2410.01623): what the subspace leaves out moves along too, as much longer as Adam made the rest."""

    def up(self, direction, low, grad, state, shape):
        left_out = grad - super().up(low, low, grad, state, shape)
        return super().up(direction, low, grad, state, shape) + left_out * (direction.norm() / low.norm())


class Channels(LowRankProjection):
    """APOLLO's (arXiv 2412.05270): the subspace only says how far each column of the gradient itself moves."""

    def up(self, direction, low, grad, state, shape):
        return grad * (direction.norm(dim=0) / low.norm(dim=0))


@pytest.mark.parametrize("kind", [Residual, Channels])
def test_a_projection_of_another_kind_takes_its_first_step_by_the_closed_form(kind):
    p = parameter(5, 8)
    before = p.detach().clone()
    settings = LowRank(**(PROJECTION | {"rank": 3, "scale": 1.0}))
    projection = kind(settings, streams=stream, read_scalar=float)
    optimizer = optimizer_of({"w": p}, projection=projection, eps=1e-12)
    p.grad = G = gradient(p, 0)
    optimizer.step()
    U = torch.linalg.svd(G).U[:, :3]
    R = U.t() @ G  # Adam's first direction is its sign
    if kind is Residual:
        step = U @ R.sign() + (G - U @ R) * (math.sqrt(R.numel()) / R.norm())
    else:
        step = G * (math.sqrt(3) / R.norm(dim=0))
    torch.testing.assert_close(before - p.detach(), 0.01 * step, rtol=1e-4, atol=1e-6)
    assert optimizer.state_bytes()["device"] == 4 * (2 * 3 * 8 + 5 * 3)
    assert optimizer.projections()["w"]["num_refreshes"] == 1
