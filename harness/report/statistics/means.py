"""The interval of a mean accuracy over items and seeds: Wilson's, at as many items as items and seeds are worth.

Seeds answer the same items, so that three seeds that agree know no more than one: a spread over seeds alone gives them
an interval of no width, and n times S items one that is too narrow. The variance V of the mean is that of
``harness.report.statistics.pairs``, of the outcomes of one label in place of the differences of two. Each task counts
with an item more, half of it right and half wrong, so that a task that is all right has a variance too:

    q = (sum_i m_i + 1/2) / (n + 1),  V_items = ((sum_i m_i^2 + 1/2) / (n + 1) - q^2) / n,  m_i: an item's mean over
    seeds.

One task gets Wilson's interval at ``q (1 - q) / V`` items; with one seed these are just the n there are. A mean over
several tasks gets the symmetric interval, with one seed the normal one. With several seeds the quantile is Student's,
by Welch's degrees of freedom, to which the items' binomial part adds nothing, as with one seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.report.statistics.intervals import LEVEL, Interval, normal_quantile, student_quantile, wilson
from harness.report.statistics.pairs import LEAST_SEEDS, LEAST_VARIANCE, both_part, paired_difference

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Outcomes = NDArray[np.float64]


def mean_interval(tasks: Sequence[Outcomes], level: float = LEVEL) -> Interval | None:
    """Return the interval of the unweighted mean over tasks, for other items and other seeds; None: nothing is known.

    Args:
        tasks: Outcomes of each task, (num_seeds, num_items), the same seeds in each; right or wrong as 1 or 0, or any
            number, as points.
        level: Of the interval.
    """
    import numpy as np

    if not all(bool(np.isin(task, (0.0, 1.0)).all()) for task in tasks):
        return _of_points(tasks, level)
    num_seeds = len(tasks[0])
    shares, parts = zip(*(_items_part(task.mean(axis=0)) for task in tasks), strict=True)
    items = sum(parts) / len(tasks) ** 2
    variance, degrees = items, math.inf
    by_seed = np.mean([task.mean(axis=1) for task in tasks], axis=0)
    if num_seeds > 1:
        seeds = float(by_seed.var(ddof=1)) / num_seeds
        both = [both_part(task, len(tasks)) for task in tasks]
        shared = sum(part for part, _ in both)
        variance = max(LEAST_VARIANCE * items, items + seeds - shared)
        inexact = [*both, (max(seeds, LEAST_SEEDS * shared), num_seeds - 1)]
        squares = sum(part**2 / freedom for part, freedom in inexact)
        degrees = max(num_seeds - 1, variance**2 / squares) if squares else math.inf
    quantile = student_quantile(degrees, level) if math.isfinite(degrees) else normal_quantile(level)
    mean = float(by_seed.mean())
    if len(tasks) == 1:
        return wilson(mean, shares[0] * (1 - shares[0]) / variance, quantile)
    half = quantile * math.sqrt(variance)
    return max(0.0, mean - half), min(1.0, mean + half)


def _items_part(means: Outcomes) -> tuple[float, float]:
    """Return a task's share of right answers and the variance of its mean, both with half an item right and wrong."""
    n = len(means)
    share = (float(means.sum()) + 0.5) / (n + 1)
    return share, ((float((means**2).sum()) + 0.5) / (n + 1) - share**2) / n


def _of_points(tasks: Sequence[Outcomes], level: float) -> Interval | None:
    """Return Student's interval by the variance of pairs; None where no outcome differs from another of its task."""
    found = paired_difference(tasks)
    if found.standard_error == 0 or any(task.shape[1] < 2 for task in tasks):
        return None
    half = student_quantile(found.degrees, level) * found.standard_error
    return found.mean - half, found.mean + half
