"""Importance of decoder blocks by response suppression: the arithmetic of IST. No torch.

Paper: IST (arXiv 2410.11772).
Reference: antgroup/importance-aware-sparse-tuning-IST-paper@53ab149:ist.py, in fp32; here numbers are Python's.

A high importance I means that a block was suppressed in sets whose loss came out low: it is harmless when suppressed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x)), without overflow."""
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0.0 else math.exp(x) / (1.0 + math.exp(x))


def suppressed_sets(
    importance: Sequence[float], size: int, number: int, generator: np.random.Generator
) -> list[list[int]]:
    """Return the sets of blocks that are suppressed in one look at the importance, in the order of their draws.

    Each holds ``size`` blocks, drawn without replacement with weights sigmoid(I); one that equals an earlier set is
    drawn again. Source: ist.py, lines 66-69 and 105-107.

    Args:
        importance: I, one a block.
        size: Of each set.
        number: Of sets; there must be so many different ones.
        generator: Of the draws.
    """
    assert 1 < number <= math.comb(len(importance), size)
    weights = [sigmoid(i) for i in importance]
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    sets: list[list[int]] = []
    while len(sets) < number:
        drawn = [int(block) for block in generator.choice(len(shares), size, replace=False, p=shares)]
        if all(set(drawn) != set(earlier) for earlier in sets):
            sets.append(drawn)
    return sets


def updated_importance(
    importance: Sequence[float], sets: Sequence[Sequence[int]], losses: Sequence[float], rate: float
) -> list[float]:
    """Return the importance after one look at it.

    Formula: r_k = exp(-L_k), for each block i of each set S_k ::

        I_i += rate (r_k - mean r) p_i (1 - p_i),  p = sigmoid(I) of before the look

    Source: ist.py, lines 120-131; what is not in S_k stays (line 133 is commented out).

    Args:
        importance: I, one a block.
        sets: S, the blocks suppressed in each pass.
        losses: L, of each pass, in nats.
        rate: Of the update.
    """
    rewards = [math.exp(-loss) for loss in losses]
    mean = math.fsum(rewards) / len(rewards)
    p = [sigmoid(i) for i in importance]
    new = list(importance)
    for drawn, reward in zip(sets, rewards, strict=True):
        for block in drawn:
            new[block] += rate * (reward - mean) * p[block] * (1.0 - p[block])
    return new
