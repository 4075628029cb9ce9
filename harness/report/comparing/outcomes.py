"""The outcomes of one task on two sides, item by item, and a change between sides of other seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.report.comparing.subjects import ScoreSample
from harness.report.reading.items import ItemKey, mean_outcomes, outcomes_of
from harness.report.reading.sides import Side
from harness.report.statistics.pairs import (
    LEAST_SEEDS,
    LEAST_VARIANCE,
    Difference,
    both_part,
    paired_difference,
    sum_of_variances,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Outcomes = NDArray[np.float64]
    """(num_seeds, num_items) of one task on one side."""


@dataclass(frozen=True)
class Shared:
    """The outcomes of one task on the items that all runs of both sides have."""

    before: Outcomes
    after: Outcomes
    num_items: tuple[int, int]
    """That each side has, shared or not."""


BySeed = Mapping[int, Sequence[ScoreSample]]
"""Samples of one task."""


def shared_outcomes(
    old: BySeed, new: BySeed, seeds: tuple[Sequence[int], Sequence[int]], sides: tuple[Side, Side]
) -> Shared | None:
    """Return the outcomes of both sides on the items that all runs have; None where items are missing or not shared.

    Args:
        old: The baseline's samples.
        new: The candidate's.
        seeds: Of either side.
        sides: Where the items are.
    """
    import numpy as np

    found: list[list[dict[ItemKey, float]]] = []
    for samples, of_side, side in zip((old, new), seeds, sides, strict=True):
        known: list[dict[ItemKey, float]] = []
        for seed in of_side:
            if (outcomes := _outcomes(samples[seed], side)) is None:
                return None
            known.append(outcomes)
        found.append(known)
    keys = sorted(set.intersection(*(set(one) for side in found for one in side)))
    if not keys:
        return None
    before, after = (np.array([[one[key] for key in keys] for one in side]) for side in found)
    first, second = (max(map(len, side)) for side in found)
    return Shared(before, after, (first, second))


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


def difference_over_other_seeds(before: Sequence[Outcomes], after: Sequence[Outcomes]) -> Difference:
    """Return after less before on the same items, where the seeds of the two sides are not the same.

    The variance of the items is that of the differences of their means over seeds; that of the seeds is added for
    either side. A side of one seed has none, and the error does not cover its choice.

    Args:
        before: Of each task, (num_seeds, num_items).
        after: The same items, with seeds of its own.
    """
    import numpy as np

    means = [b.mean(axis=0)[None] - a.mean(axis=0)[None] for a, b in zip(before, after, strict=True)]
    items = paired_difference(means, added=True)
    parts, shared = [(items.standard_error**2, items.degrees)], 0.0
    for side in (before, after):
        num_seeds = len(side[0])
        if num_seeds > 1:
            by_seed = np.mean([task.mean(axis=1) for task in side], axis=0)
            both = sum(both_part(task, len(side))[0] for task in side)
            parts.append((max(float(by_seed.var(ddof=1)) / num_seeds, LEAST_SEEDS * both), num_seeds - 1))
            shared += both
    error, degrees = sum_of_variances(parts)
    variance = max(LEAST_VARIANCE * items.standard_error**2, error**2 - shared)
    fewest = min(len(before[0]), len(after[0]))
    return Difference(items.mean, math.sqrt(variance), degrees, items.num_items, fewest)
