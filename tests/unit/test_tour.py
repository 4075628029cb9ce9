"""The tour of all blocks, and visits: what is active is what a draw would have made active."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.catalogue.labels import load_labels
from harness.method import METHODS
from harness.methods._inclusion import inclusion_probabilities
from harness.methods._layer_sampling import tour_stop
from tests.unit.test_layer_sampling import settings
from tests.unit.test_training import LABELS, build, train

SAMPLED = [
    label
    for label in LABELS
    if "active_layers" in load_labels()[label].values()
    and not METHODS.get(load_labels()[label].method).draws_depend_on_training  # what follows training takes no turns
]


def test_a_tour_takes_every_block_in_turn_and_fills_up_from_the_start() -> None:
    assert [tour_stop(period, 3, 4) for period in range(4)] == [[0, 1, 2], [3, 0, 1], [2, 3, 0], [1, 2, 3]]
    assert [tour_stop(period, 2, 4) for period in range(3)] == [[0, 1], [2, 3], [0, 1]]
    assert inclusion_probabilities(settings(sampling="tour"), [0.25] * 4) == [0.5] * 4


@pytest.mark.parametrize("label", SAMPLED)
def test_a_tour_activates_every_block_and_says_so(label: str, tiny_llama: Path, tokenizer: Any) -> None:
    changes = {"sampling": "tour", "interval_steps": 1, "legacy_draws_seed": None}
    result, _, loop = train(label, tiny_llama, tokenizer, settings=changes, max_grad_norm=None)
    assert [entry.blocks for entry in result.block_activity] == [(0, 1), (2, 3), (0, 1), (2, 3)]
    proof = loop.method.proof()
    assert (proof["sampling"], proof["probability"], proof["probabilities"]) == ("tour", "ignored", [0.25] * 4)


@pytest.mark.parametrize("label", SAMPLED)
def test_a_tour_needs_no_block_scores(label: str) -> None:
    method = METHODS.get(load_labels()[label].method)
    values = {key: value for key, value in load_labels()[label].values().items() if key in method.Config.model_fields}
    config = method.Config.model_validate(values | {"sampling": "tour", "probability": "outlier", "tau": 13.0})
    assert method(config).block_scores_needed() is None
    with pytest.raises(ValueError, match="not sampling = 'tour'"):
        method.Config.model_validate(values | {"sampling": "tour", "legacy_draws_seed": 1})


@pytest.mark.parametrize("policy", ["keep", "drop", "offload"])
@pytest.mark.parametrize("label", ["lisa", "owlore"])
def test_a_visit_is_a_draw_of_these_blocks(label: str, policy: str, tiny_llama: Path, tokenizer: Any) -> None:
    changes = {"state_policy": policy, "returning_step_counter": "reset", "interval_steps": 1}
    ended = []
    for sampling in ("tour", "without_replacement"):
        loop, _, data = build(
            label, tiny_llama, tokenizer, settings=changes | {"sampling": sampling}, max_grad_norm=None
        )
        batches = data.step_batches()
        for blocks in ((0, 1), (2, 3), (0, 1)):
            if sampling != "tour":
                assert loop.method.visit(blocks, loop.optimizer)
            loop.train_step(next(batches))
            loop.step += 1
        assert [entry.blocks for entry in loop.log.activity] == [(0, 1), (2, 3), (0, 1)]
        ended.append((loop.optimizer.state_bytes(), [p.detach() for p in loop.model.parameters()]))
    assert ended[0][0] == ended[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ended[0][1], ended[1][1], strict=True))


def test_after_a_visit_draws_go_on_as_the_law_says(tiny_llama: Path, tokenizer: Any) -> None:
    drawn = []
    for visited in (False, True):
        loop, _, _ = build("lisa", tiny_llama, tokenizer, settings={"interval_steps": 1})
        if visited:
            loop.method.visit([3], loop.optimizer)
            loop.method.on_step_begin(0, loop.optimizer)
            assert [any(p.requires_grad for p in b.parameters()) for b in loop.context.decoder.blocks] == [
                False, False, False, True,
            ]  # fmt: skip
        loop.method.on_step_begin(1, loop.optimizer)
        drawn.append(loop.method.proof()["draws"][-1]["blocks"])
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("label", LABELS)
def test_methods_say_whether_they_sample_and_how_many_at_most(label: str, tiny_llama: Path, tokenizer: Any) -> None:
    loop, _, _ = build(label, tiny_llama, tokenizer, max_grad_norm=None)
    assert loop.method.visit([0], loop.optimizer) == loop.method.samples_blocks
    assert loop.method.may_activate_every_block() == (label == "lisa-paper")
