"""From exponents to probabilities: the published exponents of LLaMA-2-7B, and those of the packaged model.

The block means are of ``data/llama2-7b-hf/alpha_peak.npy`` in haiquanlu/AlphaPruning@5f0e984: 224 exponents, seven a
block, in plain means.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest

from harness.catalogue.labels import load_labels
from harness.commands.layers import SCORE_NAMES
from harness.commands.requests import BLOCK_SCORES
from harness.errors import Refused
from harness.method import METHODS, BlockScoreKind
from harness.methods._block_probabilities import block_probabilities
from harness.methods._settings import LayerSamplingSettings
from harness.report.statistics.ranks import rank_correlation
from tests.conftest import needed
from tests.golden.test_layer_sampling import COUNTS

LLAMA2_7B = [
    *(2.1356, 2.7064, 3.1232, 3.1237, 3.1422, 3.1333, 3.0126, 3.0720, 2.8081, 2.9100, 2.7136, 2.6760, 2.8438, 3.0128),
    *(3.0516, 3.1215, 3.4387, 3.6877, 3.9758, 3.8045, 4.3339, 4.2743, 4.1969, 4.1206, 4.1948, 4.0930, 3.6989, 4.2438),
    *(4.1579, 4.0851, 4.2777, 3.4835),
]
SMOLLM2_HILL = [
    *(2.1846, 2.5000, 2.4731, 2.4669, 2.5109, 2.4536, 2.4259, 2.3592, 2.4595, 2.4132, 2.5566, 2.4841, 2.3605, 2.3382),
    *(2.2023, 2.2480, 2.2400, 2.0964, 2.2099, 2.2046, 2.2169, 2.2051, 2.1655, 2.0797, 2.1316, 2.3634, 2.3405, 2.4969),
    *(2.3132, 2.3972),
]
"""Of the packaged SmolLM2-135M in fp32, singular values in double precision."""


def settings(mapping: str, *, reverse: bool = False, **changes: Any) -> LayerSamplingSettings:
    values: dict[str, Any] = {
        "active_layers": 5,
        "interval_steps": 1,
        "sampling": "without_replacement",
        "probability": "alpha_reverse" if reverse else "alpha",
        "alpha_estimator": "peak",
        "alpha_mapping": mapping,
        "state_policy": "keep",
        "returning_step_counter": "keep",
        "train_embedding": True,
        "train_head": True,
        "train_final_norm": True,
    }
    return LayerSamplingSettings(**(values | changes))


def probabilities(mapping: str, alphas: list[float], *, reverse: bool = False) -> np.ndarray[Any, np.dtype[np.float64]]:
    found = block_probabilities(settings(mapping, reverse=reverse, active_layers=1), len(alphas), alphas)
    assert found is not None
    return np.array(found)


@pytest.mark.parametrize(
    ("mapping", "effective_layers", "top_five"),
    [("reciprocal", 31.46, 0.202), ("difference", 23.93, 0.308), ("softmax", 26.93, None)],
)
def test_how_concentrated_each_mapping_is_on_llama2_7b(
    mapping: str, effective_layers: float, top_five: float | None
) -> None:
    p = probabilities(mapping, LLAMA2_7B)
    assert p.sum() == pytest.approx(1.0)
    positive = p[p > 0.0]
    assert math.exp(-(positive * np.log(positive)).sum()) == pytest.approx(effective_layers, abs=0.006)
    if top_five is not None:
        assert np.sort(p)[-5:].sum() == pytest.approx(top_five, abs=6e-4)
    assert int(p.argmax()) == 0, "the smallest exponent, the heaviest tail"
    assert int(p.argmin()) == 20


def test_rank_correlations_of_the_published_scores_of_llama2_7b() -> None:
    """With the published outlier counts of the same blocks, and with depth."""
    assert float(np.mean(LLAMA2_7B)) == pytest.approx(3.4579, abs=5e-5)
    assert rank_correlation(LLAMA2_7B, COUNTS) == pytest.approx(-0.775, abs=1e-3)
    assert rank_correlation(LLAMA2_7B, list(range(32))) == pytest.approx(0.773, abs=1e-3)
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None


@pytest.mark.parametrize("mapping", ["softmax", "reciprocal", "difference"])
def test_the_reverse_turns_the_order_around(mapping: str) -> None:
    straight, reverse = (probabilities(mapping, LLAMA2_7B, reverse=turned) for turned in (False, True))
    assert rank_correlation(straight.tolist(), LLAMA2_7B) == pytest.approx(-1.0)
    assert rank_correlation(reverse.tolist(), LLAMA2_7B) == pytest.approx(1.0)


def test_closed_forms_of_the_mappings() -> None:
    alphas = [2.0, 4.0, 3.0]
    assert probabilities("softmax", alphas) == pytest.approx(np.exp([-2, -4, -3]) / np.exp([-2, -4, -3]).sum())
    assert probabilities("softmax", alphas, reverse=True) == pytest.approx(np.exp([2, 4, 3]) / np.exp([2, 4, 3]).sum())
    assert probabilities("reciprocal", alphas) == pytest.approx([6 / 13, 3 / 13, 4 / 13])
    assert probabilities("reciprocal", alphas, reverse=True) == pytest.approx([2 / 9, 4 / 9, 3 / 9])
    assert probabilities("difference", alphas) == pytest.approx([2 / 3, 0.0, 1 / 3])
    assert probabilities("difference", alphas, reverse=True) == pytest.approx([0.0, 2 / 3, 1 / 3])
    assert probabilities("softmax", [700.0, 1400.0]) == pytest.approx([1.0, 0.0]), "nothing overflows"


def test_a_block_of_probability_zero_makes_drawing_all_impossible() -> None:
    with pytest.raises(Refused, match="active_layers is 32, but only 31 blocks have a probability above 0"):
        block_probabilities(settings("difference", active_layers=32), 32, LLAMA2_7B)
    assert block_probabilities(settings("softmax", active_layers=32), 32, LLAMA2_7B) is not None


def test_equal_exponents_have_no_difference() -> None:
    with pytest.raises(Refused, match="all exponents are equal"):
        block_probabilities(settings("difference"), 6, [3.0] * 6)
    assert probabilities("softmax", [3.0] * 4) == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("changes", [{"alpha_estimator": None}, {"alpha_mapping": None}])
def test_the_law_needs_estimator_and_mapping(changes: dict[str, None]) -> None:
    with pytest.raises(ValueError, match="probability = 'alpha' needs alpha_estimator and alpha_mapping"):
        settings("softmax", **changes)
    assert not settings("softmax", probability="uniform", **changes).by_alpha


def test_each_estimator_asks_for_its_own_score() -> None:
    entry = load_labels()["ows-alpha"]
    method = METHODS.get(entry.method)
    values = {key: value for key, value in entry.values().items() if key in method.Config.model_fields}
    kinds = {}
    for estimator in ("hill", "peak", "peak_corrected", "fit"):
        request = method(method.Config.model_validate(values | {"alpha_estimator": estimator})).block_scores_needed()
        kinds[estimator] = None if request is None else request.kind
    assert kinds == {name: f"alpha_{name}" for name in kinds}
    in_turn = method(method.Config.model_validate(values | {"sampling": "tour"}))
    assert in_turn.block_scores_needed() is None


def test_every_kind_of_score_can_be_asked_for_and_has_a_name() -> None:
    assert get_args(BlockScoreKind) == BLOCK_SCORES == tuple(SCORE_NAMES)


def test_the_label_is_owlore_but_for_what_it_draws_by() -> None:
    labels = load_labels()
    owlore, alpha = (labels[label].values() for label in ("owlore", "ows-alpha"))
    assert {key for key in owlore.keys() | alpha.keys() if owlore.get(key) != alpha.get(key)} == {
        *("probability", "tau", "alpha_estimator", "alpha_mapping")
    }
    law = {key: alpha[key] for key in ("probability", "alpha_estimator", "alpha_mapping")}
    assert law == {"probability": "alpha", "alpha_estimator": "hill", "alpha_mapping": "softmax"}


@pytest.mark.slow
def test_hill_exponents_of_the_packaged_model() -> None:
    import torch

    from harness.catalogue.models import load_models
    from harness.engine.block_scores import block_scores
    from harness.engine.heavy_tails import alpha_hill, eigenvalues
    from harness.method import BlockScoreRequest
    from harness.preparing.assets import converted_model_place
    from harness.tensors.decoder import find_decoder
    from harness.tensors.linear import linear_layers, weight_of
    from harness.tensors.loading import load_model

    spec = load_models()["smollm2-135m"]
    model = load_model(needed(converted_model_place(spec)), "fp32", torch.device("cpu"))
    decoder = find_decoder(model, spec)
    assert block_scores(BlockScoreRequest("alpha_hill"), model, decoder, []) == pytest.approx(SMOLLM2_HILL, abs=1e-4)
    first = [alpha_hill(eigenvalues(weight_of(layer))) for layer in linear_layers(decoder.blocks[0])]
    assert first == pytest.approx([1.4468, 1.4594, 2.5225, 1.6863, 2.7772, 2.8290, 2.5713], abs=1e-4)
