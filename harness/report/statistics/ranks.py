"""Rank correlation."""

from __future__ import annotations

from collections.abc import Sequence


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation of two scores of the same things, -1 to 1; equal values share a mean rank.

    None where all values of one of them are equal: they rank nothing.
    """
    if len(set(one)) < 2 or len(set(other)) < 2:
        return None
    from scipy import stats

    return float(stats.spearmanr(one, other).statistic)
