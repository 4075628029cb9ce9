"""One-sided tests beyond a tolerance against statsmodels and scipy; moderated variances against their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, special, stats
from statsmodels.stats.weightstats import ttest_ind

from harness.report.statistics.changes import inverse_trigamma, log_changes, moderate


@pytest.mark.parametrize(("num_old", "num_new"), [(5, 5), (2, 7), (12, 3)])
@pytest.mark.parametrize("tolerance", [0.0, 0.02])
def test_one_cell_is_statsmodels_t_test_with_a_margin(num_old: int, num_new: int, tolerance: float) -> None:
    draw = np.random.default_rng(num_old)
    old, new = draw.lognormal(0.0, 0.01, num_old), draw.lognormal(0.03, 0.01, num_new)
    (change,) = log_changes([(old, new)])
    _, expected, degrees = ttest_ind(np.log(new), np.log(old), alternative="larger", value=math.log1p(tolerance))
    assert change.p_beyond(math.log1p(tolerance)) == pytest.approx(expected, abs=1e-12)
    assert change.degrees == degrees
    assert change.reversed().p_beyond(0.0) == pytest.approx(1 - change.p_beyond(0.0))


def test_a_paired_cell_is_scipys_paired_t_test() -> None:
    draw = np.random.default_rng(3)
    by_seed = draw.lognormal(0.0, 0.3, 6)
    old, new = by_seed * draw.lognormal(0.0, 0.01, 6), by_seed * draw.lognormal(0.03, 0.01, 6)
    (change,) = log_changes([(old, new)], paired={0})
    expected = stats.ttest_rel(np.log(new), np.log(old), alternative="greater")
    assert change.p_beyond(0.0) == pytest.approx(expected.pvalue, rel=1e-9)
    assert change.degrees == expected.df


def test_a_ratio_counts_whatever_the_unit() -> None:
    draw = np.random.default_rng(1)
    cells = [(draw.lognormal(0, 0.02, 5), draw.lognormal(0, 0.02, 5)) for _ in range(4)]
    scaled = [(1e9 * old, 1e9 * new) for old, new in cells]
    for one, other in zip(log_changes(cells), log_changes(scaled), strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-9)
        assert one.standard_error == pytest.approx(other.standard_error)


def test_values_that_repeat_have_no_error_and_touch_no_other_cell() -> None:
    noisy = [([1.0, 1.01, 0.99], [1.0, 1.02, 0.98]), ([2.0, 2.02, 1.98], [2.0, 2.01, 1.99])]
    exact, *others = log_changes([([3.3, 3.3], [3.4, 3.4]), *noisy])
    assert exact.is_exact
    assert others == log_changes(noisy)


@pytest.mark.parametrize("value", [1e-6, 0.01, 0.3, 1.0, 7.0, 1e4])
def test_the_inverse_of_the_trigamma_function_is_the_root_that_scipy_finds(value: float) -> None:
    root = optimize.brentq(lambda x: float(special.polygamma(1, x)) - value, 1e-6, 1e8, xtol=1e-14, rtol=1e-13)
    assert inverse_trigamma(value) == pytest.approx(root, rel=1e-8)


def test_variances_that_agree_are_pooled() -> None:
    variances, degrees = [1.0, 1.1, 0.9, 1.05], [8.0, 8.0, 4.0, 6.0]
    pooled = sum(v * d for v, d in zip(variances, degrees, strict=True)) / 26
    assert moderate(variances, degrees) == [(pytest.approx(pooled), 26.0)] * 4


def test_fewer_than_three_are_left_as_they_are() -> None:
    assert moderate([1.0, 9.0], [8.0, 4.0]) == [(1.0, 8.0), (9.0, 4.0)]


def test_variances_that_differ_are_drawn_by_as_much_as_their_prior_says() -> None:
    """Drawn from Smyth's own model: s0^2 = 4 with d0 = 6 degrees, then chi-square with 8."""
    draw = np.random.default_rng(2)
    true = 6 * 4.0 / draw.chisquare(6, 20_000)
    observed = true * draw.chisquare(8, 20_000) / 8
    moderated = np.array(moderate(list(observed), [8.0] * len(observed)))
    assert moderated[:, 1] == pytest.approx(14.0, rel=0.05)
    assert moderated[:, 0] == pytest.approx((6 * 4.0 + 8 * observed) / 14, rel=0.05)


def test_moderated_t_values_are_distributed_as_t_with_the_degrees_stated() -> None:
    draw = np.random.default_rng(3)
    true = 6 * 1e-4 / draw.chisquare(6, 4000)
    noise = np.sqrt(true)[:, None]
    cells = list(
        zip(np.exp(noise * draw.normal(size=(4000, 5))), np.exp(noise * draw.normal(size=(4000, 5))), strict=True)
    )
    p_values = [change.p_beyond(0.0) for change in log_changes(cells)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
