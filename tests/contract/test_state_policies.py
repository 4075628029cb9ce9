"""What each policy does at a draw to the optimizer state of blocks that go, stay and return, and of the rest."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from harness.catalogue.labels import load_labels

SCRIPT = [[0, 1], [1, 2], [1, 0]]
"""Block 1 stays throughout, block 0 goes and returns, block 2 comes and goes."""
PERIOD = 2
GONE = None
POLICIES: list[tuple[dict[str, Any], dict[str, int | None]]] = [
    (
        {"state_policy": "keep", "returning_step_counter": "keep"},
        {"stays": 6, "returned": 4, "went": 2, "embedding": 6},
    ),
    (
        {"state_policy": "keep", "returning_step_counter": "reset"},
        {"stays": 6, "returned": 2, "went": 2, "embedding": 6},
    ),
    (
        {"state_policy": "offload", "returning_step_counter": "keep"},
        {"stays": 6, "returned": 4, "went": 2, "embedding": 6},
    ),
    (
        {"state_policy": "drop", "returning_step_counter": "reset"},
        {"stays": 6, "returned": 2, "went": GONE, "embedding": 6},
    ),
    (
        {"state_policy": "drop", "returning_step_counter": "reset", "reset_each_period": True},
        {"stays": 2, "returned": 2, "went": GONE, "embedding": 2},
    ),
]
"""Settings, and Adam's counter after three periods of two steps; None where there is no state."""


class Script:
    """A generator that draws what it is told."""

    def __init__(self, draws: list[list[int]]) -> None:
        self._draws = list(draws)

    def choice(self, a: int, size: int, *, replace: bool, p: Any) -> list[int]:
        return self._draws.pop(0)


def scripted(tiny: Any, **settings: Any) -> Any:
    run = tiny.start("lisa", interval_steps=PERIOD, **settings)
    run.method._sampler._generator = Script(SCRIPT)
    return run


@pytest.mark.parametrize(("settings", "wanted"), POLICIES)
def test_what_a_draw_does_to_state(tiny: Any, settings: dict[str, Any], wanted: dict[str, int | None]) -> None:
    run = scripted(tiny, **settings).steps(0, 3 * PERIOD)
    decoder, state = run.context.decoder, run.optimizer.state
    places = {"stays": decoder.blocks[1], "returned": decoder.blocks[0], "went": decoder.blocks[2]}
    places["embedding"] = decoder.embedding
    found = {name: {state.get(p, {}).get("step") for p in part.parameters()} for name, part in places.items()}
    assert found == {name: {counter} for name, counter in wanted.items()}
    for part in (decoder.head, decoder.final_norm):
        assert {state[p]["step"] for p in part.parameters()} == {wanted["embedding"]}


def test_kept_moments_with_a_reset_counter_are_the_old_ones(tiny: Any) -> None:
    run = scripted(tiny, state_policy="keep", returning_step_counter="reset").steps(0, 2 * PERIOD)
    p = next(run.context.decoder.blocks[0].parameters())
    before = run.optimizer.state[p]["exp_avg_sq"].clone()
    run.steps(2 * PERIOD, 2 * PERIOD + 1)
    assert torch.all(run.optimizer.state[p]["exp_avg_sq"] >= before * 0.999 * (1 - 1e-6)) and before.any()


def trained_by_the_reference(tiny: Any, run: Any, num_steps: int) -> dict[str, torch.Tensor]:
    """Return the weights after steps of torch's AdamW, made anew at every draw over what is trained from there."""
    other = tiny.start("full")
    model, decoder = other.model, other.context.decoder
    draws = {draw["step"]: set(draw["blocks"]) for draw in run.method.proof()["draws"]}
    optimizer = adamw(list(model.parameters()))
    for step in range(num_steps):
        if step in draws:
            model.requires_grad_(True)
            for index, block in enumerate(decoder.blocks):
                block.requires_grad_(index in draws[step])
            optimizer = adamw([p for p in model.parameters() if p.requires_grad])
        ids = other.batch(step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        model.zero_grad()
    return {name: p.detach() for name, p in model.named_parameters()}


def adamw(params: list[Any]) -> torch.optim.AdamW:
    return torch.optim.AdamW(params, lr=1e-2, weight_decay=0.0, foreach=False)


def test_lisa_paper_is_torchs_adamw_made_anew_at_every_draw(tiny: Any) -> None:
    """As the paper's authors ran it: the model saved, loaded and trained by a new optimizer each period."""
    run = tiny.start("lisa-paper", moment_dtype="fp32", interval_steps=PERIOD).steps(0, 12)
    drawn = [set(draw["blocks"]) for draw in run.method.proof()["draws"]]
    assert any(one & other for one, other in pairwise(drawn)), "no block stays"
    theirs = trained_by_the_reference(tiny, run, 12)
    assert all(torch.equal(ours, theirs[name]) for name, ours in run.weights().items())
    assert not all(
        torch.equal(ours, theirs[name])
        for name, ours in tiny.start("lisa-paper", moment_dtype="fp32", interval_steps=PERIOD, reset_each_period=False)
        .steps(0, 12)
        .weights()
        .items()
    )


def test_the_label_says_so() -> None:
    settings = load_labels()["lisa-paper"].settings["reset_each_period"]
    assert (settings["value"], settings["source"]) == (True, "paper")
    assert "reset_each_period" not in load_labels()["lisa"].settings
