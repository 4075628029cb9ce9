"""The law by which a label draws blocks, as its method tells it; and whose law is told when no label is named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from harness.catalogue.labels import load_labels
from harness.catalogue.resolved import load_catalogue
from harness.commands.layers import _first_by_scores
from harness.commands.requests import SelectionRequest
from harness.errors import HarnessError, Refused
from harness.expansion import catalogue_for, load_suite
from harness.method import METHODS, Method

SCORES = [1.0, 2.0, 3.0, 4.0, 2.0, 8.0]


def method_of(label: str) -> Method:
    entry = load_labels()[label]
    method = METHODS.get(entry.method)
    settings = {key: value for key, value in entry.values().items() if key in method.Config.model_fields}
    return method(method.Config.model_validate(settings))


@pytest.mark.parametrize("label", load_labels())
def test_a_label_tells_a_law_if_and_only_if_it_samples_blocks(label: str) -> None:
    method = method_of(label)
    law = method.block_law(len(SCORES), SCORES)
    assert (law is not None) == method.samples_blocks
    if law is None:
        return
    assert len(law.probabilities) == len(law.inclusion) == len(SCORES)
    assert sum(law.probabilities) == pytest.approx(1.0)
    assert sum(law.inclusion) == pytest.approx(law.active_layers)
    assert law.words.startswith(f"{law.active_layers} ")
    if method.block_scores_needed() is None:
        assert method.block_law(len(SCORES), None) == law
    else:
        weights = [math.exp(-score) for score in SCORES] if law.probability == "alpha" else SCORES
        assert law.probabilities == pytest.approx([weight / sum(weights) for weight in weights])


def test_more_active_layers_than_blocks_are_refused() -> None:
    with pytest.raises(Refused, match="but the model has 1 blocks"):
        method_of("lisa").block_law(1, None)


@pytest.mark.parametrize(
    ("law", "words"),
    [
        ("tour", "in turn"),
        ("descending", "in turn, from the last"),
        ("reshuffle", "in turn, in an order of each round"),
    ],
)
def test_blocks_that_take_turns_are_drawn_alike_whatever_their_scores(law: str, words: str) -> None:
    method = method_of("lisa")
    turns = type(method)(method.config.model_copy(update={"sampling": law, "active_layers": 2}))
    told = turns.block_law(len(SCORES), SCORES)
    assert told is not None
    assert told.words == f"2 {words}"
    assert told.probabilities == pytest.approx([1 / 6] * 6)
    assert told.inclusion == pytest.approx([1 / 3] * 6)


def test_rounds_that_do_not_come_out_even_are_refused() -> None:
    method = method_of("lisa")
    uneven = type(method)(method.config.model_copy(update={"sampling": "reshuffle", "active_layers": 4}))
    with pytest.raises(Refused, match="does not divide the model's 6 blocks"):
        uneven.block_law(len(SCORES), None)


@pytest.mark.parametrize("suite", ["quickstart", "commonsense", "ablations", "mt-bench"])
def test_without_a_label_the_first_that_draws_by_scores_is_told(suite: str) -> None:
    labels = catalogue_for(load_suite(suite), suite).labels
    found = _first_by_scores(SelectionRequest(suite=suite), labels)
    before = list(labels)[: list(labels).index(found)]
    assert method_of(found).block_scores_needed() is not None
    assert all(method_of(label).block_scores_needed() is None for label in before)
    assert before


def test_a_suite_without_such_a_label_asks_for_one() -> None:
    labels = {label: entry for label, entry in load_labels().items() if label in ("full", "lisa")}
    with pytest.raises(HarnessError, match="may use no label that draws blocks by scores: name one with --label"):
        _first_by_scores(SelectionRequest(suite="quickstart"), labels)


def test_a_label_of_ones_own_may_be_the_first(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('[methods.mine]\nalias_of = "owlore"\n')
    labels = load_catalogue(file).labels
    own = {label: entry for label, entry in labels.items() if label in ("lisa", "mine")}
    assert _first_by_scores(SelectionRequest(suite="quickstart", catalogue=file), own) == "mine"
