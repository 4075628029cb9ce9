"""From scores to probabilities to draws, without a model."""

from __future__ import annotations

import numpy as np
import pytest

from harness.errors import HarnessError, Refused
from harness.methods._block_probabilities import block_probabilities, outlier_counts, parse_scores
from harness.methods._layer_sampling import draw_blocks
from harness.methods._settings import LayerSamplingSettings


def settings(**changes):
    values = {
        "active_layers": 2,
        "interval_steps": 1,
        "sampling": "without_replacement",
        "probability": "uniform",
        "state_policy": "keep",
        "returning_step_counter": "keep",
        "train_embedding": True,
        "train_head": True,
        "train_final_norm": True,
    }
    return LayerSamplingSettings(**(values | changes))


@pytest.mark.parametrize(
    "text",
    [
        "0.5\n0.25\n0.125\n",
        "5.0e-01 2.5e-01 1.25e-01",
        "[0.5, 0.25,\n 0.125]",
        "  0.5,0.25,0.125  ",
        "0.5\r\n0.25\r\n.125",
    ],
)
def test_scores_are_read_in_every_layout(text):
    assert parse_scores(text, "here") == [0.5, 0.25, 0.125]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0.5\nhalf\n", "here: line 2: expected a number in percent, found 'half'"),
        ("0.5\n101\n", "here: line 2: 101 is not a percentage"),
        ("-0.1", "here: line 1: -0.1 is not a percentage"),
        ("nan", "line 1: nan is not a percentage"),
        ("0.5\ninf", "line 2: inf is not a percentage"),
        ("", "expected one percentage a block"),
        ("0.0\n0.0", "at least one of them above 0"),
    ],
)
def test_what_is_no_list_of_percentages_is_an_error(text, sentence):
    with pytest.raises(HarnessError, match=sentence):
        parse_scores(text, "here")


def test_counts_fail_for_any_other_pool():
    assert outlier_counts([12.5, 25.0], 8) == [1, 2]
    with pytest.raises(HarnessError, match=r"block 0: 12\.5 percent of 9 weights is 1\.125, not a whole number"):
        outlier_counts([12.5, 25.0], 9)


def test_probabilities_of_every_kind():
    scores = [0.2, 0.6, 0.2]
    assert block_probabilities(settings(), 3, None) is None
    assert block_probabilities(settings(probability="decrease"), 3, None) == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    assert block_probabilities(settings(probability="increase"), 3, None) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert block_probabilities(settings(probability="outlier", tau=13), 3, scores) == pytest.approx([0.2, 0.6, 0.2])
    assert block_probabilities(settings(probability="weight_norm"), 3, [1.0, 3.0, 4.0]) == pytest.approx(
        [1 / 8, 3 / 8, 0.5]
    )
    reverse = block_probabilities(settings(probability="outlier_reverse", tau=13), 3, scores)
    assert reverse == pytest.approx([0.5, 0.0, 0.5]) and reverse[1] == 0.0


@pytest.mark.parametrize(
    "scores", [[0.1, float("nan"), 0.2], [0.1, -0.1, 0.2], [0.0, 0.0, 0.0], [0.1, float("inf"), 0.1]]
)
def test_scores_that_cannot_be_weights_are_refused(scores):
    with pytest.raises(Refused, match="not all finite and >= 0 with one above 0"):
        block_probabilities(settings(probability="outlier", tau=13), 3, scores)


def test_equal_scores_cannot_be_reversed():
    with pytest.raises(Refused, match="all block scores are equal"):
        block_probabilities(settings(probability="outlier_reverse", tau=13), 3, [0.3, 0.3, 0.3])


def test_reversed_scores_leave_one_block_fewer_to_draw():
    config = settings(probability="outlier_reverse", tau=13, active_layers=3)
    with pytest.raises(Refused, match="active_layers is 3, but only 2 blocks"):
        block_probabilities(config, 3, [0.2, 0.6, 0.3])


def test_a_block_without_probability_is_never_drawn():
    generator = np.random.default_rng(0)
    for _ in range(300):
        assert 1 not in draw_blocks(settings(), 4, [0.5, 0.0, 0.25, 0.25], generator)


def test_coin_flips_are_independent_with_a_random_count():
    """LISA's paper, 32 blocks and 2 expected: mean 2, standard deviation 1.37, none active in 12.7 % of the periods."""
    generator = np.random.default_rng(0)
    config = settings(sampling="bernoulli")
    counts = np.array([len(draw_blocks(config, 32, None, generator)) for _ in range(20_000)])
    assert counts.mean() == pytest.approx(2.0, abs=0.05)
    assert counts.std() == pytest.approx(1.37, abs=0.03)
    assert (counts == 0).mean() == pytest.approx(0.127, abs=0.01)
    assert (counts >= 5).mean() == pytest.approx(0.047, abs=0.006)
