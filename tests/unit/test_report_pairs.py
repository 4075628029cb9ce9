"""Tests between two methods on the same items against scipy, published examples and designs with a known answer."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from harness.report.statistics.pairs import cohens_h, compare_methods, largest_unseen, paired_difference
from harness.report.statistics.signs import p_not_above, p_unpaired, sign_p_value


def outcomes(draw: np.random.Generator, p: float, num_seeds: int, n: int) -> np.ndarray:
    return (draw.random((num_seeds, n)) < p).astype(float)


def test_the_signs_give_mcnemars_published_example() -> None:
    """Fagerland, Lydersen and Laake (2013), airway reactivity before and after transplantation."""
    assert sign_p_value([np.array([1.0] * 7 + [-1.0] + [0.0] * 13)]) == pytest.approx(0.0703, abs=5e-5)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 5), (3, 3), (12, 30), (150, 86), (7000, 7300)])
def test_the_signs_of_one_task_are_scipys_binomial_test(lost: int, won: int) -> None:
    expected = 1.0 if lost + won == 0 else stats.binomtest(min(lost, won), lost + won).pvalue
    assert sign_p_value([np.array([-1.0] * lost + [1.0] * won + [0.0] * 4)]) == pytest.approx(expected, abs=1e-9)


def test_the_signs_of_several_tasks_weigh_as_in_the_average() -> None:
    """Against every one of the 2^6 signs."""
    tasks = [np.array([1.0, 1.0, -1.0, 0.0]), np.array([1.0, 0.0]), np.array([2.0, -0.5, 0.0])]
    parts = np.concatenate([task / len(task) for task in tasks])
    signs = np.array(list(itertools.product((-1, 1), repeat=len(parts))))
    expected = float((signs @ np.abs(parts) >= parts.sum() - 1e-12).mean())
    assert p_not_above(tasks) == pytest.approx(expected)
    assert sign_p_value(tasks) == pytest.approx(2 * expected)


def test_many_signs_are_nearly_normal() -> None:
    draw = np.random.default_rng(8)
    tasks = [draw.normal(0.1, 1.0, size=40), draw.normal(0.1, 1.0, size=30)]
    parts = np.concatenate([task / len(task) for task in tasks])
    flipped = draw.choice([-1.0, 1.0], size=(100_000, len(parts))) @ np.abs(parts)
    assert p_not_above(tasks) == pytest.approx(float((flipped >= parts.sum()).mean()), abs=0.005)


@pytest.mark.parametrize(("counts", "alternative"), [((5, 8, 1, 9), "greater"), ((20, 20, 14, 20), "greater")])
def test_answers_dealt_anew_are_fishers_exact_test(counts: tuple[int, int, int, int], alternative: str) -> None:
    x, n, y, m = counts
    expected = stats.fisher_exact([[x, n - x], [y, m - y]], alternative=alternative).pvalue
    assert p_unpaired([counts]) == pytest.approx(expected)


@pytest.mark.parametrize("num_items", [[30], [5, 5], [2, 50], [1, 3, 8]])
def test_the_bound_without_a_differing_item_is_the_largest_there_can_be(num_items: list[int]) -> None:
    """Against a search over the tasks' shares whose chance of showing nothing is at least 5%."""
    bound = largest_unseen(num_items, 0.05)
    if len(set(num_items)) == 1:
        assert bound == pytest.approx(1 - 0.05 ** (1 / sum(num_items)))
    draw = np.random.default_rng(9)
    exponents = draw.dirichlet(np.ones(len(num_items)), size=50_000) * -math.log(0.05) / np.array(num_items)
    searched = (1 - np.exp(-exponents)).mean(axis=1).max()
    assert searched <= bound + 1e-9
    assert searched == pytest.approx(bound, abs=0.02)


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
        (1, 3, "signs of items"),
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
    assert (found.difference.mean, found.p_value) == (0.0, 1.0)
    assert found.interval == pytest.approx((-(1 - 0.05**0.25), 1 - 0.05**0.25))
    points = [np.array([[4.0, 7.0]])]
    assert compare_methods(points, points).interval is None


@pytest.mark.parametrize("tasks", [1, 2, 8])
def test_one_item_that_differs_tells_nothing_apart(tasks: int) -> None:
    first = [np.array([[1.0]]) for _ in range(tasks)]
    second = [np.array([[0.0]]), *(np.array([[1.0]]) for _ in range(tasks - 1))]
    found = compare_methods(first, second)
    assert found.p_value == 1.0
    assert found.interval is not None
    assert found.interval[0] <= found.difference.mean < 0 < found.interval[1]
    assert (found.smallest(0.05) is None) == (tasks < 6)  # the signs of five items reach 0.0625


def test_points_have_no_effect_size_of_accuracies() -> None:
    assert compare_methods([np.array([[4.0, 7.0, 5.0]])], [np.array([[5.0, 7.5, 9.0]])]).effect_size is None


def test_the_same_outcomes_give_the_same_p_value() -> None:
    draw = np.random.default_rng(6)
    tasks = [outcomes(draw, 0.5, 1, 30) for _ in range(4)]
    others = [outcomes(draw, 0.6, 1, 30) for _ in range(4)]
    assert compare_methods(tasks, others) == compare_methods(tasks, others)


@pytest.mark.parametrize("num_items", [1, 2, 3, 8])
def test_alike_labels_are_seldom_told_apart_by_few_items(num_items: int) -> None:
    """A small one of the long simulation: eight tasks; by trial 71% of single items and 16% of pairs were."""
    draw = np.random.default_rng(num_items)
    apart = 0
    for _ in range(300):
        first, second = (list((draw.random((8, 1, num_items)) < 0.6).astype(float)) for _ in range(2))
        apart += compare_methods(first, second).p_value <= 0.05
    assert apart / 300 <= 0.08
