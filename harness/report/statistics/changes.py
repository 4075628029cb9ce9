"""Is a change beyond its tolerance: one-sided tests on changes whose positive direction is the bad one.

Times, bytes and losses are compared as logarithms, so that a tolerance of 2% means a ratio of 1.02. Each cell has few
repeats, and its own variance is poorly known; it is therefore moderated towards what the cells of the same metric share
(Smyth 2004). Where the cells agree this is nearly a pooled variance, where they do not nearly each cell's own. With
five repeats against five, 1% noise and a tolerance of 2%, a slowdown of 5% in one of 48 cells is found in 92% of cases,
where the plain two-sample t with its 8 degrees of freedom finds it in 55%; no test at that family-wise level can find
more than 93.5%, which is what a known variance gives.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

ROUNDING = 1e-9
"""By how much a change may pass its tolerance and still be at it: 1.02 over 1 is not more than 2%."""
FEWEST_CELLS = 3
"""With fewer cells there is nothing to moderate towards."""


@dataclass(frozen=True)
class Change:
    """A change, positive where it is for the worse, and how well it is known."""

    value: float
    """A logarithm of a ratio, or a difference of scores."""
    standard_error: float
    """0: repeated values were all the same."""
    degrees: float

    @property
    def is_exact(self) -> bool:
        """Return whether the values had no spread at all, so that no test is needed."""
        return self.standard_error == 0

    def p_beyond(self, tolerance: float) -> float:
        """Return the one-sided p-value of the change being at most ``tolerance``."""
        from scipy.special import stdtr

        assert not self.is_exact
        return float(stdtr(self.degrees, -(self.value - tolerance) / self.standard_error))

    def reversed(self) -> Change:
        """Return the same change with the good direction positive."""
        return replace(self, value=-self.value)


def log_changes(cells: Sequence[tuple[Sequence[float], Sequence[float]]], paired: Collection[int] = ()) -> list[Change]:
    """Return the change of the mean logarithm in each cell of one metric, variances moderated over the cells.

    Args:
        cells: Values of the baseline and of the candidate, all above 0, at least two on either side.
        paired: Places of the cells whose two sides hold the same seeds in the same order. What a seed does to both is
            in no variance there; the variance of their differences is halved, to be that of one value as elsewhere.
    """
    pairs = [([math.log(v) for v in old], [math.log(v) for v in new]) for old, new in cells]
    variances, degrees = [], []
    for i, (old, new) in enumerate(pairs):
        if i in paired:
            degrees.append(float(len(old) - 1))
            variances.append(_squares([b - a for a, b in zip(old, new, strict=True)]) / degrees[i] / 2)
        else:
            degrees.append(float(len(old) + len(new) - 2))
            variances.append((_squares(old) + _squares(new)) / degrees[i])
    spread = [i for i, variance in enumerate(variances) if variance > 0]
    moderated = moderate([variances[i] for i in spread], [degrees[i] for i in spread])
    for i, (variance, freedom) in zip(spread, moderated, strict=True):
        variances[i], degrees[i] = variance, freedom
    return [
        Change(fmean(new) - fmean(old), math.sqrt(variance * (1 / len(old) + 1 / len(new))), freedom)
        for (old, new), variance, freedom in zip(pairs, variances, degrees, strict=True)
    ]


def moderate(variances: Sequence[float], degrees: Sequence[float]) -> list[tuple[float, float]]:
    """Return each variance drawn towards the common one, with its degrees of freedom.

    ``s~^2 = (d0 s0^2 + d s^2) / (d0 + d)`` with d0 + d degrees, at most those of all variances together; d0 and s0^2
    by moments of ``log s^2``. Variances that differ no more than chance allows have d0 infinite: they are pooled.

    Source: Smyth (2004), Statistical Applications in Genetics and Molecular Biology 3(1):3, section 6.2; the bound on
    the degrees as in limma's eBayes.
    """
    import numpy as np
    from scipy.special import digamma, polygamma

    if len(variances) < FEWEST_CELLS:
        return list(zip(variances, degrees, strict=True))
    s2, d = np.asarray(variances), np.asarray(degrees)
    e = np.log(s2) - digamma(d / 2) + np.log(d / 2)
    excess = float(e.var(ddof=1) - polygamma(1, d / 2).mean())
    if excess <= 0:
        pooled, total = float((s2 * d).sum() / d.sum()), float(d.sum())
        return [(pooled, total)] * len(variances)
    d0 = 2 * inverse_trigamma(excess)
    s02 = float(np.exp(e.mean() + digamma(d0 / 2) - math.log(d0 / 2)))
    return [
        ((d0 * s02 + own * variance) / (d0 + own), min(d0 + own, float(d.sum())))
        for variance, own in zip(variances, degrees, strict=True)
    ]


def inverse_trigamma(value: float) -> float:
    """Return x > 0 with ``trigamma(x) = value``, for a value above 0, by Newton's method on its reciprocal.

    Source: Smyth (2004), appendix.
    """
    from scipy.special import polygamma

    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-10 * x:
            break
    return x


def _squares(values: Sequence[float]) -> float:
    if max(values) - min(values) <= ROUNDING:
        return 0.0  # equal ratios need not have equal logarithms
    mean = fmean(values)
    return sum((value - mean) ** 2 for value in values)
