"""How a score changed between two sides: item by item where both kept their items, else from the scores alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from harness.record import Score
from harness.report.comparing.measures import SCALES
from harness.report.comparing.subjects import ScoreSample
from harness.report.reading.items import ItemKey, mean_outcomes, outcomes_of
from harness.report.reading.sides import Side
from harness.report.statistics.changes import Change, p_more_lost_than_won
from harness.report.statistics.intervals import mean_value
from harness.report.statistics.pairs import Difference, paired_difference, sum_of_variances

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
    basis: str
    """What the test rests on, in words."""
    scale: float
    """Of the unit."""


def score_change(
    baseline: Mapping[str, Sequence[ScoreSample]],
    candidate: Mapping[str, Sequence[ScoreSample]],
    sides: tuple[Side, Side],
) -> ScoreChange | None:
    """Return how the mean of some tasks' scores changed over the seeds that both sides have; None without such seeds.

    Args:
        baseline: Samples of each task, which all have one unit and direction; repeats of a seed are averaged.
        candidate: The same tasks.
        sides: Where the items are.
    """
    old = {task: _by_seed(samples) for task, samples in baseline.items()}
    new = {task: _by_seed(samples) for task, samples in candidate.items()}
    seeds = sorted(set.intersection(*(set(task) for task in (*old.values(), *new.values()))))
    if not seeds:
        return None
    first = next(iter(old.values()))[seeds[0]][0].score
    sign = -1.0 if first.higher_is_better else 1.0
    means = [_means(side, seeds) for side in (old, new)]
    before, after = (fmean(_by_seed_means(side)) for side in means)
    arrays = [_paired(old[task], new[task], seeds, sides) for task in old]
    known = [array for array in arrays if array is not None]
    over = f", {len(seeds)} seeds" if len(seeds) > 1 else ""
    if len(known) == len(arrays):
        tasks = [sign * array for array in known]
        difference = paired_difference(tasks)
        least = _exact(tasks)
        basis = f"paired over {difference.num_items} items{over}"
    else:
        difference = _unpaired((old, new), means, seeds, sign)
        least = 0.0
        basis = f"unpaired, items absent: {_items(old, seeds)} against {_items(new, seeds)} items{over}"
    known_error = not math.isnan(difference.standard_error)
    change = Change(difference.mean, difference.standard_error, difference.degrees) if known_error else None
    return ScoreChange(before, after, difference.mean, change, least, basis, SCALES[first.unit])


def _by_seed(samples: Sequence[ScoreSample]) -> dict[int, list[ScoreSample]]:
    found: dict[int, list[ScoreSample]] = defaultdict(list)
    for sample in samples:
        found[sample.seed].append(sample)
    return found


def _means(side: Tasks, seeds: Sequence[int]) -> list[list[float]]:
    """Return each task's score by seed, a mean over the repeats of a seed."""
    return [[_value(task[seed]) for seed in seeds] for task in side.values()]


def _by_seed_means(means: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*means, strict=True)]


def _value(samples: Sequence[ScoreSample]) -> float:
    return mean_value(sample.score for sample in samples)


def _items(tasks: Tasks, seeds: Sequence[int]) -> int:
    return sum(task[seeds[0]][0].score.n for task in tasks.values())


def _paired(
    old: Mapping[int, Sequence[ScoreSample]],
    new: Mapping[int, Sequence[ScoreSample]],
    seeds: Sequence[int],
    sides: tuple[Side, Side],
) -> NDArray[np.float64] | None:
    """Return candidate less baseline, (num_seeds, num_items), or None where items are missing."""
    import numpy as np

    pairs: list[tuple[dict[ItemKey, float], dict[ItemKey, float]]] = []
    for seed in seeds:
        before, after = _outcomes(old[seed], sides[0]), _outcomes(new[seed], sides[1])
        if before is None or after is None:
            return None
        pairs.append((before, after))
    keys = sorted(set.intersection(*(set(before) & set(after) for before, after in pairs)))
    if not keys:
        return None
    return np.array([[after[key] - before[key] for key in keys] for before, after in pairs])


def _outcomes(samples: Sequence[ScoreSample], side: Side) -> dict[ItemKey, float] | None:
    """Return the outcomes behind a score, means over its repeats; None where any are missing."""
    repeats = []
    for sample in samples:
        file = None if sample.items is None else side.items(sample.items)
        outcomes = None if file is None else outcomes_of(sample.score, file)
        if outcomes is None:
            return None
        repeats.append(outcomes)
    return mean_outcomes(repeats)


def _exact(tasks: Sequence[NDArray[np.float64]]) -> float:
    """Return McNemar's one-sided p-value for one task of one seed with outcomes 0 or 1, else 0."""
    import numpy as np

    if len(tasks) > 1 or len(tasks[0]) > 1 or not np.isin(tasks[0], (-1.0, 0.0, 1.0)).all():
        return 0.0
    return p_more_lost_than_won(int((tasks[0] > 0).sum()), int((tasks[0] < 0).sum()))


def _unpaired(
    sides: Sequence[Tasks], means: Sequence[Sequence[Sequence[float]]], seeds: Sequence[int], sign: float
) -> Difference:
    """Return the difference of two means with the variance of items and seeds on either side.

    All seeds answer the same items, so that more seeds do not make the items' part smaller.
    """
    parts: list[tuple[float, float]] = []
    totals = []
    for side, values in zip(sides, means, strict=True):
        for task, scores in zip(side.values(), values, strict=True):
            score = task[seeds[0]][0].score
            parts.append((_item_variance(score, sum(scores) / len(scores)) / len(side) ** 2, MANY))
        by_seed = _by_seed_means(values)
        total = sum(by_seed) / len(seeds)
        totals.append(total)
        if len(seeds) > 1:
            squares = sum((value - total) ** 2 for value in by_seed)
            parts.append((squares / (len(seeds) - 1) / len(seeds), len(seeds) - 1))
    known = not any(math.isnan(part) for part, _ in parts)
    error, degrees = sum_of_variances(parts) if known else (math.nan, MANY)
    return Difference(sign * (totals[1] - totals[0]), error, degrees, _items(sides[1], seeds), len(seeds))


def _item_variance(score: Score, value: float) -> float:
    """Return the variance over items of a score whose mean over seeds is ``value``; NaN where nothing is known of it.

    Of an accuracy it is taken at (x + 1/2) / (n + 1), so that a task that is all right still has some.
    """
    if score.is_fraction and 0 <= value <= 1 and score.n > 0:
        q = (value * score.n + 0.5) / (score.n + 1)
        return q * (1 - q) / score.n
    return math.nan if score.stderr is None else score.stderr**2
