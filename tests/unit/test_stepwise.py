"""Optimizers of torch.optim in the loop of every method: the same numbers, a step of one parameter, a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import Adafactor as HFAdafactor

from harness.calibration.tiny import MODEL, tiny_run
from harness.engine.checkpoint import Checkpoints, _joined, _split
from harness.engine.context import EngineContext
from harness.engine.training import TrainingLoop
from harness.errors import HarnessError, Refused
from harness.method import METHODS, Method, MethodConfig, StepOptimizer
from harness.planning.predict import Question, predict
from harness.plugin import Stepwise
from harness.record_training import Prediction
from harness.tensors.decoder import find_decoder
from harness.tensors.loading import build_model
from harness.tensors.seeding import seeded_globally
from tests.records import make_spec


def muon_and_adamw(params: Iterable[torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Return what one does with an optimizer of matrices alone."""
    held = list(params)
    return [
        torch.optim.Muon([p for p in held if p.ndim == 2], lr=1e-2),
        torch.optim.AdamW([p for p in held if p.ndim != 2], lr=1e-3),
    ]


def two_groups(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    held = list(params)
    slow = {"params": held[::2], "lr": 1e-4, "weight_decay": 0.1}
    return torch.optim.AdamW([slow, {"params": held[1::2]}], lr=1e-3)


OPTIMIZERS: dict[str, Any] = {
    "ASGD": lambda params: torch.optim.ASGD(params, lr=1e-2),
    "Adadelta": lambda params: torch.optim.Adadelta(params, lr=1e-1),
    "Adafactor": lambda params: torch.optim.Adafactor(params, lr=1e-2),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=1e-2),
    "Adam": lambda params: torch.optim.Adam(params, lr=1e-3, amsgrad=True),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-3),
    "Adamax": lambda params: torch.optim.Adamax(params, lr=1e-3),
    "Muon": muon_and_adamw,
    "NAdam": lambda params: torch.optim.NAdam(params, lr=1e-3),
    "RAdam": lambda params: torch.optim.RAdam(params, lr=1e-3),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=1e-3, momentum=0.9, centered=True),
    "Rprop": lambda params: torch.optim.Rprop(params, lr=1e-3),
    "SGD": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    "AdamW foreach": lambda params: torch.optim.AdamW(params, lr=1e-3, foreach=True),
    "AdamW fused": lambda params: torch.optim.AdamW(params, lr=1e-3, fused=True),
    "SGD without state": lambda params: torch.optim.SGD(params, lr=1e-2),
    "AdamW in groups": two_groups,
    "Adafactor of transformers": lambda params: HFAdafactor(
        params, lr=1e-3, relative_step=False, scale_parameter=False
    ),
}
"""Every kind of torch.optim that a run can have, and forms that take other ways through them."""
REFUSED: dict[str, tuple[Any, str]] = {
    "LBFGS": (torch.optim.LBFGS, "evaluates the loss again in its step"),
    "SparseAdam": (lambda params: torch.optim.SparseAdam(list(params)), "takes sparse gradients alone"),
    "a tensor as rate": (lambda params: torch.optim.AdamW(params, lr=torch.tensor(1e-3)), "has a tensor as 'lr'"),
    "no rate": (lambda params: HFAdafactor(params, relative_step=True, scale_parameter=False), "has lr = None"),
    "capturable": (lambda params: torch.optim.Adam(params, capturable=True), "capturable = True, which is for CUDA"),
    "one parameter twice": (lambda params: [torch.optim.SGD(held := list(params)), torch.optim.SGD(held)], "is in two"),
}
NOT_ALONE = {"Muon"}
"""Refuses by itself what is no matrix."""


def made(kind: str, params: Iterable[torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a kind over parameters."""
    optimizer = OPTIMIZERS[kind](params) if kind in OPTIMIZERS else REFUSED[kind][0](params)
    return optimizer if isinstance(optimizer, list) else [optimizer]


class Plain(Method):
    """Trains everything with an optimizer of torch.optim."""

    kind = "AdamW"
    wrap: Any = Stepwise
    Config = MethodConfig

    def prepare(self, model: Any, context: Any) -> Any:
        return model.requires_grad_(True)

    def build_optimizer(self, model: Any, context: Any) -> StepOptimizer:
        return self.wrap(*made(self.kind, model.parameters()))  # type: ignore[no-any-return]


def loop_of(kind: str, **settings: Any) -> TrainingLoop:
    """Return the loop of a tiny model, its data and schedule those of a calibration's."""
    like = tiny_run("full", torch.device("cpu")).loop.context
    with seeded_globally(1, "weights"):
        model = build_model(MODEL, "fp32", torch.device("cpu"))
    method = Plain(MethodConfig(**settings))
    method.kind = kind
    context = EngineContext(seed=1, num_steps=4, train=like.train, decoder=find_decoder(model, MODEL))
    return TrainingLoop(method.prepare(model, context), method, method.build_optimizer(model, context), context)


def batches(first: int = 0) -> Any:
    return iter([[batch] for batch in tiny_run("full", torch.device("cpu")).batches[first:]])


def weights(loop: TrainingLoop) -> list[torch.Tensor]:
    return [p.detach() for p in loop.model.parameters()]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_it_is_torchs_own_after_the_backward_pass_and_in_it(kind: str, tmp_path: Path) -> None:
    after, during = loop_of(kind), loop_of(kind, update_in_backward=True)
    for loop in (after, during):
        loop.run(batches(), lambda done, loss: None)
    alone = loop_of(kind)
    bare = made(kind, alone.model.parameters())
    given = [group["lr"] for one in bare for group in one.param_groups]
    for step, (batch,) in zip(range(4), batches(), strict=False):
        rate = after.result().curve.learning_rate[step]
        for group, first in zip([group for one in bare for group in one.param_groups], given, strict=True):
            group["lr"] = rate / given[0] * first
        (alone.stepping._summed_loss(alone.model, batch) / batch.num_trained_tokens).backward()
        for one in bare:
            one.step()
            one.zero_grad()
    for one, other, third in zip(weights(after), weights(during), weights(alone), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)
    states = [value for one in bare for state in one.state.values() for value in state.values()]
    held = sum(t.numel() * 4 for t in states if isinstance(t, torch.Tensor))
    assert after.result().curve.optimizer_state_bytes[-1] == held
    assert after.result().refresh_seconds is None


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_resumed_run_ends_like_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    whole = loop_of(kind)
    whole.run(batches(), lambda done, loss: None)
    first = loop_of(kind)

    def stop(done: int, loss: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(batches(), stop, Checkpoints(tmp_path, first).save, 2)
    second = loop_of(kind)
    assert Checkpoints(tmp_path, second).restore() == 2
    second.run(batches(2), lambda done, loss: None)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(second), strict=True))


def test_loaded_state_keeps_a_dtype_that_is_not_its_parameters() -> None:
    def optimizer() -> Stepwise:
        p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        p.grad = torch.full_like(p, 0.1)
        return Stepwise(torch.optim.SGD([p], lr=0.1, momentum=0.9))

    one, other = optimizer(), optimizer()
    one.step()
    ((_, state),) = one.state.items()
    state["momentum_buffer"] = torch.tensor([1 / 3, 1 / 7, 1 / 9])
    other.load_state_dict(one.state_dict())
    (loaded,) = other.state.values()
    assert loaded["momentum_buffer"].dtype == torch.float32
    assert torch.equal(loaded["momentum_buffer"], state["momentum_buffer"])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_planning_foresees_the_bytes_that_its_state_takes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = loop_of(kind)
    ran.run(batches(), lambda done, loss: None)
    planned = plan_of(kind, monkeypatch)
    assert planned.optimizer_state_bytes == ran.result().curve.optimizer_state_bytes[-1]
    reads = any("reads values of tensors" in assumption for assumption in planned.assumptions)
    assert reads == (kind in ("ASGD", "Adafactor"))


def plan_of(kind: str, monkeypatch: pytest.MonkeyPatch) -> Prediction:
    """Return what planning says of the run of a kind."""
    METHODS.names()
    monkeypatch.setitem(METHODS._classes, "plain", type("Of", (Plain,), {"kind": kind}))
    like = tiny_run("full", torch.device("cpu")).loop.context
    spec = make_spec(method="plain", config=MethodConfig().model_dump(), train=like.train)
    return predict(spec, MODEL, Question(device="cpu", num_steps=4), lambda request: None)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_stepped_is_refused_with_a_sentence(kind: str) -> None:
    with pytest.raises(Refused, match=REFUSED[kind][1]):
        Stepwise(*made(kind, [torch.nn.Parameter(torch.ones(3, 3))]))


def test_every_optimizer_of_torch_is_tried() -> None:
    known = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type)} - {"Optimizer"}
    assert known == {name for name in (*OPTIMIZERS, *REFUSED) if name in known}
    assert len(known) == 15


class Odd(torch.optim.Optimizer):
    """Descends, and keeps what it is told to."""

    def __init__(self, params: Any, keep: Any = lambda p: {}, counts: bool = False) -> None:
        super().__init__(params, {"lr": 0.1, "betas": (0.9, 0.99), "k": 0})
        self.keep, self.counts = keep, counts

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad)
                    self.state[p].update(self.keep(p))
            group["k"] += self.counts


def with_gradients(number: int = 3, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.ones(4, 5, dtype=dtype)) for _ in range(number)]
    for p in params:
        p.grad = torch.full_like(p, 0.5)
    return params


def test_it_updates_one_parameter_and_nothing_else() -> None:
    params = with_gradients()
    optimizer = Stepwise(torch.optim.AdamW([{"params": params[:1]}, {"params": params[1:]}]))
    optimizer.step_parameters(params[1:2])
    assert list(optimizer.state) == params[1:2]
    assert [bool((p == 1).all()) for p in params] == [True, False, True]
    assert [group["params"] for group in optimizer.param_groups] == [params[:1], params[1:]]


@pytest.mark.parametrize("thing", [object(), {1.5: torch.ones(2)}, [{"deep": (object(),)}]])
def test_a_state_that_nobody_can_count_or_save_is_refused_at_the_first_update(thing: Any) -> None:
    params = with_gradients()
    for step in (lambda o: o.step(), lambda o: o.step_parameters(params[:1])):
        with pytest.raises(Refused, match=r"Odd keeps a .* for each parameter, whose memory cannot be counted"):
            step(Stepwise(Odd(params, lambda p: {"thing": thing})))


def test_an_optimizer_that_counts_in_its_groups_is_refused_in_the_backward_pass_alone() -> None:
    params = with_gradients()
    Stepwise(Odd(params, counts=True)).step()
    Stepwise(Odd(params[:1], counts=True)).step_parameters(params[:1])
    with pytest.raises(Refused, match=r"counts in its groups for all parameters together \(k\).* = false"):
        Stepwise(Odd(params, counts=True)).step_parameters(params[:1])


def test_state_of_every_shape_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(7.0)

    def keep(p: torch.Tensor) -> dict[str, Any]:
        nested = {"half": torch.full((3,), 1 / 3), "list": [torch.ones(2, dtype=torch.uint8), 3, None]}
        return {"map": shared, "again": shared, "pair": (1, torch.zeros(())), "nested": nested, "n": 2**40, "on": True}

    params = with_gradients(dtype=torch.bfloat16)
    one = Stepwise(Odd(params, keep, counts=True))
    one.step()
    other = Stepwise(Odd(params, keep))
    through_file(one.state_dict(), other, tmp_path)
    assert torch_equal(dict(one.state), dict(other.state))
    maps = {id(state[key]) for state in other.state.values() for key in ("map", "again")}
    assert len(maps) == 1 and maps != {id(shared)}
    assert other.state_bytes() == one.state_bytes()
    assert other.param_groups[0]["k"] == 1 and other.param_groups[0]["betas"] == (0.9, 0.99)


def through_file(saved: dict[str, Any], other: Stepwise, folder: Path) -> None:
    """Give a state to another optimizer as a checkpoint would."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_split(saved, "", tensors))
    save_file(tensors, folder / "state.safetensors")
    other.load_state_dict(_joined(json.loads(text), load_file(folder / "state.safetensors")))


def torch_equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(torch_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(map(torch_equal, one, other))
    return bool(one == other) and type(one) is type(other)


def test_what_lies_on_the_host_beside_a_device_stays_there(tmp_path: Path) -> None:
    """As the step counters of torch's Adam do; a device without values stands in for one."""
    params = [torch.nn.Parameter(torch.ones(4, device="meta"))]
    optimizer = Stepwise(Odd(params, lambda p: {"step": torch.ones(()), "moment": torch.zeros_like(p)}))
    optimizer.state[params[0]] = {"step": torch.ones(()), "moment": torch.zeros(4, device="meta")}
    assert optimizer.state_bytes() == {"device": 16, "host": 4}
    other = Stepwise(Odd(params))
    other.load_state_dict(optimizer.state_dict())
    assert {key: t.device.type for key, t in other.state[params[0]].items()} == {"step": "cpu", "moment": "meta"}


def test_a_number_is_read_where_there_is_none_and_a_decision_is_not() -> None:
    class Reads(Odd):
        def step(self, closure: Any = None) -> None:
            (p,) = self.param_groups[0]["params"]
            self.state[p]["norm"] = float(p.grad.norm()) + int(p.grad.argmax())  # type: ignore[union-attr]

    class Decides(Odd):
        def step(self, closure: Any = None) -> None:
            (p,) = self.param_groups[0]["params"]
            assert not bool(torch.isnan(p).any())

    with FakeTensorMode():
        optimizer = Stepwise(Reads(with_gradients(1)))
        optimizer.step()
        assert (optimizer.reads_answered, *optimizer.state.values()) == (2, {"norm": 2.0})
        with pytest.raises(DataDependentOutputException):
            Stepwise(Decides(with_gradients(1))).step()
    real = Stepwise(Reads(with_gradients(1)))
    real.step()
    assert real.reads_answered == 0
    assert next(iter(real.state.values()))["norm"] == pytest.approx(5**0.5)


def test_what_a_group_leaves_open_is_one_parameter_after_the_other() -> None:
    params = with_gradients()
    made_of = {foreach: Stepwise(torch.optim.AdamW(params, foreach=foreach)) for foreach in (None, True, False)}
    assert {key: one.param_groups[0]["foreach"] for key, one in made_of.items()} == {
        None: False,
        True: True,
        False: False,
    }
    fused = Stepwise(torch.optim.AdamW(params, fused=True)).param_groups[0]
    assert (fused["foreach"], fused["fused"]) == (False, True) or fused["foreach"] is None


def test_an_optimizer_that_is_not_wrapped_is_an_error_that_says_how() -> None:
    method = Plain(MethodConfig())
    method.wrap = lambda optimizer: optimizer
    like = loop_of("SGD")
    with pytest.raises(HarnessError, match=r"method Plain is a AdamW, which lacks .* harness.plugin.Stepwise"):
        TrainingLoop(like.model, method, method.build_optimizer(like.model, like.context), like.context)
