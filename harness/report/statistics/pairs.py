"""Two methods on the same items: exact McNemar for one task of one seed, else differences item by item.

Items and seeds are both sources of variation, and crossed: every seed answers every item. The variance of the mean over
T tasks of the difference d is

    V = V_items + V_seeds - V_both
    V_items = sum_t var_i(mean_s d_tsi) / n_t / T^2,  V_seeds = var_s(mean_ti d_tsi) / S,
    V_both = sum_t var_si(d_tsi less its means) / (S n_t) / T^2

since what is new in each pair of seed and item is in both of the first two (Cameron, Gelbach and Miller 2011, Journal
of Business and Economic Statistics 29:238-249). Few seeds give a poor V_seeds, often one below V_both; V is therefore
at least half of V_items, and V_seeds is taken as at least a fifth of V_both in the degrees of freedom, which are at
least S - 1. The two shares are ours, chosen by simulation. V_items is what a bootstrap over items within each task
gives, in closed form. With one seed the bootstrap itself is made; it says nothing of seeds, and the result names what
its interval covers. Seeds are never resampled: there are mostly fewer than ten.

Simulated coverage of the 95% interval, differences that swing by 0 to 10 points from seed to seed: 0.94 to 0.97 with
one seed and with three or more; with two 0.95 to 0.98 up to 2 points, and 0.91 to 0.94 at 5 to 10 points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.report.statistics.family import smallest_difference
from harness.report.statistics.intervals import LEVEL, Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Outcomes = NDArray[np.float64]
    """(num_seeds, num_items) of one task: what each seed's run scored on each item."""

RESAMPLES = 10_000
LEAST_VARIANCE = 0.5
"""Share of V_items that V is at least."""
LEAST_SEEDS = 0.2
"""Share of V_both that V_seeds is at least, in the degrees of freedom."""
SEED = 20_041
"""Of the generator of the resamples: the same outcomes give the same report."""

Test = Literal["McNemar, exact", "paired bootstrap over items", "paired over items and seeds"]


@dataclass(frozen=True)
class Difference:
    """A mean difference, the second less the first, and how well it is known."""

    mean: float
    standard_error: float
    degrees: float
    """Of freedom of the error, by Welch and Satterthwaite."""
    num_items: int
    num_seeds: int

    @property
    def covers(self) -> str:
        """Return which sources of variation are in the error."""
        return "items" if self.num_seeds == 1 else "items and seeds"


@dataclass(frozen=True)
class PairResult:
    """What can be said of two methods on the same items."""

    difference: Difference
    p_value: float
    """Two-sided, before any correction."""
    interval: Interval
    test: Test
    effect_size: float | None
    """Cohen's h of the two accuracies; None where an outcome is no right or wrong."""

    def smallest(self, level: float) -> float:
        """Return the smallest difference that these items and seeds would have shown at a level."""
        return smallest_difference(self.difference.standard_error, self.difference.degrees, level)


def mcnemar_p_value(lost: int, won: int) -> float:
    """Return the exact two-sided p-value of McNemar's test: the smaller count among ``lost + won`` fair coins.

    Args:
        lost: Items that only the first method has right.
        won: Items that only the second has right.

    Source: McNemar (1947), Psychometrika 12:153-157; the exact form as in Fagerland, Lydersen and Laake (2013), BMC
    Medical Research Methodology 13:91.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    return 1.0 if lost + won == 0 else min(1.0, float(mcnemar([[0, lost], [won, 0]], exact=True).pvalue))


def cohens_h(first: float, second: float) -> float:
    """Return Cohen's h, ``2 asin(sqrt(second)) - 2 asin(sqrt(first))``; 0.2, 0.5, 0.8 are small, medium and large.

    Source: Cohen (1988), Statistical Power Analysis for the Behavioral Sciences, section 6.2.
    """
    from statsmodels.stats.proportion import proportion_effectsize

    return float(proportion_effectsize(second, first))


def paired_difference(tasks: Sequence[Outcomes]) -> Difference:
    """Return the mean over tasks of the mean difference, with the variance of items and of seeds.

    Args:
        tasks: Differences of each task, (num_seeds, num_items) with at least one item; the same seeds in each.
    """
    import numpy as np

    num_seeds, num_items = len(tasks[0]), sum(task.shape[1] for task in tasks)
    assert tasks and all(len(task) == num_seeds and task.shape[1] > 0 for task in tasks)
    by_seed = np.mean([task.mean(axis=1) for task in tasks], axis=0)
    items = [_items_part(task.mean(axis=0), len(tasks)) for task in tasks]
    error, degrees = sum_of_variances(items)
    if num_seeds > 1:
        seeds = float(by_seed.var(ddof=1)) / num_seeds
        both = [_both_part(task, len(tasks)) for task in tasks]
        shared = sum(part for part, _ in both)
        variance = max(LEAST_VARIANCE * error**2, error**2 + seeds - shared)
        if variance > 0:
            parts = [*items, *both, (max(seeds, LEAST_SEEDS * shared), num_seeds - 1)]
            degrees = max(num_seeds - 1, variance**2 / sum(part**2 / freedom for part, freedom in parts))
        error = math.sqrt(variance)
    return Difference(float(by_seed.mean()), error, degrees, num_items, num_seeds)


def compare_methods(first: Sequence[Outcomes], second: Sequence[Outcomes], level: float = LEVEL) -> PairResult:
    """Return how the second method differs from the first on the same items and seeds.

    Args:
        first: Outcomes of each task, (num_seeds, num_items).
        second: The same shapes.
        level: Of the interval.
    """
    import numpy as np

    assert [task.shape for task in first] == [task.shape for task in second]
    tasks = [b - a for a, b in zip(first, second, strict=True)]
    difference = paired_difference(tasks)
    binary = all(bool(np.isin(task, (0.0, 1.0)).all()) for task in (*first, *second))
    effect = cohens_h(_mean(first), _mean(second)) if binary else None
    if difference.num_seeds > 1:
        p_value, interval = _student(difference, level)
        return PairResult(difference, p_value, interval, "paired over items and seeds", effect)
    resampled = resampled_means([task[0] for task in tasks])
    low, high = (float(np.quantile(resampled, share)) for share in ((1 - level) / 2, (1 + level) / 2))
    test: Test = "paired bootstrap over items"
    if binary and len(tasks) == 1:
        p_value = mcnemar_p_value(int((tasks[0] < 0).sum()), int((tasks[0] > 0).sum()))
        test = "McNemar, exact"
    else:
        farther = np.abs(resampled - difference.mean) >= abs(difference.mean) - 1e-12
        p_value = (1 + int(farther.sum())) / (1 + len(resampled))
    return PairResult(difference, p_value, (low, high), test, effect)


def resampled_means(tasks: Sequence[NDArray[np.float64]], resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Return bootstrap means over tasks, (resamples,), the items of each task drawn again within it.

    Args:
        tasks: (num_items,) of each task.
        resamples: How many.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 8.3.
    """
    import numpy as np

    draw = np.random.default_rng(SEED)
    total = np.zeros(resamples)
    for items in tasks:
        # Drawing items is drawing how often each distinct value comes.
        values, counts = np.unique(items, return_counts=True)
        total += draw.multinomial(len(items), counts / len(items), size=resamples) @ values / len(items)
    return total / len(tasks)


def _items_part(items: Outcomes, num_tasks: int) -> tuple[float, float]:
    n = len(items)
    if n < 2:
        return 1.0 / num_tasks**2, 1  # one item: nothing is known of its spread but that outcomes lie in 0 to 1
    return float(items.var(ddof=1)) / n / num_tasks**2, n - 1


def _both_part(task: Outcomes, num_tasks: int) -> tuple[float, float]:
    """Return the variance of a task's part in the mean that lies in single pairs of seed and item."""
    num_seeds, n = task.shape
    if n < 2:
        return 0.0, num_seeds - 1
    rest = task - task.mean(axis=0) - task.mean(axis=1)[:, None] + task.mean()
    degrees = (num_seeds - 1) * (n - 1)
    return float((rest**2).sum()) / (degrees * num_seeds * n) / num_tasks**2, degrees


def sum_of_variances(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the standard error of a sum of independent parts (variance, degrees) and its degrees of freedom.

    ``(sum V)^2 / sum(V^2 / f)``. Source: Welch (1947), Biometrika 34:28-35.
    """
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0, max(degrees for _, degrees in parts)
    return math.sqrt(variance), variance**2 / sum(part**2 / degrees for part, degrees in parts)


def _student(difference: Difference, level: float) -> tuple[float, Interval]:
    from scipy.special import stdtr, stdtrit

    error, degrees, mean = difference.standard_error, difference.degrees, difference.mean
    half = float(stdtrit(degrees, 0.5 + level / 2)) * error
    if error == 0:
        return (1.0 if mean == 0 else 0.0), (mean, mean)
    return 2 * float(stdtr(degrees, -abs(mean) / error)), (mean - half, mean + half)


def _mean(tasks: Sequence[Outcomes]) -> float:
    return sum(float(task.mean()) for task in tasks) / len(tasks)
