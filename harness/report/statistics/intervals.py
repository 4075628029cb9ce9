"""Intervals for one accuracy, for a mean over tasks and for a mean over seeds, at the level 95%.

Two sources of variation: the items of a task and the seeds. With one run the interval covers the items, with several
both, from the outcomes item by item (``harness.report.statistics.means``); an estimate says which, and without the
outcomes several runs have none. Comparisons between methods are not made here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from harness.record import Score

LEVEL = 0.95
NORMAL_AT_LEVEL = 1.959963984540054
"""Quantile of the normal distribution at 0.975, as scipy.special.ndtri gives it: scipy takes longer to import than all
else that a table of single runs needs."""
WHOLE = 1e-6
"""How far value x n may be from a whole number for the value to count as a share of right answers."""

Interval = tuple[float, float]
Basis = Literal["items", "items and seeds", "none"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval."""

    mean: float
    interval: Interval | None
    basis: Basis
    """The items of one run are covered, or items and seeds of several; ``none`` where no interval can be had."""
    num_items: tuple[int, int]
    """Smallest and largest number of items behind one seed's value, over all its tasks."""
    num_seeds: int


def wilson_interval(successes: int, n: int, level: float = LEVEL) -> Interval:
    """Return the Wilson score interval of a proportion, without continuity correction.

    ``(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`` with ``p = successes/n``.

    Source: Wilson (1927), Journal of the American Statistical Association 22:209-212; method 3 of Newcombe (1998),
    Statistics in Medicine 17:857-872.
    """
    assert 0 <= successes <= n and n > 0
    return wilson(successes / n, n, normal_quantile(level))


def wilson(p: float, n: float, z: float) -> Interval:
    """Return the same of a proportion ``p`` that is known as well as from ``n`` items, at the quantile ``z``."""
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if p == 0 else (centre - half) / scale
    high = 1.0 if p == 1 else (centre + half) / scale
    return low, high


def mean_of_accuracies_interval(counts: Sequence[tuple[int, int]], level: float = LEVEL) -> Interval:
    """Return the normal interval of the unweighted mean of independent accuracies, cut at 0 and 1.

    ``mean(x/n) -+ z sqrt(sum(q(1-q)/n)) / len(counts)``. The variance is taken at ``q = (x + 1/2) / (n + 1)``, the mean
    of the Jeffreys posterior, and not at ``x/n``: a task that is all right or all wrong would add no variance, and with
    few items the interval would have no width. Simulated coverage over eight tasks: 0.93 to 0.997 from one item a task,
    where ``x/n`` gives 0 to 0.95.

    Args:
        counts: Right answers and items of each task.
        level: Of the interval.
    """
    assert counts
    variance = 0.0
    for successes, n in counts:
        q = (successes + 0.5) / (n + 1)
        variance += q * (1 - q) / n
    mean = fmean(successes / n for successes, n in counts)
    half = normal_quantile(level) * math.sqrt(variance) / len(counts)
    return max(0.0, mean - half), min(1.0, mean + half)


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Return Student's interval of the mean of two values or more: ``mean -+ t s / sqrt(n)``, t with n - 1 degrees."""
    n = len(values)
    assert n > 1
    mean = fmean(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = student_quantile(n - 1, level) * deviation / math.sqrt(n)
    return mean - half, mean + half


def mean_value(scores: Iterable[Score]) -> float:
    """Return the unweighted mean of some scores."""
    return fmean(score.value for score in scores)


def estimate_score(scores: Sequence[Score], by_item: Interval | None = None) -> Estimate:
    """Return the mean of one metric over seeds: one score a seed, all of the same task and metric.

    One seed: Wilson's interval where the value is a share of right answers, else normal from the recorded standard
    error. Several: that of items and seeds.

    Args:
        scores: One a seed.
        by_item: ``mean_interval`` of their outcomes; None: these are not known.
    """
    return estimate_average([[score] for score in scores], by_item)


def estimate_average(runs: Sequence[Sequence[Score]], by_item: Interval | None = None) -> Estimate:
    """Return the unweighted mean over tasks, averaged over seeds.

    Args:
        runs: For each seed the scores that enter the mean, one a task, the same tasks for every seed.
        by_item: ``mean_interval`` of their outcomes; None: these are not known.
    """
    assert runs and all(len(run) == len(runs[0]) for run in runs)
    number = len(runs[0])
    if number == 1:  # as below; of many runs the sums of one take long
        values, items = [run[0].value for run in runs], [run[0].n for run in runs]
    else:
        values = [math.fsum([score.value for score in run]) / number for run in runs]
        items = [sum([score.n for score in run]) for run in runs]
    counted = _items_interval(runs[0]) if len(runs) == 1 else None
    interval = by_item if counted is None else counted
    covered: Basis = "items" if len(runs) == 1 else "items and seeds"
    basis: Basis = "none" if interval is None else covered
    return Estimate(fmean(values), interval, basis, (min(items), max(items)), len(runs))


def _items_interval(scores: Sequence[Score]) -> Interval | None:
    """Return the interval of one run; None where a score has neither counts nor a standard error of single items.

    The error that a group of tasks is recorded with is of lm-eval's making, and is not taken.
    """
    counts = [_counts(score) for score in scores]
    whole = [count for count in counts if count is not None]
    if len(whole) == len(scores):
        return wilson_interval(*whole[0]) if len(whole) == 1 else mean_of_accuracies_interval(whole)
    errors = [
        score.stderr
        for score in scores
        if score.stderr is not None and math.isfinite(score.stderr) and not score.subtasks
    ]
    if len(errors) < len(scores):
        return None
    mean = mean_value(scores)
    half = normal_quantile(LEVEL) * math.sqrt(sum(error * error for error in errors)) / len(scores)
    return mean - half, mean + half


def _counts(score: Score) -> tuple[int, int] | None:
    """Return right answers and items, or None for a score that is no share of right answers."""
    if not score.is_fraction or score.n < 1 or not 0 <= score.value <= 1:
        return None
    successes = round(score.value * score.n)
    if abs(score.value * score.n - successes) > WHOLE * score.n:
        return None
    return successes, score.n


def normal_quantile(level: float) -> float:
    """Return how many standard deviations to either side hold the share ``level`` of a normal distribution."""
    assert 0 < level < 1
    if level == LEVEL:
        return NORMAL_AT_LEVEL
    from scipy.special import ndtri

    return float(ndtri(0.5 + level / 2))


def student_quantile(degrees: float, level: float) -> float:
    """Return the same of Student's distribution with so many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + level / 2))
