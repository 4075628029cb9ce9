"""Which size is the largest that fits, asked of few predictions: what is needed rises with it. Imports no torch."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

Asking = Generator[int, int | None, "Largest"]
"""Yields sizes and is sent the bytes that each needs, or None where it cannot be had at all."""


@dataclass(frozen=True)
class Largest:
    """What a search found."""

    size: int
    """0: not even 1 fits."""
    needed_bytes: int | None
    """By that size, or by 1 where none fits; None: it cannot be had."""
    at_limit: bool
    """Whether no larger one was looked for."""


def largest(start: int, limit: int, memory: int) -> Asking:
    """Search for the largest size from 1 to ``limit`` that fits; one more, if there is one, was found not to.

    Powers of two from ``start`` on until one does not fit, then between what fits and what does not, where a straight
    line between both would reach the memory, in turn with the middle.

    Args:
        start: Asked first, at most ``limit``.
        limit: Larger ones are not asked.
        memory: Bytes that there are.
    """
    fitting, too_large = {0: 0}, {}

    def note(size: int, needed: int | None) -> None:
        if needed is not None and needed <= memory:
            fitting[size] = needed
        else:
            too_large[size] = needed

    note(start, (yield start))
    if start not in fitting and start > 1:
        note(1, (yield 1))
        if 1 not in fitting:
            return Largest(0, too_large[1], at_limit=False)
    elif start not in fitting:
        return Largest(0, too_large[1], at_limit=False)
    while not too_large and max(fitting) < limit:
        size = min(limit, 2 * max(fitting))
        note(size, (yield size))
    turn = 0
    while too_large and min(too_large) - max(fitting) > 1:
        low, high = max(fitting), min(too_large)
        size = _between(low, fitting[low], high, too_large[high], memory) if turn % 3 < 2 else (low + high) // 2
        turn += 1
        note(size, (yield size))
    best = max(fitting)
    return Largest(best, fitting[best], at_limit=not too_large)


def _between(low: int, needs: int, high: int, too_much: int | None, memory: int) -> int:
    """Return the size between two at which a straight line reaches the memory, or the next one to it."""
    if too_much is None or too_much <= needs:
        return (low + high) // 2
    reached = low + (high - low) * (memory - needs) // (too_much - needs)
    return min(high - 1, max(low + 1, reached))
