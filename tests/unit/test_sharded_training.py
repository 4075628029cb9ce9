"""Training shared out over processes: equal to one process that takes the same micro-batches one after the other.

Acceptance points 1, 2, 3, 4, 5, 7 and 8 of runs on several devices; their numbers stand in the names of the tests.
"""

from __future__ import annotations

import math

import pytest
import torch

from harness.catalogue.labels import load_labels
from harness.engine.ranks import ALONE
from harness.engine.stepping import Diverged
from harness.errors import Refused
from harness.tensors.sharded import is_sharded, local
from tests.ranks import on_ranks
from tests.sharded_runs import STEPS, Case, Seen, all_of, all_seen, alone, apart_of, built, distance

BF16 = {"dtype": "bf16"}
DROPOUT = {"lora_dropout": 0.2}
EXACT = {
    "full, bf16": Case("full", train=BF16),
    "full, masters": Case("full", {"master_weights": True, "moment_dtype": "fp32"}, BF16),
    "full, rounded at random": Case("full", {"stochastic_rounding": True, "moment_rounding": "stochastic"}, BF16),
    "full, in slices": Case("full", {"update_slice_elements": 512}),
    "full, checkpointed": Case("full", train={"gradient_checkpointing": True, "checkpoint_granularity": "nested"}),
    "lora, dropout": Case("lora", DROPOUT, BF16),
    "dora": Case("dora"),
    "lora-fa": Case("lora-fa", DROPOUT),
    "lisa, offload": Case("lisa-d", {"state_policy": "offload"}, {"gradient_checkpointing": True}),
    "lisa, in backward": Case("lisa", {"update_in_backward": True}, BF16),
    "galore, left and right": Case("galore", {"projection_side": "smaller", "projector": "randomized"}, BF16),
    "galore-layerwise": Case("galore-layerwise", {"moment_rounding": "stochastic"}, BF16),
    "owlore": Case("owlore", train=BF16 | {"offload_checkpoints": True, "gradient_checkpointing": True}),
    "badam": Case("badam", train=BF16),
    "grass": Case("grass"),
    "ist": Case("ist", train=BF16),
}
CLIPPED = {
    "full": Case("full", train={"max_grad_norm": 0.5}),
    "full, bf16": Case("full", train=BF16 | {"max_grad_norm": 0.5}),
    "galore, two passes": Case(
        "galore", {"two_pass_clipping": True, "update_in_backward": True}, BF16 | {"max_grad_norm": 0.5}
    ),
}
NOT_EXACT = {"apollo", "apollo-mini", "fira", "ows-apollo"}
"""They scale by norms of whole matrices, which are added up over processes in another order."""
REFUSED = {"qlora"}
LABELS = sorted(set(load_labels()) - {"base"} - REFUSED)


@pytest.fixture(scope="module")
def on_two() -> list[dict[str, Seen]]:
    return on_ranks(2, all_seen, {**EXACT, **{f"clipped {name}": case for name, case in CLIPPED.items()}}, timeout=600)


def assert_equal(ones: list[Seen], other: Seen) -> None:
    for one in ones:
        assert one.losses == other.losses
        assert one.draws == other.draws
        for name, weight in other.weights.items():
            assert torch.equal(one.weights[name], weight), name


@pytest.mark.parametrize("name", EXACT)
def test_1_two_processes_equal_one_bit_by_bit(name: str, on_two: list[dict[str, Seen]]) -> None:
    one = alone(EXACT[name])
    assert one.moved > 0
    assert_equal([rank[name] for rank in on_two], one)


@pytest.mark.parametrize("name", EXACT)
def test_8_every_trained_tensor_moves(name: str, on_two: list[dict[str, Seen]]) -> None:
    for rank in on_two:
        found = rank[name]
        drawn = {block for draw in found.draws or () for block in draw["blocks"]}
        still = {
            parameter
            for parameter in found.trained
            if torch.equal(found.weights[parameter], found.began[parameter])
            and (found.draws is None or any(f"layers.{block}." in parameter for block in drawn))
        }
        # Of bf16 norms, near 1, a small update rounds away; one process leaves the same ones where they are.
        assert all("norm" in parameter for parameter in still), still


@pytest.mark.parametrize("name", CLIPPED)
def test_2_norms_are_those_of_one_process_and_the_same_everywhere(name: str, on_two: list[dict[str, Seen]]) -> None:
    one, ranks = alone(CLIPPED[name]), [rank[f"clipped {name}"] for rank in on_two]
    assert ranks[0].norms == ranks[1].norms
    assert ranks[0].norms[0] == pytest.approx(one.norms[0], rel=1e-5)
    assert all(math.isfinite(norm) and norm > 0.5 for norm in one.norms[:1])
    for found in ranks:
        worst = max(distance(found.weights[parameter], one.weights[parameter]) for parameter in one.weights)
        assert worst <= 1e-2 * one.moved


def unequal(ranks, accumulation=2):
    """Train on rows with 1 and with 100 trained tokens."""
    from harness.data.batches import collate
    from harness.data.examples import Example

    run = built(ranks, Case("full"), accumulation)
    tokens = [tuple((7 * row + position) % 250 + 1 for position in range(101)) for row in range(2 * STEPS)]
    run.batches[:] = [
        collate(
            [Example(row[:3] if index % 2 else row, (False, False, True) if index % 2 else (True,) * 101)], pad_id=0
        )
        for index, row in enumerate(tokens)
    ]
    trained = [batch.num_trained_tokens for batch in run.batches[:2]]
    run.take(STEPS)
    return run.losses, trained, {name: local(p.detach()).clone() for name, p in run.loop.model.named_parameters()}


def test_3_rows_of_unequal_length_count_by_their_tokens() -> None:
    losses, trained, weights = unequal(ALONE)
    assert trained == [100, 1]
    ranks = on_ranks(2, unequal)
    for one in ranks:
        assert one[0] == losses
    for name, weight in weights.items():
        halves = [one[2][name] for one in ranks]
        assert torch.equal(torch.cat(halves), weight), name


def collectives(ranks, case):
    """Return the collectives of each step, and the numbers that each took."""
    import torch.distributed as dist

    run, seen = built(ranks, case), []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "c10d" in str(func):
                tensors = [t for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, torch.Tensor)]
                seen.append((func._overloadpacket.__name__, max(t.numel() for t in tensors), str(tensors[0].dtype)))
            return func(*args, **(kwargs or {}))

    steps = []
    for _ in range(STEPS):
        seen.clear()
        with Spy():
            run.take(1)
        steps.append(list(seen))
    dist.barrier()
    return steps


def of_gradients(steps):
    return [sum(size for kind, size, _ in step if "reduce_scatter" in kind) for step in steps]


def test_4_a_projection_asks_for_nothing_but_its_refreshes() -> None:
    gap = {"update_gap": 3, "projection_side": "smaller"}
    full, galore = (on_ranks(2, collectives, case)[0] for case in (Case("full"), Case("galore", gap)))
    plain = [len(step) for step in full]
    matrices = 7 * 4
    assert [len(step) - plain[0] for step in galore] == [matrices, 0, 0, matrices, 0, 0]
    refreshed = [size for kind, size, _ in galore[0] if "gather" in kind]
    assert sorted(refreshed)[-1] <= max(size for kind, size, _ in full[0] if "gather" in kind)  # one matrix at a time


@pytest.mark.parametrize("label", ["galore", "owlore"])
def test_4_moments_are_shared_out(label: str) -> None:
    settings = {"projection_side": "smaller", "active_layers": 4}
    one = alone(Case(label, settings))
    ranks = on_ranks(2, all_seen, {label: Case(label, settings)})
    # Projectors, whole on each: rank 8 times the longer side, bf16; the moments are of the smaller.
    projectors = 4 * 8 * (4 * 64 + 3 * 160) * 2
    for rank in ranks:
        assert 2 * (rank[label].state_bytes - projectors) == one.state_bytes - projectors


SAMPLED = {
    **{policy: Case("lisa", {"state_policy": policy}) for policy in ("keep", "offload")},
    "drop": Case("lisa", {"state_policy": "drop", "returning_step_counter": "reset"}),
    "bf16": Case("lisa", train={"dtype": "bf16"}),
    "tour": Case("lisa", {"sampling": "tour"}),
    "falling with depth": Case("lisa-d"),
}


def collectives_of(ranks, cases):
    return {name: collectives(ranks, case) for name, case in cases.items()}


def test_5_frozen_blocks_reduce_nothing() -> None:
    """And a block that is thawed late is reduced in its own dtype, as any other."""
    found = on_ranks(2, collectives_of, {"full": Case("full"), **SAMPLED})[0]
    everything = of_gradients(found.pop("full"))[0]
    block = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160 + 2 * 64
    for name, steps in found.items():
        sizes = of_gradients(steps)
        assert set(sizes) == {everything - 2 * block}, name
        kinds = {dtype for step in steps for kind, _, dtype in step if "reduce_scatter" in kind}
        assert kinds == {"torch.bfloat16" if name == "bf16" else "torch.float32"}


def looking(ranks):
    """Take the same steps with and without a look at the loss before and between them; return what a look changed."""
    from harness.engine.training import mean_loss

    plain, watched = built(ranks, Case("full")), built(ranks, Case("full"))
    loop, rows = watched.loop, [watched.loop.placed(batch) for batch in watched.batches[:2]]

    def held():
        named = dict(loop.model.named_parameters())
        return {name: (id(p), p.requires_grad, is_sharded(p)) for name, p in named.items()}

    before, losses = held(), []
    for _ in range(STEPS):
        losses.append(mean_loss(loop.model, rows, loop.context)[0])
        assert held() == before
        plain.take(1)
        watched.take(1)
    assert losses[-1] < losses[0]
    fresh = {id(p) for p in loop.model.parameters()}
    assert fresh == {id(p) for group in loop.optimizer.param_groups for p in group["params"]}
    ones, others = all_of(watched), all_of(plain)
    return [name for name in ones if not torch.equal(ones[name], others[name])]


def test_6_a_look_leaves_parts_as_they_are() -> None:
    assert on_ranks(2, looking) == [[], []]


def reading(ranks):
    """See a loss that is not finite in one process alone."""
    run = built(ranks, Case("full"))
    summed = run.loop.stepping._summed_loss
    run.take(2)
    if ranks.rank == 1:
        run.loop.stepping._summed_loss = lambda model, batch: summed(model, batch) * math.nan
    with pytest.raises(Diverged, match="at step 2"):
        run.take(1)
    return run.loop.step


def test_7_a_loss_that_one_process_sees_ends_all_at_one_step() -> None:
    assert on_ranks(2, reading, timeout=60) == [2, 2]


def test_9_each_process_holds_its_part() -> None:
    one, ranks = alone(Case("full")), on_ranks(2, all_seen, {"full": Case("full")})
    assert [rank["full"].own_bytes for rank in ranks] == [one.own_bytes // 2] * 2
    assert [rank["full"].state_bytes for rank in ranks] == [one.state_bytes // 2] * 2


def refusals(ranks):
    said = []
    for case in (
        Case("qlora", train={"quantization": "nf4"}),
        Case("full", train={"gradient_accumulation_steps": 3}),
        Case("dora", {"target_modules": ["q_proj", "lm_head"]}),
        Case("galore", {"projection_side": "smaller"}, {"gradient_accumulation_steps": ranks.size}),
    ):
        try:
            built(ranks, case)
            said.append("")
        except Refused as refused:
            said.append(str(refused))
    return said


def test_8_what_cannot_be_right_is_refused_by_name() -> None:
    packed, uneven, norms, columns = on_ranks(2, refusals)[0]
    assert packed.startswith("quantization = 'nf4'")
    assert uneven.endswith("set gradient_accumulation_steps to a multiple of 2")
    assert "DoRA takes the norm of lm_head" in norms and columns == ""
    columns = on_ranks(3, refusals)[0][-1]
    assert "is shared out by columns, and its 64 columns are not a multiple of 3 processes" in columns


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_1_every_label_on_two_processes(dtype: str) -> None:
    cases = {label: Case(label, train={"dtype": dtype}) for label in LABELS}
    ranks = on_ranks(2, all_seen, cases, timeout=1500)
    for label, case in cases.items():
        one, found = alone(case), [rank[label] for rank in ranks]
        if label not in NOT_EXACT:
            assert_equal(found, one)
        for rank in found:
            assert rank.losses == found[0].losses
            worst = max(distance(rank.weights[name], one.weights[name]) for name in one.weights)
            assert worst <= (0.0 if label not in NOT_EXACT else 1.0 if dtype == "bf16" else 0.5) * one.moved, label


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [3, 4])
def test_1_more_processes_add_up_in_another_order(number: int) -> None:
    """Of columns three are no even part: projections, half of them on the left, are of four alone."""
    labels = ("full", "lora", "lisa", *(("galore", "owlore") if number == 4 else ()))
    cases = {
        label: Case(label, {"projection_side": "smaller"}, {"gradient_accumulation_steps": number}) for label in labels
    }
    ranks = on_ranks(number, all_seen, cases, number, timeout=900)
    for label, case in cases.items():
        one = alone(case, number)
        for rank in ranks:
            assert rank[label].draws == one.draws
            apart, moved = apart_of(rank[label].weights, one.weights), apart_of(one.weights, one.began)
            # In norm: of one weight it is more, where Adam divides by nearly nothing.
            assert apart <= 1e-3 * moved, label
