"""Layer sampling through the hooks: who is frozen when, what happens to state, and when blocks are drawn."""

from __future__ import annotations

import json

import pytest
import torch

from harness.errors import HarnessError, Refused


def draws(run):
    return [(draw["step"], draw["blocks"]) for draw in run.method.proof()["draws"]]


def test_frozen_blocks_do_not_change_and_active_ones_do(tiny, sampled, architecture):
    run = tiny.start(sampled, architecture, interval_steps=3)
    for period in range(4):
        before = run.block_weights()
        run.steps(3 * period, 3 * period + 3)
        active = draws(run)[-1][1]
        for index, block in enumerate(run.trained_of_blocks()):
            for old, p in zip(before[index], block, strict=True):
                assert torch.equal(old, p) == (index not in active)
                assert p.requires_grad == (index in active) and p.grad is None


def test_exactly_the_asked_number_of_blocks_is_active_without_replacement(tiny, sampled):
    run = tiny.start(sampled, interval_steps=1).steps(0, 8)
    counts = {len(set(blocks)) for _, blocks in draws(run)}
    assert len(counts) > 1 if run.method.may_activate_every_block() else counts == {2}


def test_every_block_can_be_trained_later(tiny, sampled):
    run = tiny.start(sampled, interval_steps=1)
    before = run.block_weights()
    run.steps(0, 30)
    assert {block for _, blocks in draws(run) for block in blocks} == set(range(tiny.num_blocks))
    for old, block in zip(before, run.trained_of_blocks(), strict=True):
        assert block
        assert not any(torch.equal(a, p) for a, p in zip(old, block, strict=True))


def test_blocks_are_drawn_once_at_step_0_and_then_every_interval(tiny, sampled):
    run = tiny.start(sampled, interval_steps=3)
    assert draws(run) == [] and not any(p.requires_grad for p in run.context.decoder.blocks[0].parameters())
    for step in range(8):
        run.method.on_step_begin(step, run.optimizer)
        run.method.on_step_begin(step, run.optimizer)
    assert [step for step, _ in draws(run)] == [0, 3, 6]


def test_a_resumed_run_draws_nothing_by_itself(tiny, sampled):
    part = tiny.start(sampled).steps(0, 3)
    rest = tiny.resumed(part, sampled, "llama", 3)
    assert draws(rest) == draws(part)
    assert [p.requires_grad for p in rest.model.parameters()] == [p.requires_grad for p in part.model.parameters()]


def test_a_resumed_run_keeps_the_probabilities_it_began_with(tiny):
    part = tiny.start("owlore").steps(0, 3)
    rest = tiny.resumed(part, "owlore", "llama", 3, scores=(0.1, 0.1, 0.1, 9.0))
    assert rest.method.proof()["probabilities"] == part.method.proof()["probabilities"]


def test_legacy_draws_survive_a_resume(tiny):
    options = {"legacy_draws_seed": 111, "interval_steps": 1}
    whole = tiny.start("owlore", **options).steps(0, 6)
    part = tiny.start("owlore", **options).steps(0, 3)
    assert draws(tiny.resumed(part, "owlore", "llama", 3, **options).steps(3, 6)) == draws(whole)


def test_embedding_head_and_norm_are_trained_as_asked(tiny):
    for part in ("embedding", "head", "final_norm"):
        flags = {f"train_{name}": name == part for name in ("embedding", "head", "final_norm")}
        run = tiny.start("lisa", **flags)
        before = run.weights()
        run.steps(0, 2)
        names = {"embedding": "model.embed_tokens.weight", "head": "lm_head.weight", "final_norm": "model.norm.weight"}
        changed = {name for name in names.values() if not torch.equal(before[name], run.weights()[name])}
        assert changed == {names[part]}


# Bytes of optimizer state


def full_bytes(params, itemsize=4):
    return sum(2 * p.numel() * itemsize for p in params)


def projected_bytes(block, rank=4, itemsize=4):
    """Moments and projectors of a block: two moments of (long side, rank), a projector of (short side, rank)."""
    total = 0
    for p in block.parameters():
        if p.dim() == 2:
            total += (2 * max(p.shape) + min(p.shape)) * rank * itemsize
        else:
            total += full_bytes([p], itemsize)
    return total


def block_state_bytes(run):
    measure = projected_bytes if run.optimizer.projections() else lambda block: full_bytes(block.parameters())
    return [measure(block) for block in run.context.decoder.blocks]


@pytest.mark.parametrize("name", ["lisa", "lisa-paper", "owlore", "ows-fullrank"])
@pytest.mark.parametrize("policy", ["drop", "keep", "offload"])
def test_state_bytes_after_50_resamples_are_the_predicted_ones(tiny, name, policy):
    counter = "reset" if policy == "drop" else "keep"
    options = {"interval_steps": 1, "moment_dtype": "fp32", "state_policy": policy, "returning_step_counter": counter}
    if name == "owlore":
        options["projector_dtype"] = "fp32"
    run = tiny.start(name, **options, reset_each_period=False)
    decoder = run.context.decoder
    others = full_bytes([decoder.embedding.weight, decoder.head.weight, decoder.final_norm.weight])
    each = block_state_bytes(run)
    visited: set[int] = set()
    for step in range(50):
        run.steps(step, step + 1)
        active = set(draws(run)[-1][1])
        visited |= active
        on_device = others + sum(each[block] for block in (visited if policy == "keep" else active))
        on_host = sum(each[block] for block in visited - active) if policy == "offload" else 0
        assert run.optimizer.state_bytes() == {"device": on_device, "host": on_host}
    assert visited == set(range(tiny.num_blocks))


def test_fp32_masters_follow_the_state_policy(tiny):
    options = {"dtype": "bf16", "moment_dtype": "bf16", "master_weights": True, "interval_steps": 1}
    drop = tiny.start("lisa", **options, state_policy="drop", returning_step_counter="reset").steps(0, 30)
    keep = tiny.start("lisa", **options, state_policy="keep", returning_step_counter="keep").steps(0, 30)
    parts = drop.context.decoder
    others = sum(p.numel() for m in (parts.embedding, parts.head, parts.final_norm) for p in m.parameters())
    block = sum(p.numel() for p in parts.blocks[0].parameters())
    assert drop.optimizer.state_bytes()["device"] == (2 * block + others) * (2 + 2 + 4)
    assert keep.optimizer.state_bytes()["device"] == (4 * block + others) * (2 + 2 + 4)


def test_offloaded_state_returns_unchanged(tiny):
    options = {"interval_steps": 1, "returning_step_counter": "keep"}
    keep = tiny.start("owlore", **options, state_policy="keep").steps(0, 12)
    offload = tiny.start("owlore", **options, state_policy="offload").steps(0, 12)
    assert all(torch.equal(a, b) for a, b in zip(keep.weights().values(), offload.weights().values(), strict=True))


def steps_of_block(run, block):
    p = next(run.context.decoder.blocks[block].parameters())
    return run.optimizer.state[p]["step"]


@pytest.mark.parametrize(
    ("policy", "counter", "wanted"), [("drop", "reset", 1), ("keep", "keep", 2), ("keep", "reset", 1)]
)
def test_the_step_counter_of_a_returning_block_is_reset_or_kept(tiny, policy, counter, wanted):
    run = tiny.start("lisa", active_layers=1, interval_steps=1, state_policy=policy, returning_step_counter=counter)
    sampler = run.method._sampler
    sampler._generator = Script([[0], [1], [0]])
    run.steps(0, 3)
    assert steps_of_block(run, 0) == wanted


class Script:
    """A generator that draws what it was told."""

    def __init__(self, drawn):
        self.drawn = iter(drawn)

    def choice(self, a, size, *, replace, p):
        return next(self.drawn)


@pytest.mark.parametrize(("on_activation", "refreshes"), [(False, 1), (True, 2)])
def test_a_returning_block_gets_a_new_projector_only_if_asked(tiny, on_activation, refreshes):
    run = tiny.start("owlore", active_layers=1, interval_steps=1, update_gap=50, refresh_on_activation=on_activation)
    run.method._sampler._generator = Script([[0], [1], [0]])
    run.steps(0, 3)
    projected = run.method.proof()["projected"]
    assert projected["model.layers.0.mlp.up_proj.weight"]["num_refreshes"] == refreshes
    assert projected["model.layers.1.mlp.up_proj.weight"]["num_refreshes"] == 1
    assert projected["model.layers.2.mlp.up_proj.weight"]["num_refreshes"] == 0


# What cannot be done


def test_a_tied_head_with_differing_flags_is_refused(tiny):
    with pytest.raises(Refused, match="train_embedding and train_head must be the same"):
        tiny.start("lisa", tied=True, train_head=False)


def test_more_blocks_than_there_are_is_refused(tiny):
    with pytest.raises(Refused, match="active_layers is 5, but the model has 4 blocks"):
        tiny.start("lisa", active_layers=5)


def test_more_blocks_than_can_be_drawn_is_refused(tiny):
    with pytest.raises(Refused, match="active_layers is 3, but only 2 blocks have a probability above 0"):
        tiny.start("owlore", active_layers=3, scores=(0.5, 0.0, 0.0, 0.2))


def test_coin_flips_with_a_probability_above_one_are_refused(tiny):
    with pytest.raises(Refused, match=r"for block 0 it is 1\.5"):
        tiny.start("lisa-paper", active_layers=3, probability="outlier", tau=13.0, scores=(0.5, 0.1, 0.2, 0.2))


def test_parameters_that_no_setting_covers_are_refused(tiny):
    method, values = tiny.settings_of("lisa")
    model = tiny.model("llama")
    model.register_parameter("extra", torch.nn.Parameter(torch.zeros(3)))
    context = tiny.context(1, 8, tiny.train_settings(), tiny.decoder_of(model))
    with pytest.raises(Refused, match="extra is in no block"):
        method(method.Config.model_validate(values)).prepare(model, context)


def test_scores_are_asked_for_as_the_settings_say(tiny):
    run = tiny.start("owlore")
    assert [(request.kind, request.tau) for request in run.context.requests] == [("outlier", 13.0)]
    run = tiny.start("owlore", probability="weight_norm")
    assert [(request.kind, request.tau) for request in run.context.requests] == [("weight_norm", None)]
    assert tiny.start("owlore", probability="decrease").context.requests == []


def test_probabilities_from_a_file(tiny, tmp_path):
    file = tmp_path / "scores.txt"
    file.write_text("1.0e-01\n3.0e-01\n4.0e-01\n2.0e-01\n")
    run = tiny.start("owlore", probability="file", probability_file=str(file))
    assert run.method.proof()["probabilities"] == pytest.approx([0.1, 0.3, 0.4, 0.2])
    with pytest.raises(HarnessError, match=r"cannot be read: No such file"):
        tiny.start("owlore", probability="file", probability_file=str(tmp_path / "missing.txt"))
    file.write_text("0.1\n0.2\n")
    with pytest.raises(Refused, match="2 block scores for probability = 'file', but 4 blocks"):
        tiny.start("owlore", probability="file", probability_file=str(file))


def test_the_proof_is_json_and_complete(tiny, sampled):
    proof = json.loads(json.dumps(tiny.start(sampled).steps(0, 3).method.proof()))
    assert proof["sampling"] and len(proof["draws"]) == 2
    assert sum(proof["probabilities"]) == pytest.approx(1.0)


def test_no_active_layer_trains_embedding_head_and_norm_alone(tiny, whole):
    others = dict.fromkeys(("train_embedding", "train_head", "train_final_norm"), True)
    run = tiny.start(whole, active_layers=0, interval_steps=1, **others)
    before = run.block_weights()
    others = [part.weight.detach().clone() for part in (run.context.decoder.embedding, run.context.decoder.head)]
    run.steps(0, 3)
    assert draws(run) == [(step, []) for step in range(3)]
    for old, new in zip(before, run.block_weights(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
    after = [part.weight for part in (run.context.decoder.embedding, run.context.decoder.head)]
    assert not any(torch.equal(a, b) for a, b in zip(others, after, strict=True))


def test_no_active_layer_and_nothing_else_is_an_error(tiny):
    nothing = {"train_embedding": False, "train_head": False, "train_final_norm": False}
    with pytest.raises(ValueError, match="active_layers = 0 trains nothing"):
        tiny.start("lisa", active_layers=0, **nothing)
