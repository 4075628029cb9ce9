"""The stable import of plug-ins, and the method of thirty lines that the documentation shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import harness.plugin
from harness.calibration.tiny import MODEL, tiny_run
from harness.errors import Refused
from harness.method import METHODS
from harness.planning.predict import Question, predict
from harness.plugin import MethodConfig, OptimizerMethod
from tests.plug_ins import install, look_again
from tests.records import make_spec

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"


def example() -> str:
    """Return the method that the documentation shows first."""
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def signum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    METHODS.names()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    install(tmp_path / "site", "signum", "1.0", "my_signum.py", example(), entry="signum = my_signum:SignumMethod")
    look_again(monkeypatch, "my_signum")
    return "signum"


def test_the_documented_method_is_as_short_as_it_says_and_imports_one_stable_module() -> None:
    lines = [line for line in example().splitlines() if line.strip()]
    assert len(lines) <= 30
    assert {line.split()[1] for line in lines if line.startswith(("from ", "import "))} == {"harness.plugin"}


def test_the_documented_method_trains_saves_and_is_planned(signum: str, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    after, during = (tiny_run(signum, cpu, {"update_in_backward": on}) for on in (False, True))
    assert after.take(4) == during.take(4)
    assert after.checksums() == during.checksums()
    part, rest = tiny_run(signum, cpu), tiny_run(signum, cpu)
    part.take(2)
    part.checkpoints(tmp_path).save()
    assert rest.checkpoints(tmp_path).restore() == 2
    rest.take(2)
    assert rest.checksums() == after.checksums()
    spec = make_spec(method=signum, config={"beta": 0.9}, train=after.loop.context.train)
    planned = predict(spec, MODEL, Question(device="cpu", num_steps=4), lambda request: None)
    held = sum(p.numel() * 4 for p in after.loop.model.parameters())
    assert planned.optimizer_state_bytes == after.loop.optimizer.state_bytes()["device"] == held


def test_its_step_is_that_of_the_paper(signum: str) -> None:
    run = tiny_run(signum, torch.device("cpu"), {"beta": 0.5})
    weight = run.loop.context.decoder.final_norm.weight
    before = weight.detach().clone()
    run.take(1)
    first = run.loop.optimizer.state[weight]["momentum"].clone()
    rate = run.loop.optimizer.param_groups[0]["lr"]
    assert torch.equal(weight.detach(), before - rate * first.sign())


class Some(OptimizerMethod):
    """Trains the norms."""

    Config = MethodConfig

    def trains_parameter(self, name: str, parameter: Any) -> bool:
        return "norm" in name

    def optimizer(self, named: Any, learning_rate: float, context: Any) -> Any:
        return torch.optim.SGD([p for _, p in named], lr=learning_rate)


def test_what_it_does_not_train_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    METHODS.names()
    monkeypatch.setitem(METHODS._classes, "some", Some)
    run = tiny_run("some", torch.device("cpu"))
    before = {name: p.detach().clone() for name, p in run.loop.model.named_parameters()}
    run.take(1)
    for name, p in run.loop.model.named_parameters():
        assert torch.equal(p, before[name]) == ("norm" not in name), name
        assert p.requires_grad == ("norm" in name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trains_parameter": lambda self, name, p: False}, "method Other trains no parameter of this model"),
        (
            {"optimizer": lambda self, named, rate, context: torch.optim.Muon([p for _, p in named], lr=rate)},
            "the optimizer of method Other cannot be made: Muon only supports 2D parameters",
        ),
        (
            {"optimizer": lambda self, named, rate, context: torch.optim.LBFGS([p for _, p in named])},
            "LBFGS evaluates the loss again in its step",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(change: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    METHODS.names()
    names = {"trains_parameter": lambda self, name, p: True}
    monkeypatch.setitem(METHODS._classes, "other", type("Other", (Some,), names | change))
    with pytest.raises(Refused, match=said):
        tiny_run("other", torch.device("cpu"))


def test_clipping_that_could_not_be_done_is_refused() -> None:
    train = tiny_run("full", torch.device("cpu"), train={"max_grad_norm": 1.0}).loop.context.train
    with pytest.raises(Refused, match=r"max_grad_norm = 1.0 cannot be applied with update_in_backward"):
        Some.check(MethodConfig(update_in_backward=True), train)
    Some.check(MethodConfig(update_in_backward=True, two_pass_clipping=True), train)
    Some.check(MethodConfig(), train)


def test_every_public_name_is_there_and_none_of_them_needs_torch_to_be_imported() -> None:
    assert all(getattr(harness.plugin, name) is not None for name in harness.plugin.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'stepwise'"):
        _ = harness.plugin.stepwise
    names = ", ".join(name for name in harness.plugin.__all__ if name != "Stepwise")
    code = f"import sys\nfrom harness.plugin import {names}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
