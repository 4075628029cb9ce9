"""What a whole table of comparisons needs: one family-wise level, groups that cannot be told apart, power.

The papers behind each function stand in its docstring.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from string import ascii_lowercase

POWER = 0.8
"""Chance of being found that the smallest detectable difference is stated for."""
NODES = 4000
"""Of the integral over the error's own distribution; relative error below 1e-4 against statsmodels."""


def holm(p_values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """Return adjusted p-values, in the order given: those at most ``level`` are rejected at that family-wise level.

    In the order of p/w, each is ``p/w`` times the sum of the weights from there on, and at least the one before.

    Args:
        p_values: One a comparison, 0 to 1.
        weights: Shares of the level, above 0; None: equal ones.

    Source: Holm (1979), Scandinavian Journal of Statistics 6:65-70, section 4 with weights.
    """
    shares = [1.0] * len(p_values) if weights is None else list(weights)
    assert len(shares) == len(p_values) and all(share > 0 for share in shares)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i] / shares[i])
    adjusted = [0.0] * len(p_values)
    remaining, largest = sum(shares), 0.0
    for i in order:
        largest = max(largest, min(1.0, p_values[i] / shares[i] * remaining))
        adjusted[i] = largest
        remaining -= shares[i]
    return adjusted


def indistinct_groups(labels: Sequence[str], told_apart: Collection[frozenset[str]]) -> list[tuple[str, ...]]:
    """Return the largest groups within which no two labels are told apart, each in the order of ``labels``.

    Two labels share a group if and only if they are not told apart, so a label may be in several.

    Source: the compact letter display of Piepho (2004), Journal of Computational and Graphical Statistics 13:456-466;
    its groups are the maximal cliques, here by Bron and Kerbosch (1973), Communications of the ACM 16:575-577.
    """
    near = {one: {other for other in labels if other != one and {one, other} not in told_apart} for one in labels}
    groups: list[set[str]] = []

    def extend(group: set[str], candidates: set[str], done: set[str]) -> None:
        if not candidates and not done:
            groups.append(group)
            return
        pivot = max(candidates | done, key=lambda label: (len(near[label] & candidates), label))
        for label in sorted(candidates - near[pivot]):
            extend(group | {label}, candidates & near[label], done & near[label])
            candidates = candidates - {label}
            done = done | {label}

    extend(set(), set(labels), set())
    place = {label: i for i, label in enumerate(labels)}
    ordered = [tuple(sorted(group, key=place.__getitem__)) for group in groups if group]
    return sorted(ordered, key=lambda group: [place[label] for label in group])


def letters_of(labels: Sequence[str], told_apart: Collection[frozenset[str]]) -> dict[str, str]:
    """Return each label's letters: labels that share one cannot be told apart."""
    letters = dict.fromkeys(labels, "")
    for i, group in enumerate(indistinct_groups(labels, told_apart)):
        for label in group:
            letters[label] += _letter(i)
    return letters


def smallest_difference(
    standard_error: float, degrees: float, level: float, power: float = POWER, *, sides: int = 2
) -> float:
    """Return the smallest true difference that a t-test would find with the given power, in the unit of the error.

    A rejection in the wrong direction is no finding and is not counted.

    Args:
        standard_error: Of the estimated difference, at least 0.
        degrees: Of freedom of that error; ``inf`` for a known one.
        level: Of this one test: under a correction the share that is left to it.
        power: Chance of rejecting.
        sides: 2, or 1 for a test in one direction.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.special import gammaincinv, ndtr, ndtri, stdtrit

    assert standard_error >= 0 and degrees > 0 and 0 < level < 1 and level < power < 1 and sides in {1, 2}
    if math.isinf(degrees):
        return float(standard_error * (ndtri(1 - level / sides) + ndtri(power)))
    critical = -float(stdtrit(degrees, level / sides))
    # The noncentral t as a mean of normals over quantiles of the error: scipy's own is NaN far out.
    quantiles = (np.arange(NODES) + 0.5) / NODES
    edges = critical * np.sqrt(2 * gammaincinv(degrees / 2, quantiles) / degrees)
    upper = float(edges[-1]) - float(ndtri(1 - power)) + 1.0
    return standard_error * float(brentq(lambda shift: float(ndtr(shift - edges).mean()) - power, 0.0, upper))


def _letter(i: int) -> str:
    return ascii_lowercase[i] if i < len(ascii_lowercase) else f"({i + 1})"
