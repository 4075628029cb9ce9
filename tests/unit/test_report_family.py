"""Holm's correction, groups and power against statsmodels, brute force and definitions."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from harness.report.statistics.family import holm, indistinct_groups, letters_of, smallest_difference


def test_holm_gives_a_worked_example() -> None:
    """R's documentation of p.adjust and most textbooks work with such a list; the order given is kept."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@pytest.mark.parametrize("n", [1, 2, 7, 48])
def test_holm_is_statsmodels(n: int) -> None:
    draw = random.Random(n)
    p_values = [draw.random() ** 4 for _ in range(n)]
    expected = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(list(expected), abs=1e-12)


def test_weighted_holm_is_the_closure_of_weighted_bonferroni() -> None:
    draw = random.Random(3)
    for _ in range(50):
        p_values = [draw.random() ** 3 for _ in range(5)]
        weights = [draw.choice([0.2, 1.0, 3.0]) for _ in range(5)]
        for i, adjusted in enumerate(holm(p_values, weights)):
            subsets = [s for r in range(1, 6) for s in itertools.combinations(range(5), r) if i in s]
            closed = max(min(1.0, *(p_values[j] * sum(weights[k] for k in s) / weights[j] for j in s)) for s in subsets)
            assert adjusted == pytest.approx(closed, abs=1e-12)


def test_two_labels_share_a_letter_only_if_they_are_not_told_apart() -> None:
    labels = ["a", "b", "c", "d", "e", "f"]
    draw = random.Random(5)
    for _ in range(100):
        apart = {frozenset(pair) for pair in itertools.combinations(labels, 2) if draw.random() < 0.4}
        groups = indistinct_groups(labels, apart)
        for pair in itertools.combinations(labels, 2):
            together = any(set(pair) <= set(group) for group in groups)
            assert together == (frozenset(pair) not in apart)
        assert not any(set(one) < set(other) for one in groups for other in groups)


def test_letters_do_not_rank_what_overlaps() -> None:
    assert letters_of(["a", "b", "c"], {frozenset("ac")}) == {"a": "a", "b": "ab", "c": "b"}
    assert letters_of(["a", "b"], set()) == {"a": "a", "b": "a"}


@pytest.mark.parametrize(("n", "level", "power"), [(5, 0.05, 0.8), (40, 0.05, 0.9), (500, 0.001, 0.8)])
@pytest.mark.parametrize("sides", [1, 2])
def test_the_smallest_difference_is_what_statsmodels_solves_for(n: int, level: float, power: float, sides: int) -> None:
    alternative = "two-sided" if sides == 2 else "larger"
    expected = TTestPower().solve_power(nobs=n, alpha=level, power=power, alternative=alternative)
    assert smallest_difference(1 / math.sqrt(n), n - 1, level, power, sides=sides) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("degrees", [1.0, 1.7, 4.0, 48.5, 300.0, 20000.0])
@pytest.mark.parametrize("level", [0.05, 1e-3, 1e-5])
def test_the_smallest_difference_is_found_for_any_degrees_of_freedom(degrees: float, level: float) -> None:
    found = smallest_difference(1.0, degrees, level)
    assert smallest_difference(1.0, math.inf, level) - 1e-3 <= found < math.inf


def test_a_known_error_needs_no_t() -> None:
    assert smallest_difference(2.0, math.inf, 0.05) == pytest.approx(2.0 * (1.959964 + 0.841621), abs=1e-5)
