"""What every method does to weights: what is frozen stays, what is trained moves, one seed gives the same bits."""

from __future__ import annotations

import json

import pytest
import torch

from harness.catalogue.labels import load_labels
from harness.method import METHODS


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_every_method_of_ours_has_a_named_configuration_of_its_name():
    ours = {name for name in METHODS.names() if METHODS.get(name).__module__ == f"harness.methods.{name}"}
    assert len(ours) >= 6
    assert ours <= set(load_labels())


def test_trained_parameters_change_and_all_others_do_not(tiny, trained, architecture):
    run = tiny.start(trained, architecture)
    before = run.weights()
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    ever: set[int] = set()
    for step in range(4):
        run.method.on_step_begin(step, run.optimizer)
        ever |= {id(p) for p in run.model.parameters() if p.requires_grad}
        run.steps(step, step + 1)
    assert ever <= held
    for name, p in run.model.named_parameters():
        assert torch.equal(p, before[name]) == (id(p) not in ever), name


def test_loss_falls_on_a_batch_that_is_seen_again(tiny, trained):
    run = (
        tiny.start(trained, interval_steps=1)
        if "interval_steps" in tiny.settings_of(trained)[1]
        else tiny.start(trained)
    )
    ids = run.batch(0)
    run.batch = lambda step: ids
    run.steps(0, 12)
    assert run.losses[-1] < run.losses[0] - 0.02


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_dtypes_are_kept(tiny, trained, dtype):
    run = tiny.start(trained, dtype=dtype)
    before = {name: p.dtype for name, p in run.model.named_parameters()}
    run.steps(0, 3)
    assert {name: p.dtype for name, p in run.model.named_parameters()} == before
    weights = torch.float32 if dtype == "fp32" else torch.bfloat16
    known = run.context.decoder.names
    packed = {torch.uint8} if run.context.train.quantized is not None else set()
    assert {p.dtype for p in run.model.parameters() if id(p) in known} == {weights} | packed


def test_moments_have_the_dtype_that_the_settings_say(tiny, with_adamw):
    for moment_dtype, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        run = tiny.start(with_adamw, dtype="bf16", moment_dtype=moment_dtype).steps(0, 2)
        assert {state["exp_avg_sq"].dtype for state in run.optimizer.state.values() if state} == {dtype}


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tiny, trained, architecture):
    first = tiny.start(trained, architecture).steps(0, 5).weights()
    torch.manual_seed(99)  # nothing may hang on the global generator
    second = tiny.start(trained, architecture).steps(0, 5).weights()
    other = tiny.start(trained, architecture, seed=2).steps(0, 5).weights()
    assert same(first, second)
    assert not same(first, other)


def test_a_resumed_run_ends_in_the_same_bits(tiny, trained, architecture):
    stop = {"llama": 3, "mistral": 4}[architecture]  # within a period, and at the start of one
    whole = tiny.start(trained, architecture).steps(0, 8)
    part = tiny.start(trained, architecture).steps(0, stop)
    rest = tiny.resumed(part, trained, architecture, stop).steps(stop, 8)
    assert same(whole.weights(), rest.weights())
    assert json.dumps(whole.method.state_dict()) == json.dumps(rest.method.state_dict())
    ours, theirs = whole.optimizer.state_dict(), rest.optimizer.state_dict()
    assert ours["state"].keys() == theirs["state"].keys()
    for index, state in ours["state"].items():
        for key, value in state.items():
            other = theirs["state"][index][key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    assert without_seconds(ours) == without_seconds(theirs)


def without_seconds(value):
    """Return the counters and groups of an optimizer, tensors and times left out."""
    if isinstance(value, dict):
        return {key: without_seconds(inner) for key, inner in value.items() if key not in ("state", "seconds")}
    return [without_seconds(inner) for inner in value] if isinstance(value, list | tuple) else value


def test_updates_in_the_backward_pass_give_the_same_bits(tiny, trained):
    after = tiny.start(trained, update_in_backward=False).steps(0, 5)
    during = tiny.start(trained, update_in_backward=True).steps(0, 5)
    assert same(after.weights(), during.weights())


def test_updates_in_the_backward_pass_round_alike(tiny):
    options = {"dtype": "bf16", "stochastic_rounding": True, "projector": "randomized"}
    after = tiny.start("owlore", **options, update_in_backward=False).steps(0, 5)
    during = tiny.start("owlore", **options, update_in_backward=True).steps(0, 5)
    assert same(after.weights(), during.weights())


def test_export_gives_the_base_architecture_with_the_trained_function(tiny, label, architecture):
    run = tiny.start(label, architecture)
    if run.method.trains:
        run.steps(0, 4)
    fresh = tiny.model(architecture)
    evaluated = run.method.finalize(run.model).eval()
    ids = run.batch(77)
    with torch.no_grad():
        wanted = evaluated(input_ids=ids).logits
        exported = run.method.export(evaluated)
        assert torch.allclose(exported(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-5)
    assert type(exported) is type(fresh)
    assert {n: p.shape for n, p in exported.state_dict().items()} == {n: p.shape for n, p in fresh.state_dict().items()}


def test_base_changes_nothing_and_has_no_optimizer(tiny):
    run = tiny.start("base")
    assert not run.method.trains and not any(p.requires_grad for p in run.model.parameters())
    assert same(run.weights(), {n: p.detach() for n, p in tiny.model("llama").named_parameters()})


def test_a_tied_head_is_in_the_optimizer_once(tiny, trained):
    known = tiny.settings_of(trained)[1]
    run = tiny.start(trained, tied=True, **{key: True for key in ("train_embedding", "train_head") if key in known})
    held = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    before = run.weights()
    run.steps(0, 3)
    if not run.method.has_adapter and getattr(run.method.config, "train_embedding", True):
        assert held.count(id(run.context.decoder.embedding.weight)) == 1
        assert not torch.equal(run.context.decoder.head.weight, before["model.embed_tokens.weight"])


def test_names_in_the_optimizer_are_the_base_models(tiny, with_adamw):
    run = tiny.start(with_adamw)
    names = {name for group in run.optimizer.param_groups for name in group["param_names"]}
    modules = {name for name, _ in tiny.model("llama").named_modules()}
    assert all(any(name.startswith(f"{module}.") for module in modules if module) for name in names)


def test_the_optimizer_takes_schedulers_of_transformers(tiny, trained):
    from transformers import get_scheduler

    run = tiny.start(trained)
    scheduler = get_scheduler("linear", run.optimizer, num_warmup_steps=2, num_training_steps=4)
    rates = []
    for step in range(4):
        rates.append(run.optimizer.param_groups[0]["lr"])
        run.steps(step, step + 1)
        scheduler.step()
    assert rates == pytest.approx([0.0, 0.005, 0.01, 0.005])


def test_a_step_runs_on_fake_tensors(tiny, trained):
    from torch._subclasses.fake_tensor import FakeTensorMode

    if tiny.settings_of(trained)[0].has_adapter:
        pytest.skip("peft cannot wrap a model inside FakeTensorMode; planning wraps on the meta device")
    tiny.context.read_scalar, real = (lambda self, tensor: 1.0), tiny.context.read_scalar
    try:
        with FakeTensorMode():
            run = tiny.start(trained)
            for step in range(2):
                run.method.on_step_begin(step, run.optimizer)
                ids = torch.zeros((2, 8), dtype=torch.long)
                run.model(input_ids=ids, labels=ids).loss.backward()
                run.optimizer.step()
                run.optimizer.zero_grad()
            fake = run.optimizer.state_bytes()
    finally:
        tiny.context.read_scalar = real
    assert fake == tiny.start(trained).steps(0, 2).optimizer.state_bytes()
