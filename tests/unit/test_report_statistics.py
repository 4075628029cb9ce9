"""Intervals against scipy, statsmodels' published examples and simulation."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import stats

from harness.record import Score
from harness.report.statistics.intervals import (
    estimate_average,
    estimate_score,
    mean_of_accuracies_interval,
    t_interval,
    wilson_interval,
)
from harness.report.statistics.means import mean_interval


def score(value: float, n: int, *, stderr: float | None = None, unit: str = "fraction", task: str = "boolq") -> Score:
    return Score.model_validate(
        {
            "task": task,
            "metric": "acc",
            "value": value,
            "stderr": stderr,
            "n": n,
            "unit": unit,
            "higher_is_better": True,
            "task_version": "1",
            "num_fewshot": 0,
            "headline": True,
        }
    )


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 20), (1, 29), (15, 148), (81, 263), (500, 500)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_the_wilson_interval_is_scipys(successes: int, n: int, level: float) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    assert wilson_interval(successes, n, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_wilson_interval_gives_newcombes_examples(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe (1998), Statistics in Medicine 17:857-872, table I, method 3."""
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_the_t_interval_is_scipys() -> None:
    values = [0.41, 0.44, 0.39, 0.47]
    expected = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert t_interval(values) == pytest.approx(expected, abs=1e-12)


def test_the_interval_of_a_mean_of_accuracies_adds_the_variances_of_its_tasks() -> None:
    counts = [(20, 50), (0, 10), (70, 100)]
    variance = sum(q * (1 - q) / n for x, n in counts for q in [(x + 0.5) / (n + 1)]) / 9
    mean = (0.4 + 0.0 + 0.7) / 3
    expected = stats.norm.interval(0.95, loc=mean, scale=math.sqrt(variance))
    assert mean_of_accuracies_interval(counts) == pytest.approx(expected, abs=1e-12)


def test_the_interval_of_a_mean_has_width_when_every_task_is_all_right() -> None:
    low, high = mean_of_accuracies_interval([(3, 3)] * 8)
    assert high == 1.0
    assert 0.8 < low < 0.99


@pytest.mark.parametrize("n", [8, 24, 200])
def test_the_interval_of_a_mean_covers_the_truth(n: int) -> None:
    draw = random.Random(n)
    truth = (0.38, 0.65, 0.33, 0.4, 0.5, 0.5, 0.24, 0.2)
    covered = 0
    for _ in range(2000):
        counts = [(sum(draw.random() < p for _ in range(n)), n) for p in truth]
        low, high = mean_of_accuracies_interval(counts)
        covered += low <= sum(truth) / len(truth) <= high
    assert 0.92 <= covered / 2000 <= 0.97


def test_one_seed_gets_the_interval_of_its_items_and_several_that_of_the_seeds() -> None:
    one = estimate_score([score(0.4, 50)])
    assert one.basis == "items"
    assert one.interval == pytest.approx(wilson_interval(20, 50))
    several = estimate_score([score(0.4, 50), score(0.5, 50), score(0.45, 50)], (0.3, 0.6))
    assert several.basis == "items and seeds"
    assert (several.mean, several.num_seeds, several.num_items) == (pytest.approx(0.45), 3, (50, 50))
    assert several.interval == (0.3, 0.6)


def test_seeds_without_their_items_have_no_interval() -> None:
    found = estimate_score([score(0.4, 50), score(0.4, 50), score(0.4, 50)])
    assert (found.interval, found.basis) == (None, "none")


def test_the_error_that_lm_eval_gives_a_group_is_not_taken() -> None:
    group = score(0.123456, 50, stderr=0.02).model_copy(update={"subtasks": ("a", "b")})
    assert estimate_score([group]).interval is None


@pytest.mark.parametrize("right", [0, 9, 30])
def test_the_interval_of_items_and_seeds_is_wilsons_for_one_seed_and_for_seeds_that_agree(right: int) -> None:
    items = np.array([1.0] * right + [0.0] * (30 - right))
    for num_seeds in (1, 3):
        found = mean_interval([np.tile(items, (num_seeds, 1))])
        assert found == pytest.approx(wilson_interval(right, 30))


def test_the_interval_of_a_mean_of_items_is_that_of_its_counts() -> None:
    tasks = [np.array([[1.0] * 20 + [0.0] * 30]), np.array([[0.0] * 10])]
    assert mean_interval(tasks) == pytest.approx(mean_of_accuracies_interval([(20, 50), (0, 10)]))


def test_seeds_that_swing_widen_the_interval() -> None:
    """Items are easy or hard; each seed has 30 more or fewer of 100 right."""
    agree = np.tile(np.array([1.0] * 50 + [0.0] * 50), (3, 1))
    swing = np.array([[1.0] * right + [0.0] * (100 - right) for right in (20, 50, 80)])
    narrow, wide = mean_interval([agree]), mean_interval([swing])
    assert narrow is not None and wide is not None
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_points_that_do_not_differ_have_no_interval() -> None:
    assert mean_interval([np.full((2, 5), 7.0)]) is None
    assert mean_interval([np.array([[6.0, 7.0, 8.0], [6.5, 7.0, 9.0]])]) is not None


@pytest.mark.parametrize("flipped", [0.02, 0.1])
@pytest.mark.parametrize(("n", "num_seeds", "p"), [(30, 2, 0.3), (30, 3, 0.3), (100, 3, 0.5)])
def test_intervals_of_seeds_that_nearly_agree_cover_the_truth(n: int, num_seeds: int, p: float, flipped: float) -> None:
    """Each seed flips few answers of the same items; over seeds alone 39% and less held the truth."""
    draw = np.random.default_rng(n + num_seeds)
    truth, covered = p + flipped * (1 - 2 * p), 0
    for _ in range(600):
        items = draw.random(n) < p
        outcomes = np.where(draw.random((num_seeds, n)) < flipped, ~items, items).astype(float)
        found = mean_interval([outcomes])
        assert found is not None
        covered += found[0] <= truth <= found[1]
    assert 0.92 <= covered / 600 <= 0.985


def test_a_score_that_is_no_share_of_items_uses_its_recorded_standard_error() -> None:
    points = estimate_score([score(6.5, 80, stderr=0.1, unit="points")])
    assert points.interval == pytest.approx(stats.norm.interval(0.95, loc=6.5, scale=0.1))
    partial = estimate_score([score(0.123456, 50, stderr=0.02)])
    assert partial.interval == pytest.approx(stats.norm.interval(0.95, loc=0.123456, scale=0.02))


def test_without_a_standard_error_there_is_no_interval() -> None:
    estimate = estimate_score([score(6.5, 80, unit="points")])
    assert (estimate.mean, estimate.interval, estimate.basis) == (6.5, None, "none")


def test_an_average_counts_the_items_of_all_its_tasks() -> None:
    run = [score(0.5, 40), score(0.25, 20, task="piqa")]
    estimate = estimate_average([run])
    assert (estimate.mean, estimate.num_items) == (0.375, (60, 60))
    assert estimate.interval == pytest.approx(mean_of_accuracies_interval([(20, 40), (5, 20)]))


def test_an_interval_over_seeds_stays_between_0_and_1() -> None:
    found = mean_interval([np.array([[0.0] * 10, [1.0] * 10])])
    assert found is not None
    assert 0.0 <= found[0] < 0.1
    assert 0.9 < found[1] <= 1.0
