"""Steps in a series of means over commits: where the level changed, how sure that is, by how much, and between which.

Circular binary segmentation (Olshen, Venkatraman, Lucito, Wigler 2004, Biostatistics 5(4):557): of all arcs of the
series the one whose mean differs most from the rest's, so that one step and a step with its way back are found alike.
The distribution of the largest under no step is drawn once for each length, of independent normal values, so that the
level holds for a series of four as for one of two hundred. What is found is split there and looked at again; a part's
share of the level goes with the places that it has for a step. An arc has two ends, and often only one is a step: at
last each place is tested against its neighbours, Bonferroni over all places, and the least certain goes until all hold.

One commit is one value: runs made at one time share the state of their machine, and their spread says little of how far
two commits lie apart that differ in nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from harness.report.statistics.intervals import Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FEWEST_POINTS = 3
"""With fewer points a step and noise are the same."""
MOST_POINTS = 400
"""The newest of a series: the work grows with their square."""
DRAWS = 1999
"""Series without a step of one length; the p-value is at least one in 2,000."""
WORK = 40_000_000
"""Values that are drawn and summed for one length at most; beyond it fewer series are drawn."""
FEWEST_DRAWS = 399
SAME = 1e-9
"""Relative difference of two values that are the same."""
LEVEL = 0.05


@dataclass(frozen=True)
class Step:
    """A change of level between two points of a series."""

    at: int
    """Place of the first point on the new level."""
    earliest: int
    latest: int
    """Places between which ``at`` lies with 95% confidence."""
    change: float
    """New level less the old one, in the unit of the series."""
    interval: Interval | None
    """Of the change, 95%; None where the values repeat exactly, and the change is what it is."""
    p_value: float | None
    """Student's t of the levels before and behind, times the number of places; None where the values repeat exactly."""


def steps(values: Sequence[float], level: float = LEVEL) -> list[Step]:
    """Return the steps of a series, in order.

    A series in which at least half of the neighbours are the same has no noise: every difference is a step.

    Args:
        values: One a commit, in order; logarithms where ratios matter. Of more than ``MOST_POINTS`` the newest count.
        level: Chance of any step in a series that has none.
    """
    import numpy as np

    skipped = max(0, len(values) - MOST_POINTS)
    x = np.asarray(values[skipped:], dtype=np.float64)
    n = len(x)
    if n < FEWEST_POINTS:
        return []
    moved = np.abs(np.diff(x)) > SAME * np.maximum(1.0, np.abs(x[1:]))
    if 2 * int(moved.sum()) <= n - 1:
        return [
            Step(skipped + i, skipped + i, skipped + i, float(x[i] - x[i - 1]), None, None)
            for i in map(int, np.flatnonzero(moved) + 1)
        ]
    found: set[int] = set()
    _split(x, (0, n), level / (n - 1), found)
    places = sorted(found)
    while places:
        places = _settled(x, places)
        tested = [_Test.of(x, places, k) for k in range(len(places))]
        worst = max(range(len(places)), key=lambda k: tested[k].p_value)
        if tested[worst].p_value <= level:
            return [_step(test, place, skipped) for test, place in zip(tested, places, strict=True)]
        del places[worst]
    return []


def adjusted_means(points: Sequence[Sequence[tuple[int, float]]]) -> list[float]:
    """Return one value a point, free of which seeds it happens to have: least squares of points and seeds as summands.

    Where all points have the same seeds as often, and where seeds do not tie the points together, these are the means.

    Args:
        points: (seed, value) of each run of each point.
    """
    import numpy as np

    means = [float(np.mean([value for _, value in runs])) for runs in points]
    seeds = sorted({seed for runs in points for seed, _ in runs})
    if len(seeds) < 2 or len({tuple(sorted(seed for seed, _ in runs)) for runs in points}) == 1:
        return means
    rows, y = [], []
    for i, runs in enumerate(points):
        for seed, value in runs:
            row = np.zeros(len(points) + len(seeds))
            row[i] = row[len(points) + seeds.index(seed)] = 1.0
            rows.append(row)
            y.append(value)
    design = np.asarray(rows)
    solution, _, rank, _ = np.linalg.lstsq(design, np.asarray(y), rcond=None)
    if rank < len(points) + len(seeds) - 1:  # one is lost to the common level
        return means
    effects = solution[len(points) :]
    return [float(solution[i] + effects.mean()) for i in range(len(points))]


def _split(x: NDArray[np.float64], part: tuple[int, int], level: float, found: set[int]) -> None:
    """Find the steps of a part of ``x``, from its first place to that behind its last; ``level`` is of each place."""
    start, n = part[0], part[1] - part[0]
    if n < FEWEST_POINTS:
        return
    share, first, last = _largest_arc(x[start : start + n])
    draws = _largest_without_a_step(n)
    p_value = (1 + int((draws >= share).sum())) / (1 + len(draws))
    if p_value > level * (n - 1):
        return
    edges = [start, *(start + edge for edge in (first, last) if 0 < edge < n), start + n]
    found.update(edges[1:-1])
    for piece in itertools.pairwise(edges):
        _split(x, piece, level, found)


def _largest_arc(x: NDArray[np.float64]) -> tuple[float, int, int]:
    """Return the largest share of the sum of squares that an arc explains, and its ends, ``x[first:last]``."""
    import numpy as np

    n = len(x)
    centred = x - x.mean()
    total = float((centred**2).sum())
    if total <= 0:
        return 0.0, 0, n
    sums = np.concatenate([[0.0], np.cumsum(centred)])
    best = (0.0, 0, n)
    for length in range(1, n):
        explained = (sums[length:] - sums[:-length]) ** 2 * n / (length * (n - length))
        i = int(explained.argmax())
        # An arc and the rest of the series are one split: that which holds the first point is told by the other.
        if explained[i] / total > best[0] * (1 + 1e-12) and (i > 0 or length < n):
            best = float(explained[i] / total), i, i + length
    return best


@cache
def _largest_without_a_step(n: int) -> NDArray[np.float64]:
    """Return :func:`_largest_arc`'s share in series of ``n`` independent normal values."""
    import numpy as np

    count = max(FEWEST_DRAWS, min(DRAWS, WORK // (n * n)))
    x = np.random.default_rng(n).standard_normal((count, n))
    x -= x.mean(axis=1, keepdims=True)
    total = (x**2).sum(axis=1)
    sums = np.concatenate([np.zeros((count, 1)), np.cumsum(x, axis=1)], axis=1)
    largest = np.zeros(count)
    for length in range(1, n):
        squares = ((sums[:, length:] - sums[:, :-length]) ** 2).max(axis=1)
        np.maximum(largest, squares * n / (length * (n - length)), out=largest)
    shares: NDArray[np.float64] = largest / total
    return shares


def _settled(x: NDArray[np.float64], places: Sequence[int]) -> list[int]:
    """Return the places moved to the best split between their neighbours."""
    settled = list(places)
    for _ in range(2):
        for k in range(len(settled)):
            left = settled[k - 1] if k else 0
            right = settled[k + 1] if k + 1 < len(settled) else len(x)
            settled[k] = left + _best_split(x[left:right])
    return settled


def _best_split(x: NDArray[np.float64]) -> int:
    """Return where one step explains the most of ``x``, which has two values at least."""
    import numpy as np

    n = len(x)
    left = np.arange(1, n)
    sums = np.cumsum(x - x.mean())[:-1]
    return int((sums**2 / (left * (n - left))).argmax()) + 1


@dataclass(frozen=True)
class _Test:
    """The levels before and behind a place, with the noise of the whole series around its levels."""

    before: int
    after: int
    """Points on the level before the place, and on the one behind it."""
    change: float
    variance: float
    degrees: int
    places: int

    @classmethod
    def of(cls, x: NDArray[np.float64], places: Sequence[int], k: int) -> _Test:
        """Return the test of the k-th of the places."""
        edges = [0, *places, len(x)]
        parts = [x[a:b] for a, b in itertools.pairwise(edges)]
        degrees = len(x) - len(parts)
        squares = sum(float(((part - part.mean()) ** 2).sum()) for part in parts)
        change = float(parts[k + 1].mean() - parts[k].mean())
        variance = squares / degrees if degrees else 0.0
        return cls(len(parts[k]), len(parts[k + 1]), change, variance, degrees, len(x) - 1)

    @property
    def error(self) -> float:
        """Return the standard error of the change."""
        return float((self.variance * (1 / self.before + 1 / self.after)) ** 0.5)

    @property
    def p_value(self) -> float:
        """Return the two-sided p-value, Bonferroni over the places of the series."""
        from scipy.special import stdtr

        if not self.degrees:
            return 1.0
        if self.error <= SAME * abs(self.change):
            return 0.0
        return min(1.0, 2 * float(stdtr(self.degrees, -abs(self.change) / self.error)) * self.places)

    @property
    def interval(self) -> Interval | None:
        """Return the change's interval at 95%; None without noise."""
        from scipy.special import stdtrit

        if not self.error:
            return None
        half = float(stdtrit(self.degrees, 0.975)) * self.error
        return self.change - half, self.change + half


def _step(test: _Test, place: int, skipped: int) -> Step:
    back, forth = _where(test.before, test.after, test.change, float(test.variance**0.5))
    at = skipped + place
    return Step(at, at + back, at + forth, test.change, test.interval, test.p_value)


def _where(before: int, after: int, change: float, noise: float) -> tuple[int, int]:
    """Return how many points the step may lie before and behind its place: 95% of splits of series like this one."""
    import numpy as np

    if noise <= abs(change) * SAME:
        return 0, 0
    generator = np.random.default_rng([before, after])
    n = before + after
    x = generator.normal(0.0, noise, (DRAWS, n))
    x[:, before:] += change
    left = np.arange(1, n)
    sums = np.cumsum(x - x.mean(axis=1, keepdims=True), axis=1)[:, :-1]
    found = (sums**2 / (left * (n - left))).argmax(axis=1) + 1 - before
    low, high = np.quantile(found, [0.025, 0.975], method="nearest")
    return int(-high), int(-low)
