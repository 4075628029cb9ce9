"""Inclusion probabilities of draws without replacement, against known values and against the sum over all orders."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from harness.methods._inclusion import successive_sampling
from tests.golden.test_layer_sampling import COUNTS, INCLUSION


@pytest.mark.parametrize("drawn", [2, 5])
def test_the_published_scores_give_the_known_inclusion_probabilities(drawn: int) -> None:
    found = successive_sampling([count / sum(COUNTS) for count in COUNTS], drawn)
    assert sum(found) == pytest.approx(drawn, abs=1e-8)
    for block, expected in INCLUSION[drawn].items():
        assert found[block] == pytest.approx(expected, abs=1e-6)


def enumerated(p: list[float], drawn: int) -> list[float]:
    """Return the same by adding up every order of draws."""
    totals = np.zeros(len(p))
    for order in itertools.permutations(range(len(p)), drawn):
        chance, left = 1.0, 1.0
        for block in order:
            chance *= p[block] / left
            left -= p[block]
        totals[list(order)] += chance
    return list(totals)


@pytest.mark.parametrize("drawn", [1, 2, 3])
def test_small_cases_equal_the_sum_over_all_orders(drawn: int) -> None:
    p = [0.5, 0.3, 0.15, 0.05]
    assert successive_sampling(p, drawn) == pytest.approx(enumerated(p, drawn), abs=1e-8)


def test_a_block_of_probability_zero_is_never_drawn_and_all_others_may_be_certain() -> None:
    assert successive_sampling([0.6, 0.0, 0.4], 2) == [1.0, 0.0, 1.0]
