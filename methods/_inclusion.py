"""How often each block is drawn: the inclusion probabilities of the two sampling laws.

Papers: LISA (arXiv 2403.17919), algorithm 1, for coin flips; OwLore/OWS (arXiv 2405.18380) for draws by weight.
Reference: none; the released code draws (pixeli99/OwLore@e415973:src/lmflow/pipeline/finetuner.py) and never says how
often each block comes. Without replacement that is not ``active_layers`` times the block's probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.methods._settings import LayerSamplingSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FIRST_TIME = -30.0
"""Logarithm of the time before which no block rings: each would with probability below 1e-13."""
LAST_TIME = 40.0
"""The slowest block rings after so many of its mean times with probability 1e-17."""


def inclusion_probabilities(settings: LayerSamplingSettings, probabilities: Sequence[float]) -> list[float]:
    """Return the probability of each block to be among those drawn for one period.

    Args:
        settings: Sampling law and ``active_layers``.
        probabilities: One a block, summing to 1.
    """
    if settings.takes_turns:
        return [settings.active_layers / len(probabilities)] * len(probabilities)
    if settings.sampling == "bernoulli" or settings.active_layers == 0:
        return [settings.active_layers * p for p in probabilities]
    return successive_sampling(probabilities, settings.active_layers)


def successive_sampling(probabilities: Sequence[float], num_drawn: int) -> list[float]:
    """Return the probability of each block to be among the first ``num_drawn`` of draws without replacement.

    Formula: each block rings once, at an exponential time of rate p; the order of ringing is the order of the draws.
    Block i is drawn where fewer than ``num_drawn`` others rang before it::

        P(i drawn) = ∫ p_i exp(-p_i t) P(#{j != i: T_j < t} < num_drawn) dt,  over t = exp(s)

    Args:
        probabilities: One a block, each >= 0.
        num_drawn: At most the blocks whose probability is above 0.
    """
    import numpy as np
    from scipy import integrate

    p = np.asarray(probabilities, dtype=np.float64)
    possible = p > 0.0
    assert 1 <= num_drawn <= possible.sum()
    if num_drawn == possible.sum():
        return [float(block) for block in possible]
    end = math.log(LAST_TIME / float(p[possible].min()))

    def density(s: float) -> NDArray[np.float64]:
        t = math.exp(s)
        few: NDArray[np.float64] = _fewer_others(-np.expm1(-p * t), num_drawn)
        return np.asarray(t * p * np.exp(-p * t) * few)

    drawn, _ = integrate.quad_vec(density, FIRST_TIME, end, epsabs=1e-10, epsrel=1e-10)
    return [float(chance) for chance in drawn]


def _fewer_others(rung: NDArray[np.float64], bound: int) -> NDArray[np.float64]:
    """Return for each block the probability that fewer than ``bound`` of the others rang, each with ``rung``."""
    import numpy as np

    blocks = len(rung)
    counts = np.zeros((blocks, bound))  # row i: P(0), P(1), ... of the others looked at so far
    counts[:, 0] = 1.0
    for j in range(blocks):
        row = counts[j].copy()
        counts[:, 1:] = counts[:, 1:] * (1.0 - rung[j]) + counts[:, :-1] * rung[j]
        counts[:, 0] *= 1.0 - rung[j]
        counts[j] = row  # a block is none of its others
    return np.asarray(counts.sum(axis=1))
