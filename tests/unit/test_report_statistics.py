"""Intervals against scipy, statsmodels' published examples and simulation."""

from __future__ import annotations

import math
import random

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
    several = estimate_score([score(0.4, 50), score(0.5, 50), score(0.45, 50)])
    assert several.basis == "seeds"
    assert (several.mean, several.num_seeds, several.num_items) == (pytest.approx(0.45), 3, (50, 50))
    assert several.interval == pytest.approx(t_interval([0.4, 0.5, 0.45]))


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
    assert estimate_score([score(0.0, 10), score(1.0, 10)]).interval == (0.0, 1.0)
