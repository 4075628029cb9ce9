"""The law by which a label draws blocks, as its method tells it; and whose law is told when no label is named."""

from __future__ import annotations

import pytest

from harness.commands.layers import _first_by_scores
from harness.errors import HarnessError, Refused
from harness.expansion import labels_for, load_suite
from harness.labels import load_labels
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
    assert (law is not None) == ("sampling" in type(method.config).model_fields)
    if law is None:
        return
    assert len(law.probabilities) == len(law.inclusion) == len(SCORES)
    assert sum(law.probabilities) == pytest.approx(1.0)
    assert sum(law.inclusion) == pytest.approx(law.active_layers)
    assert law.words.startswith(f"{law.active_layers} ")
    if method.block_scores_needed() is None:
        assert method.block_law(len(SCORES), None) == law
    else:
        assert law.probabilities == pytest.approx([score / sum(SCORES) for score in SCORES])


def test_more_active_layers_than_blocks_are_refused() -> None:
    with pytest.raises(Refused, match="but the model has 1 blocks"):
        method_of("lisa").block_law(1, None)


@pytest.mark.parametrize("suite", ["quickstart", "commonsense", "ablations", "mt-bench"])
def test_without_a_label_the_first_that_draws_by_scores_is_told(suite: str) -> None:
    labels = labels_for(load_suite(suite), suite)
    found = _first_by_scores(suite, labels)
    before = list(labels)[: list(labels).index(found)]
    assert method_of(found).block_scores_needed() is not None
    assert all(method_of(label).block_scores_needed() is None for label in before)
    assert before


def test_a_suite_without_such_a_label_asks_for_one() -> None:
    labels = {label: entry for label, entry in load_labels().items() if label in ("full", "lisa")}
    with pytest.raises(HarnessError, match="may use no label that draws blocks by scores: name one with --method"):
        _first_by_scores("quickstart", labels)
