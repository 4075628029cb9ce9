"""Two methods on the same items: exact McNemar for one task of one seed, else differences item by item.

Items and seeds are both sources of variation, and crossed: every seed answers every item. The variance of the mean
difference is taken as the sum of what the items and what the seeds contribute,

    V = sum_tasks var_items(d_t) / n_t / T^2  +  var_seeds(D_s) / S,

which counts their interaction twice and so errs towards caution (Owen 2007, Annals of Applied Statistics 1:386-411, on
the pigeonhole bootstrap). The seeds' part is Student's, since a bootstrap over fewer than ten is not one; from ten
on both are resampled. One seed says nothing of seeds: the basis names what an interval covers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.report.statistics import LEVEL, Interval
from harness.report.statistics_family import smallest_difference

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Outcomes = NDArray[np.float64]
    """(num_seeds, num_items) of one task: what each seed's run scored on each item."""

SEEDS_TO_RESAMPLE = 10
RESAMPLES = 10_000
SEED = 20_041
"""Of the generator of the resamples: the same outcomes give the same report."""

Test = Literal["McNemar, exact", "paired bootstrap over items", "paired over items and seeds", "paired bootstrap, both"]


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
    parts = [_items_part(task.mean(axis=0), len(tasks)) for task in tasks]
    if num_seeds > 1:
        parts.append((float(by_seed.var(ddof=1)) / num_seeds, num_seeds - 1))
    return Difference(float(by_seed.mean()), *sum_of_variances(parts), num_items, num_seeds)


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
    if 1 < difference.num_seeds < SEEDS_TO_RESAMPLE:
        p_value, interval = _student(difference, level)
        return PairResult(difference, p_value, interval, "paired over items and seeds", effect)
    resampled = resampled_means(tasks)
    low, high = (float(np.quantile(resampled, share)) for share in ((1 - level) / 2, (1 + level) / 2))
    test: Test = "paired bootstrap over items" if difference.num_seeds == 1 else "paired bootstrap, both"
    if binary and len(tasks) == 1 and difference.num_seeds == 1:
        p_value = mcnemar_p_value(int((tasks[0] < 0).sum()), int((tasks[0] > 0).sum()))
        test = "McNemar, exact"
    else:
        farther = np.abs(resampled - difference.mean) >= abs(difference.mean) - 1e-12
        p_value = (1 + int(farther.sum())) / (1 + len(resampled))
    return PairResult(difference, p_value, (low, high), test, effect)


def resampled_means(tasks: Sequence[Outcomes], resamples: int = RESAMPLES) -> Outcomes:
    """Return bootstrap means over tasks, (resamples,): items drawn again within each task, seeds too from ten on.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 8.3 (strata); both sources at once as
    in Owen (2007), cited above.
    """
    import numpy as np

    draw = np.random.default_rng(SEED)
    num_seeds = len(tasks[0])
    if num_seeds < SEEDS_TO_RESAMPLE:
        total = np.zeros(resamples)
        for task in tasks:
            # Drawing items is drawing how often each distinct value comes.
            values, counts = np.unique(task.mean(axis=0), return_counts=True)
            n = int(counts.sum())
            total += draw.multinomial(n, counts / n, size=resamples) @ values / n
        return total / len(tasks)
    means = np.empty(resamples)
    for i in range(resamples):
        weights = draw.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds)) / num_seeds
        means[i] = np.mean(
            [(weights @ task)[draw.integers(task.shape[1], size=task.shape[1])].mean() for task in tasks]
        )
    return means


def _items_part(items: Outcomes, num_tasks: int) -> tuple[float, float]:
    n = len(items)
    if n < 2:
        return 1.0 / num_tasks**2, 1  # one item: nothing is known of its spread but that outcomes lie in 0 to 1
    return float(items.var(ddof=1)) / n / num_tasks**2, n - 1


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
