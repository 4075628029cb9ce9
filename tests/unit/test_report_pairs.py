"""Tests between two methods on the same items against scipy, published examples and designs with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.report.statistics.pairs import (
    cohens_h,
    compare_methods,
    mcnemar_p_value,
    paired_difference,
    resampled_means,
)


def outcomes(draw: np.random.Generator, p: float, num_seeds: int, n: int) -> np.ndarray:
    return (draw.random((num_seeds, n)) < p).astype(float)


def test_mcnemar_gives_a_published_example() -> None:
    """Fagerland, Lydersen and Laake (2013), airway reactivity before and after transplantation."""
    assert mcnemar_p_value(1, 7) == pytest.approx(0.0703, abs=5e-5)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 5), (3, 3), (12, 30), (150, 86)])
def test_mcnemar_is_scipys_binomial_test(lost: int, won: int) -> None:
    expected = 1.0 if lost + won == 0 else stats.binomtest(min(lost, won), lost + won).pvalue
    assert mcnemar_p_value(lost, won) == pytest.approx(expected, abs=1e-12)


def test_cohens_h_gives_cohens_example() -> None:
    """Cohen (1988), section 6.2: accuracies of 0.40 and 0.50 differ by h = 0.20; so do 0.05 and 0.10."""
    assert cohens_h(0.40, 0.50) == pytest.approx(0.20, abs=0.005)
    assert cohens_h(0.05, 0.10) == pytest.approx(0.19, abs=0.005)


def test_one_seed_and_task_is_the_paired_t_test_of_scipy() -> None:
    draw = np.random.default_rng(1)
    first, second = outcomes(draw, 0.5, 1, 60), outcomes(draw, 0.7, 1, 60)
    found = paired_difference([second - first])
    expected = stats.ttest_rel(second[0], first[0])
    assert found.mean / found.standard_error == pytest.approx(expected.statistic)
    assert found.degrees == expected.df
    assert found.covers == "items"


def test_the_variances_of_tasks_add_as_in_welchs_test() -> None:
    draw = np.random.default_rng(2)
    small, large = draw.normal(size=(1, 8)), draw.normal(2.0, 3.0, size=(1, 30))
    found = paired_difference([small, -large])
    expected = stats.ttest_ind(small[0], large[0], equal_var=False)  # twice the mean of one task less the other
    assert found.mean / found.standard_error == pytest.approx(expected.statistic)
    assert found.degrees == pytest.approx(expected.df)


def test_seeds_that_differ_widen_the_error_beyond_that_of_items() -> None:
    items = np.tile([0.0, 1.0, 0.0, 1.0], 25)
    same, moved = np.array([items, items, items]), np.array([items - 0.2, items, items + 0.2])
    alone, both = paired_difference([same]), paired_difference([moved])
    assert alone.standard_error == pytest.approx(items.std(ddof=1) / 10)
    assert both.standard_error**2 == pytest.approx(alone.standard_error**2 + 0.2**2 / 3)
    assert both.degrees < alone.degrees
    assert both.covers == "items and seeds"


def test_the_bootstrap_over_items_is_scipys() -> None:
    draw = np.random.default_rng(3)
    difference = draw.normal(0.3, 1.0, size=(1, 40))
    ours = np.quantile(resampled_means([difference[0]]), [0.025, 0.975])
    theirs = stats.bootstrap(
        (difference[0],), np.mean, n_resamples=10_000, method="percentile", random_state=4
    ).confidence_interval
    assert ours == pytest.approx([theirs.low, theirs.high], abs=0.02)


def test_items_are_drawn_within_their_task() -> None:
    first, second = np.zeros(5), np.ones(500)
    assert set(resampled_means([first, second])) == {0.5}


def test_what_is_new_in_each_pair_of_seed_and_item_is_counted_once() -> None:
    """Against the mean squares of a two-way table without repetition (Snedecor and Cochran, Statistical Methods)."""
    draw = np.random.default_rng(7)
    d = draw.normal(size=(4, 50)) + 0.3 * np.arange(4)[:, None] + draw.normal(size=50)
    rows, columns = d.mean(axis=1), d.mean(axis=0)
    of_seeds = 50 * ((rows - d.mean()) ** 2).sum() / 3
    of_items = 4 * ((columns - d.mean()) ** 2).sum() / 49
    of_both = ((d - rows[:, None] - columns + d.mean()) ** 2).sum() / (3 * 49)
    assert paired_difference([d]).standard_error ** 2 == pytest.approx((of_seeds + of_items - of_both) / 200)


@pytest.mark.parametrize(
    ("num_seeds", "num_tasks", "test"),
    [
        (1, 1, "McNemar, exact"),
        (1, 3, "paired bootstrap over items"),
        (3, 1, "paired over items and seeds"),
        (3, 3, "paired over items and seeds"),
        (12, 2, "paired over items and seeds"),
    ],
)
def test_the_test_follows_what_there_is(num_seeds: int, num_tasks: int, test: str) -> None:
    draw = np.random.default_rng(5)
    first = [outcomes(draw, 0.4, num_seeds, 50) for _ in range(num_tasks)]
    second = [outcomes(draw, 0.8, num_seeds, 50) for _ in range(num_tasks)]
    found = compare_methods(first, second)
    assert found.test == test
    assert found.p_value < 0.01
    assert found.interval[0] < found.difference.mean < found.interval[1]
    assert found.interval[0] > 0
    assert found.effect_size == pytest.approx(
        cohens_h(np.mean([task.mean() for task in first]), np.mean([task.mean() for task in second]))
    )
    assert 0 < found.smallest(0.05) < found.smallest(0.001)


def test_equal_outcomes_differ_by_nothing() -> None:
    same = [np.array([[0.0, 1.0, 1.0, 0.0]])]
    found = compare_methods(same, same)
    assert (found.difference.mean, found.p_value, found.interval) == (0.0, 1.0, (0.0, 0.0))


def test_points_have_no_effect_size_of_accuracies() -> None:
    assert compare_methods([np.array([[4.0, 7.0, 5.0]])], [np.array([[5.0, 7.5, 9.0]])]).effect_size is None


def test_the_same_outcomes_give_the_same_p_value() -> None:
    draw = np.random.default_rng(6)
    tasks = [outcomes(draw, 0.5, 1, 30) for _ in range(4)]
    others = [outcomes(draw, 0.6, 1, 30) for _ in range(4)]
    assert compare_methods(tasks, others) == compare_methods(tasks, others)
