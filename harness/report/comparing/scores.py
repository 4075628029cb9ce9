"""How a score changed between two sides: item by item where both kept their items, else from the scores alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from harness.record import Score
from harness.report.comparing.measures import SCALES
from harness.report.comparing.outcomes import Shared, difference_over_other_seeds, shared_outcomes
from harness.report.comparing.subjects import ScoreSample
from harness.report.reading.sides import Side
from harness.report.statistics.changes import Change
from harness.report.statistics.pairs import Difference, paired_difference, sum_of_variances
from harness.report.statistics.signs import p_not_above, p_unpaired

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Tasks = Mapping[str, Mapping[int, Sequence[ScoreSample]]]
"""Samples of each task by seed."""
MANY = 10**6
"""Degrees of freedom of an error that is as good as known."""


@dataclass(frozen=True)
class ScoreChange:
    """A change of one score or average, in the unit of the score."""

    baseline: float
    candidate: float
    worsening: float
    """Above 0 where it is for the worse."""
    change: Change | None
    """None where nothing is known of the error."""
    least_p_value: float
    """What the exact paired test gives without a tolerance: the p-value is at least this. 0 where there is none."""
    fewest_p_value: float
    """The least that the exact paired test could give, were all items lost. 0 where there is none."""
    basis: str
    """What the test rests on, in words."""
    scale: float
    """Of the unit."""


def score_change(
    old: Tasks,
    new: Tasks,
    sides: tuple[Side, Side],
) -> ScoreChange | None:
    """Return how the mean of some tasks' scores changed; None where a side has no seed of all tasks.

    Seed by seed where the baseline has the candidate's seeds, else over all seeds of either side. What is shown and
    what is tested are of the same items.

    Args:
        old: Samples of each task of the baseline by seed, which all have one unit and direction; repeats are averaged.
        new: The same tasks of the candidate.
        sides: Where the items are.
    """
    seeds = [sorted(set.intersection(*map(set, side.values()))) for side in (old, new)]
    if not all(seeds):
        return None
    alike = set(seeds[1]) <= set(seeds[0])
    if alike:
        seeds[0] = seeds[1]
    first = next(iter(old.values()))[seeds[0][0]][0].score
    sign = -1.0 if first.higher_is_better else 1.0
    arrays = [shared_outcomes(old[task], new[task], (seeds[0], seeds[1]), sides) for task in old]
    known = [array for array in arrays if array is not None]
    over = _over(seeds, alike)
    if len(known) == len(arrays):
        before, after = (fmean(float(task.mean()) for task in side) for side in _sides(known))
        difference, least = _paired(known, sign, alike=alike)
        asked = [sum(task.num_items[place] for task in known) for place in (0, 1)]
        cut = "" if asked == [difference.num_items] * 2 else f" that both have, of {asked[0]} and {asked[1]}"
        basis = f"paired over {difference.num_items} items{cut}{over}"
    else:
        means = [_means(side, of_side) for side, of_side in zip((old, new), seeds, strict=True)]
        before, after = (fmean(_by_seed_means(side)) for side in means)
        difference, least = _unpaired((old, new), means, seeds, sign), _dealt_anew((old, new), means, seeds, sign)
        basis = f"unpaired, items absent: {_items(old, seeds[0])} against {_items(new, seeds[1])} items{over}"
    known_error = not math.isnan(difference.standard_error)
    change = Change(difference.mean, difference.standard_error, difference.degrees) if known_error else None
    fewest = 0.5**difference.num_items if len(known) == len(arrays) else 0.0
    return ScoreChange(before, after, difference.mean, change, least, fewest, basis, SCALES[first.unit])


def _over(seeds: Sequence[Sequence[int]], alike: bool) -> str:
    """Return the seeds that a change is over, in words."""
    if alike:
        return f", {len(seeds[0])} seeds" if len(seeds[0]) > 1 else ""
    said = f", seeds {', '.join(map(str, seeds[0]))} against {', '.join(map(str, seeds[1]))}"
    return said + (": the choice of a single seed is not covered" if min(map(len, seeds)) == 1 else "")


def _means(side: Tasks, seeds: Sequence[int]) -> list[list[float]]:
    """Return each task's score by seed, a mean over the repeats of a seed."""
    return [[_mean([sample.score.value for sample in task[seed]]) for seed in seeds] for task in side.values()]


def _mean(values: Sequence[float]) -> float:
    return values[0] if len(values) == 1 else fmean(values)


def _by_seed_means(means: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*means, strict=True)]


def _items(tasks: Tasks, seeds: Sequence[int]) -> int:
    return sum(task[seeds[0]][0].score.n for task in tasks.values())


def _sides(tasks: Sequence[Shared]) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    return [task.before for task in tasks], [task.after for task in tasks]


def _paired(tasks: Sequence[Shared], sign: float, *, alike: bool) -> tuple[Difference, float]:
    """Return the worsening on the same items, and the exact p-value of there being any."""
    worse = [sign * (task.after.mean(axis=0) - task.before.mean(axis=0)) for task in tasks]
    if alike:
        difference = paired_difference([sign * (task.after - task.before) for task in tasks], added=True)
    else:
        difference = difference_over_other_seeds(*([sign * task for task in side] for side in _sides(tasks)))
    return difference, p_not_above(worse)


def _unpaired(
    sides: Sequence[Tasks], means: Sequence[Sequence[Sequence[float]]], seeds: Sequence[Sequence[int]], sign: float
) -> Difference:
    """Return the difference of two means with the variance of items and seeds on either side.

    All seeds answer the same items, so that more seeds do not make the items' part smaller.
    """
    parts: list[tuple[float, float]] = []
    totals = []
    for side, values, of_side in zip(sides, means, seeds, strict=True):
        for task, scores in zip(side.values(), values, strict=True):
            score = task[of_side[0]][0].score
            parts.append((_item_variance(score, sum(scores) / len(scores)) / len(side) ** 2, MANY))
        by_seed = _by_seed_means(values)
        total = sum(by_seed) / len(of_side)
        totals.append(total)
        if len(of_side) > 1:
            squares = sum((value - total) ** 2 for value in by_seed)
            parts.append((squares / (len(of_side) - 1) / len(of_side), len(of_side) - 1))
    known = not any(math.isnan(part) for part, _ in parts)
    error, degrees = sum_of_variances(parts) if known else (math.nan, MANY)
    return Difference(sign * (totals[1] - totals[0]), error, degrees, _items(sides[1], seeds[1]), len(seeds[1]))


def _dealt_anew(
    sides: Sequence[Tasks], means: Sequence[Sequence[Sequence[float]]], seeds: Sequence[Sequence[int]], sign: float
) -> float:
    """Return the exact p-value of a fall of accuracies whose items are not known; 0 of other scores."""
    counts: list[tuple[int, int, int, int]] = []
    for task, values, others in zip(sides[0], *means, strict=True):
        old, new = (side[task][of_side[0]][0].score for side, of_side in zip(sides, seeds, strict=True))
        shares = fmean(values), fmean(others)
        if sign > 0 or not (old.is_fraction and new.is_fraction and old.n > 0 and new.n > 0):
            return 0.0
        if not all(0 <= share <= 1 for share in shares):
            return 0.0
        counts.append((round(shares[0] * old.n), old.n, round(shares[1] * new.n), new.n))
    return p_unpaired(counts)


def _item_variance(score: Score, value: float) -> float:
    """Return the variance over items of a score whose mean over seeds is ``value``; NaN where nothing is known of it.

    Of an accuracy it is taken at (x + 1/2) / (n + 1), so that a task that is all right still has some.
    """
    if score.is_fraction and 0 <= value <= 1 and score.n > 0:
        q = (value * score.n + 0.5) / (score.n + 1)
        return q * (1 - q) / score.n
    return math.nan if score.stderr is None else score.stderr**2
