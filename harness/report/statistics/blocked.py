"""Means of one number over seeds that all labels share: which of them differ by more than seeds do.

A seed draws the same batches for every label, so its part is common to all and falls out of their differences: a
randomised complete block design, ``y[l, s] = mean + label[l] + seed[s] + rest[l, s]``. Three seeds of one label know
next to nothing of their own spread, so the variance of the rest is pooled, ``sum(rest^2) / ((L - 1)(S - 1))``, and two
means are told apart where they differ by more than Tukey's honest significant difference, ``q(level; L, (L - 1)(S - 1))
* sqrt(variance / S)``: it errs in one table of twenty, over all its pairs together.

A label that swings far more than the others raises what all pairs need: the caller leaves out what came to nothing.
One variance for all is an assumption. Where the differences of one pair, seed by seed, spread more than it says, half
their variance takes its place for that pair (ours). Simulated with nine labels, three seeds and no true difference,
some pair is told apart in 4% of the tables where all spread alike, in 6% where one or three labels spread twice as much
and in 10% where they spread four times as much (5, 9 and 17% without it); with five seeds in 4, 6 and 7%.

Source: Tukey (1949), Biometrics 5:99-114; Montgomery, Design and Analysis of Experiments, sections 3.5.7 and 4.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from harness.report.statistics.intervals import LEVEL

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Blocked:
    """What a table of labels by seeds says of the labels' means, in the unit of its numbers."""

    means: tuple[float, ...]
    """One a label."""
    spread: float
    """Standard deviation of one run, the parts of its label and of its seed taken out, pooled over labels."""
    smallest_apart: float
    """No two means that are nearer than this are told apart."""
    needed: tuple[tuple[float, ...], ...]
    """By how much the means of each two labels must differ to be told apart; at least :attr:`smallest_apart`."""

    def apart(self, first: int, second: int) -> bool:
        """Return whether two labels, by their places, are told apart."""
        return abs(self.means[first] - self.means[second]) > self.needed[first][second]


def blocked_means(values: NDArray[np.float64], level: float = LEVEL, least: float = 0.0) -> Blocked:
    """Return the means of labels that ran with the same seeds, and how far apart two must be.

    Args:
        values: (num_labels, num_seeds), at least two of each, all finite.
        level: One less the chance that labels without a difference are told apart anywhere in the table.
        least: No two means nearer than this are told apart, however little seeds do.
    """
    import numpy as np

    num_labels, num_seeds = values.shape
    assert num_labels > 1 and num_seeds > 1
    means = values.mean(axis=1)
    rest = values - means[:, None] - values.mean(axis=0) + values.mean()
    degrees = (num_labels - 1) * (num_seeds - 1)
    variance = float((rest**2).sum()) / degrees
    quantile = _studentized_range(level, num_labels, degrees)
    own = (values[:, None] - values[None]).var(axis=2, ddof=1) / 2
    needed = np.maximum(quantile * np.sqrt(np.maximum(own, variance) / num_seeds), least)
    return Blocked(
        tuple(map(float, means)),
        math.sqrt(variance),
        max(quantile * math.sqrt(variance / num_seeds), least),
        tuple(tuple(map(float, row)) for row in needed),
    )


@cache
def _studentized_range(level: float, num_means: int, degrees: int) -> float:
    """Return a quantile of the studentized range; it takes a tenth of a second."""
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(level, num_means, degrees))
