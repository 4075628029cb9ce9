"""The contract of a method as it is shipped: what holds passes, and each thing that is wrong fails in its own check."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.catalogue.labels import load_labels
from harness.checking import CHECKS, check_method
from harness.cli import main
from harness.errors import HarnessError
from harness.method import METHODS
from harness.plugin import Declaration, DeclaredPart, MethodConfig, OptimizerMethod


class Descent(torch.optim.Optimizer):
    """Plain descent, in which a hook may go wrong."""

    def __init__(self, params: Any, lr: float, wrong: Callable[[Any, Any], None] = lambda optimizer, p: None) -> None:
        super().__init__(params, {"lr": lr})
        self.wrong = wrong

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])
                    self.wrong(self, p)


class Right(OptimizerMethod):
    """A method that holds its contract."""

    Config = MethodConfig

    def optimizer(self, named: Any, learning_rate: float, context: Any) -> Any:
        return Descent([p for _, p in named], learning_rate)


def stepping(wrong: Callable[[Any, Any], None]) -> dict[str, Any]:
    """Return a method whose optimizer does something else behind each update."""
    return {"optimizer": lambda self, named, rate, context: Descent([p for _, p in named], rate, wrong)}


def nothing_is_updated(optimizer: Any, p: Any) -> None:
    p.add_(p.grad, alpha=optimizer.param_groups[0]["lr"])


SEEN: list[int] = []


def every_call_differs(optimizer: Any, p: Any) -> None:
    SEEN.append(1)
    p.add_(1e-4 * len(SEEN))


def memory_is_kept_aside(optimizer: Any, p: Any) -> None:
    held = optimizer.__dict__.setdefault("held", {})
    p.sub_(held.get(p, 0.0), alpha=0.1)
    held[p] = p.grad.clone()


def all_parameters_count(optimizer: Any, p: Any) -> None:
    held = [q for q in optimizer.param_groups[0]["params"] if q.grad is not None]
    p.sub_(p.grad, alpha=1e-3 * len(held))


def state_hangs_on_values(optimizer: Any, p: Any) -> None:
    if float(p.grad.abs().max()) > 0.9:
        optimizer.state[p]["seen"] = torch.zeros_like(p)


def a_frozen_part_moves(self: Any, step: int, optimizer: Any) -> None:
    if step:
        with torch.no_grad():
            next(self.model.parameters()).mul_(1.01)


def prepare_without_the_embedding(self: Any, model: Any, context: Any) -> Any:
    self.model = model.requires_grad_(True)
    context.decoder.embedding.requires_grad_(False)
    return model


def declares_too_much(self: Any, model: Any, context: Any) -> Declaration:
    part = DeclaredPart(num_params=7, dtypes=("float32",))
    return Declaration(blocks=(part,) * len(context.decoder.blocks), others={})


def scaled(self: Any, model: Any) -> Any:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    return model


def weights_become_fp32(optimizer: Any, p: Any) -> None:
    times = optimizer.state[p]["times"] = optimizer.state[p].get("times", 0) + 1
    if times == 2:
        p.data = p.data.float()


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "a fault in its code": (
        {"optimizer": lambda self, named, rate, context: named.nothing},
        "starts",
        r"AttributeError: 'list' object has no attribute 'nothing' \(.*test_checking.py:\d+\)",
    ),
    "nothing is updated": (stepping(nothing_is_updated), "trains what it says", "did not change in 4 steps"),
    "a frozen part moves": (
        {"prepare": prepare_without_the_embedding, "on_step_begin": a_frozen_part_moves},
        "trains what it says",
        "embed_tokens.weight changed in step 1, in which it required no gradient",
    ),
    "every run differs": (stepping(every_call_differs), "repeats", "two runs of one seed differ: model"),
    "memory is kept aside": (stepping(memory_is_kept_aside), "resumes", "went on at step 3 and one that was not"),
    "all parameters count": (
        stepping(all_parameters_count),
        "updates in backward",
        "backward pass and behind it differ",
    ),
    "weights become fp32": (stepping(weights_become_fp32), "keeps dtypes", "weight is torch.float32 after two steps"),
    "declares too much": ({"declare": declares_too_much}, "declares what is seen", "the proof fails in"),
    "state hangs on values": (
        stepping(state_hangs_on_values),
        "is planned",
        r"planning foresees [\d,]+ bytes of optimizer state, and a run has 0",
    ),
    "exports other weights": ({"export": scaled}, "exports", "exported weights give other logits, by up to"),
}


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Registers a method for the test, and returns its name."""
    METHODS.names()

    def register(**changes: Any) -> str:
        monkeypatch.setitem(METHODS._classes, "mine", type("Mine", (Right,), changes))
        return "mine"

    return register


@pytest.mark.parametrize("check", CHECKS)
def test_what_holds_its_contract_passes(check: str, method: Callable[..., str]) -> None:
    (result,) = check_method(method(), only=[check])
    assert result.ok and result.name == check, result.reason


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_fails_in_its_check(what: str, method: Callable[..., str]) -> None:
    changes, check, said = WRONG[what]
    (result,) = check_method(method(**changes), only=[check])
    assert not result.ok
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(result.reason)


def test_every_check_can_fail() -> None:
    assert {check for _, check, _ in WRONG.values()} == set(CHECKS)


def test_a_method_that_trains_nothing_or_lacks_settings_is_told_so() -> None:
    assert [(check.name, check.ok) for check in check_method("base")] == [("starts", True)]
    (lacking,) = check_method("galore", only=["starts"])
    assert lacking.ok  # a label; the bare method has no settings
    (bare,) = check_method("owlore-code", only=["starts"])
    assert bare.ok
    with pytest.raises(HarnessError, match="there is no check 'nothing'; there are starts, "):
        check_method("full", only=["nothing"])


def test_settings_without_a_default_have_to_come_from_a_label(method: Callable[..., str]) -> None:
    class Needs(MethodConfig):
        strength: float

    (result,) = check_method(method(Config=Needs))
    assert not result.ok
    assert "has no label that gives its settings strength: give them in a label" in result.reason


def test_the_command_prints_a_line_a_check_and_ends_with_how_it_went(
    method: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {name: CHECKS[name] for name in ("starts", "trains what it says")}
    monkeypatch.setattr("harness.checking.contract.CHECKS", few)
    assert main(["check", method()]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:-1]] == ["ok", "ok"] and said[-1] == "method mine: ok"
    assert main(["check", method(**stepping(nothing_is_updated)), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], [check["ok"] for check in found["checks"]]) == (False, [True, False])


@pytest.mark.slow
@pytest.mark.parametrize("label", ["full", "lora", "owlore"])
def test_labels_of_ours_hold_the_contract(label: str) -> None:
    assert [(check.name, check.reason) for check in check_method(label) if not check.ok] == []


@pytest.mark.long
@pytest.mark.parametrize("label", load_labels())
def test_every_label_of_ours_holds_the_contract(label: str) -> None:
    assert [(check.name, check.reason) for check in check_method(label) if not check.ok] == []
