"""Two methods on the same items: the signs of what differs, and the variance of differences item by item.

Items and seeds are both sources of variation, and crossed: every seed answers every item. The variance of the mean over
T tasks of the difference d is

    V = V_items + V_seeds - V_both
    V_items = sum_t var_i(mean_s d_tsi) / n_t / T^2,  V_seeds = var_s(mean_ti d_tsi) / S,
    V_both = sum_t var_si(d_tsi less its means) / (S n_t) / T^2

since what is new in each pair of seed and item is in both of the first two (Cameron, Gelbach and Miller 2011, Journal
of Business and Economic Statistics 29:238-249). Few seeds give a poor V_seeds, often one below V_both; V is therefore
at least half of V_items, and V_seeds is taken as at least a fifth of V_both in the degrees of freedom, which are at
least S - 1. The two shares are ours, chosen by simulation. With one seed V is V_items, which says nothing of seeds,
and the result names what its interval covers.

The p-value is never below that of the signs: where nothing tells the two apart, the sign of each item's difference is a
fair coin, and the sum of the differences, each with its task's weight, has a distribution that is known exactly
whatever the number of items. For one task of one seed that is McNemar's test; it needs six items that differ to reach
0.05. V_items alone knows too little: two items that both became worse have no variance. The interval therefore counts
``1 / T`` of an item won and as much of one lost in each task (Bonett and Price 2012, Journal of Educational and
Behavioral Statistics 37:479-488, who add one of each to one task), of the size of the largest difference there is.
Where no outcome differs, it is the exact bound on how many items could.

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
from harness.report.statistics.signs import sign_p_value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Outcomes = NDArray[np.float64]
    """(num_seeds, num_items) of one task: what each seed's run scored on each item."""

LEAST_VARIANCE = 0.5
"""Share of V_items that V is at least."""
LEAST_SEEDS = 0.2
"""Share of V_both that V_seeds is at least, in the degrees of freedom."""

Test = Literal["McNemar, exact", "signs of items", "paired over items and seeds"]


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
    interval: Interval | None
    """None where no outcome differs, and outcomes have no bounds."""
    test: Test
    effect_size: float | None
    """Cohen's h of the two accuracies; None where an outcome is no right or wrong."""

    def smallest(self, level: float) -> float | None:
        """Return the smallest difference that these items and seeds would have shown at a level; None: none at all.

        Of right and wrong answers none is larger than 1, and the signs of too few items show nothing.
        """
        if 2 * 0.5**self.difference.num_items > level:
            return None
        found = smallest_difference(self.difference.standard_error, self.difference.degrees, level)
        return None if self.effect_size is not None and found > 1 else found


def cohens_h(first: float, second: float) -> float:
    """Return Cohen's h, ``2 asin(sqrt(second)) - 2 asin(sqrt(first))``; 0.2, 0.5, 0.8 are small, medium and large.

    Source: Cohen (1988), Statistical Power Analysis for the Behavioral Sciences, section 6.2.
    """
    from statsmodels.stats.proportion import proportion_effectsize

    return float(proportion_effectsize(second, first))


def paired_difference(tasks: Sequence[Outcomes], *, added: bool = False) -> Difference:
    """Return the mean over tasks of the mean difference, with the variance of items and of seeds.

    Args:
        tasks: Differences of each task, (num_seeds, num_items) with at least one item; the same seeds in each.
        added: With the parts of items won and lost that few items need (see above); the mean stays.
    """
    import numpy as np

    num_seeds, num_items = len(tasks[0]), sum(task.shape[1] for task in tasks)
    assert tasks and all(len(task) == num_seeds and task.shape[1] > 0 for task in tasks)
    by_seed = np.mean([task.mean(axis=1) for task in tasks], axis=0)
    largest = max(float(np.abs(task).max()) for task in tasks)
    if added and largest:
        items = [_added_part(task.mean(axis=0), len(tasks), largest)[0] for task in tasks]
    else:
        items = [_items_part(task.mean(axis=0), len(tasks)) for task in tasks]
    error, degrees = sum_of_variances(items)
    if num_seeds > 1:
        seeds = float(by_seed.var(ddof=1)) / num_seeds
        both = [both_part(task, len(tasks)) for task in tasks]
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
    difference = paired_difference(tasks, added=True)
    binary = all(bool(np.isin(task, (0.0, 1.0)).all()) for task in (*first, *second))
    effect = cohens_h(_mean(first), _mean(second)) if binary else None
    if not any(bool(task.any()) for task in tasks):
        difference = paired_difference(tasks)
        bound = largest_unseen([task.shape[1] for task in tasks], 1 - level)
        interval = (-bound, bound) if binary else None
        return PairResult(difference, 1.0, interval, _name(tasks, binary), effect)
    signs = sign_p_value([task.mean(axis=0) for task in tasks])
    student = _student_p_value(difference) if difference.num_seeds > 1 else 0.0
    bounds = _interval(tasks, difference, level)
    if binary:
        bounds = max(-1.0, bounds[0]), min(1.0, bounds[1])
    return PairResult(difference, max(signs, student), bounds, _name(tasks, binary), effect)


def _name(tasks: Sequence[Outcomes], binary: bool) -> Test:
    if len(tasks[0]) > 1:
        return "paired over items and seeds"
    return "McNemar, exact" if binary and len(tasks) == 1 else "signs of items"


def largest_unseen(num_items: Sequence[int], level: float) -> float:
    """Return the largest mean over tasks of the share of items that differ, where none of the items seen do.

    The mean of the shares ``d_t`` is largest, under ``prod (1 - d_t)^n_t = level``, where ``1 - d_t = min(1, m n_t)``;
    for one task it is ``1 - level^(1/n)`` (Clopper and Pearson 1934, Biometrika 26:404-413), as for equal tasks of so
    many items in all.

    Args:
        num_items: Of each task.
        level: The chance of seeing none of them that is left.
    """
    from scipy.optimize import brentq

    def kept(log_m: float) -> list[float]:
        return [min(0.0, log_m + math.log(n)) for n in num_items]

    def beyond(log_m: float) -> float:
        return sum(n * log for n, log in zip(num_items, kept(log_m), strict=True)) - math.log(level)

    # At the upper end nothing is left out; at the lower one the least task alone is beyond the level.
    log_m = float(brentq(beyond, math.log(level) - math.log(min(num_items)) - 1e-9, -math.log(min(num_items))))
    return sum(1 - math.exp(log) for log in kept(log_m)) / len(num_items)


def _added_part(items: Outcomes, num_tasks: int, largest: float) -> tuple[tuple[float, float], float]:
    """Return a task's variance with its degrees, and its mean, with a part of an item won and of one lost."""
    weight = 1 / num_tasks
    n = len(items) + 2 * weight
    mean = float(items.sum()) / n
    variance = (float((items**2).sum()) + 2 * weight * largest**2) / n - mean**2
    return (variance / n / num_tasks**2, max(1, len(items) - 1)), mean


def _interval(tasks: Sequence[Outcomes], difference: Difference, level: float) -> Interval:
    """Return Student's interval around the mean with parts of items added."""
    import numpy as np
    from scipy.special import stdtrit

    largest = max(float(np.abs(task).max()) for task in tasks)
    centre = sum(_added_part(task.mean(axis=0), len(tasks), largest)[1] for task in tasks) / len(tasks)
    half = float(stdtrit(difference.degrees, 0.5 + level / 2)) * difference.standard_error
    return centre - half, centre + half


def _items_part(items: Outcomes, num_tasks: int) -> tuple[float, float]:
    n = len(items)
    if n < 2:
        return 1.0 / num_tasks**2, 1  # one item: nothing is known of its spread but that outcomes lie in 0 to 1
    return float(items.var(ddof=1)) / n / num_tasks**2, n - 1


def both_part(task: Outcomes, num_tasks: int) -> tuple[float, float]:
    """Return the variance of a task's part in the mean that lies in single pairs of seed and item, and its degrees."""
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


def _student_p_value(difference: Difference) -> float:
    from scipy.special import stdtr

    return 2 * float(stdtr(difference.degrees, -abs(difference.mean) / difference.standard_error))


def _mean(tasks: Sequence[Outcomes]) -> float:
    return sum(float(task.mean()) for task in tasks) / len(tasks)
