"""Optimizers of torch.optim in the loop of every method: the same numbers, a step of one parameter, a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.calibration.tiny import MODEL, tiny_run
from harness.engine.checkpoint import Checkpoints
from harness.engine.context import EngineContext
from harness.engine.decoder import find_decoder
from harness.engine.loading import build_model
from harness.engine.seeding import seeded_globally
from harness.engine.stepwise import Stepwise
from harness.engine.training import TrainingLoop
from harness.errors import HarnessError
from harness.method import Method, MethodConfig, StepOptimizer

OPTIMIZERS: dict[str, Any] = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-3),
    "SGD": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=1e-3),
}


class Plain(Method):
    """Trains everything with an optimizer of torch.optim."""

    kind = "AdamW"
    wrap: Any = Stepwise

    def prepare(self, model: Any, context: Any) -> Any:
        return model.requires_grad_(True)

    def build_optimizer(self, model: Any, context: Any) -> StepOptimizer:
        return self.wrap(OPTIMIZERS[self.kind](model.parameters()))  # type: ignore[no-any-return]


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
    bare = OPTIMIZERS[kind](alone.model.parameters())
    for step, (batch,) in zip(range(4), batches(), strict=False):
        bare.param_groups[0]["lr"] = after.result().curve.learning_rate[step]
        (alone.stepping._summed_loss(alone.model, batch) / batch.num_trained_tokens).backward()
        bare.step()
        bare.zero_grad()
    for one, other, third in zip(weights(after), weights(during), weights(alone), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)
    held = sum(t.numel() * 4 for state in bare.state.values() for t in state.values() if isinstance(t, torch.Tensor))
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
def test_it_steps_fake_tensors_as_planning_does(kind: str) -> None:
    with FakeTensorMode():
        params = [torch.nn.Parameter(torch.empty(4, 5)) for _ in range(3)]
        optimizer = Stepwise(OPTIMIZERS[kind](params))
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer.step_parameters(params[:1])
        assert list(optimizer.state) == params[:1]
        optimizer.step_parameters(params[1:])
        assert len(optimizer.state) == len(params)


def test_an_optimizer_that_is_not_wrapped_is_an_error_that_says_how() -> None:
    method = Plain(MethodConfig())
    method.wrap = lambda optimizer: optimizer
    like = loop_of("SGD")
    with pytest.raises(HarnessError, match=r"method Plain is a AdamW, which lacks .* harness.engine.stepwise.Stepwise"):
        TrainingLoop(like.model, method, method.build_optimizer(like.model, like.context), like.context)
