"""The exact test of paired differences: where nothing tells two sides apart, each item's sign is a fair coin.

With one size of differences and one task this is McNemar's exact test (McNemar 1947, Psychometrika 12:153-157); in
general Fisher's randomisation test of pairs (Fisher 1935, The Design of Experiments, section 21), the items of a
task of n having the weight 1/n. It holds its level with any number of items; where two sides are better at different
tasks and alike on average, it finds less than its level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_SUMS = 50_000
"""Different sums that are counted. Where there are more, over twenty items differ and the sum is as good as normal."""
DIGITS = 12
"""To which sizes and sums count as equal."""


def sign_p_value(tasks: Sequence[NDArray[np.float64]]) -> float:
    """Return the two-sided p-value of the sum of differences, which is the doubled one of its direction.

    Args:
        tasks: Differences of each task, (num_items,).
    """
    total = sum(float(task.mean()) for task in tasks)
    return min(1.0, 2 * p_not_above(tasks if total > 0 else [-task for task in tasks]))


def p_not_above(tasks: Sequence[NDArray[np.float64]]) -> float:
    """Return the chance of a sum of mean differences at least as large, the sign of each item's being a fair coin."""
    import numpy as np
    from scipy.special import ndtr

    parts = np.concatenate([task / len(task) for task in tasks])
    parts = parts[parts != 0]
    if not len(parts):
        return 1.0
    total = float(parts.sum())
    sizes, counts = np.unique(np.round(np.abs(parts) / np.abs(parts).max(), DIGITS), return_counts=True)
    if math.prod(int(count) + 1 for count in counts) > MOST_SUMS:
        return float(ndtr(-total / math.sqrt(float((parts**2).sum()))))
    sums: NDArray[Any] = np.zeros(1)
    chances: NDArray[Any] = np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        steps = size * (2 * np.arange(count + 1) - count)
        sums = np.round(np.add.outer(sums, steps).ravel(), DIGITS - 2)
        chances = np.multiply.outer(chances, _fair_coins(int(count))).ravel()
        sums, places = np.unique(sums, return_inverse=True)
        chances = np.bincount(places, weights=chances)
    return min(1.0, float(chances[sums >= total / np.abs(parts).max() - 1e-9].sum()))


def _fair_coins(count: int) -> NDArray[np.float64]:
    """Return the chance of each number of heads."""
    import numpy as np
    from scipy.special import gammaln

    heads = np.arange(count + 1)
    logs = gammaln(count + 1) - gammaln(heads + 1) - gammaln(count - heads + 1) - count * math.log(2)
    return np.asarray(np.exp(logs))


def p_unpaired(counts: Sequence[tuple[int, int, int, int]]) -> float:
    """Return the chance that the mean share of right answers falls at least as far, were answers dealt out anew.

    Each task's right answers are dealt to the items of both sides (Fisher's exact test, one task; The Design of
    Experiments, 1935). 0 where there are too many sums to count.

    Args:
        counts: Of each task right answers and items before, right answers and items after.
    """
    import numpy as np
    from scipy.special import gammaln

    def log_choose(n: int, k: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))

    if math.prod(min(x + y, n, m) + 1 for x, n, y, m in counts) > MOST_SUMS:
        return 0.0
    sums: NDArray[Any] = np.zeros(1)
    chances: NDArray[Any] = np.ones(1)
    for x, n, y, m in counts:
        after = np.arange(max(0, x + y - n), min(x + y, m) + 1, dtype=np.float64)
        logs = log_choose(m, after) + log_choose(n, x + y - after) - log_choose(n + m, np.array(float(x + y)))
        falls = (x + y - after) / n - after / m
        sums = np.round(np.add.outer(sums, falls).ravel(), DIGITS - 2)
        chances = np.multiply.outer(chances, np.exp(logs)).ravel()
        sums, places = np.unique(sums, return_inverse=True)
        chances = np.bincount(places, weights=chances)
    fallen = sum(x / n - y / m for x, n, y, m in counts)
    return min(1.0, float(chances[sums >= fallen - 1e-9].sum()))
