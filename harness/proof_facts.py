"""What a record says of a training, laid out for the checks of ``harness.proof_checks``: who was trained when, and how.

Steps are told in spans over which the same blocks were trainable, so that a run of many steps is judged quickly.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from harness.declaration import Declaration, DeclaredPart
from harness.record import Proof
from harness.record_training import TrainResult

USUAL_NORM = 1.0
"""Of all gradients of a step, where it was not taken."""


class Span(NamedTuple):
    """Steps over which the same blocks were trainable."""

    first: int
    end: int
    """The step after the last."""
    blocks: frozenset[int]


class Facts:
    """What the loop observed and the method declared."""

    def __init__(self, train: TrainResult, proof: Proof, max_grad_norm: float | None = None) -> None:
        self.train = train
        self.proof = proof
        self.max_grad_norm = max_grad_norm
        self.curve = train.curve
        self.num_steps = len(self.curve.loss)
        """Those of the curve, whatever number the result states."""

    @property
    def declared(self) -> Declaration | None:
        """Return what the method declared."""
        return self.proof.declared

    @cached_property
    def spans(self) -> list[Span]:
        """Return the blocks that the loop saw trainable, over all steps."""
        return spans_of([(entry.step, entry.blocks) for entry in self.train.block_activity], self.num_steps)

    @cached_property
    def visited(self) -> frozenset[int]:
        """Return the blocks that were trainable at some step."""
        return frozenset().union(*(span.blocks for span in self.spans))

    @cached_property
    def _rates(self) -> list[float]:
        """Return the learning rate of each step as far as updates come up to it; 0 where there was no gradient."""
        curve = self.curve
        norms: Sequence[float | None] = curve.grad_norm or (None,) * self.num_steps
        steps = zip(curve.learning_rate, norms, curve.trained_tokens, curve.trainable_params, strict=False)
        return [
            rate * self._share(norm, num_params) if tokens > 0 and norm != 0.0 and math.isfinite(rate) else 0.0
            for rate, norm, tokens, num_params in steps
        ]

    def _share(self, norm: float | None, num_params: int) -> float:
        """Return the share of a learning rate by which gradients of a norm, clipped, move weights on average."""
        damping = 0.0 if self.declared is None else self.declared.damping
        if not damping or num_params <= 0:
            return 1.0
        known = USUAL_NORM if norm is None or not norm > 0.0 else norm
        clipped = known if self.max_grad_norm is None else min(known, self.max_grad_norm)
        return min(1.0, clipped / math.sqrt(num_params) / damping)

    @cached_property
    def largest_rate(self) -> float:
        """Return the largest learning rate at which something was trained."""
        return max(self._rates, default=0.0)

    @cached_property
    def largest_rates(self) -> dict[int, float]:
        """Return the largest learning rate at which each visited block was trained."""
        found = dict.fromkeys(self.visited, 0.0)
        for first, end, blocks in self.spans:
            largest = max(self._rates[first:end], default=0.0)
            for block in blocks:
                found[block] = max(found[block], largest)
        return found

    @cached_property
    def changed_blocks(self) -> frozenset[int] | None:
        """Return the blocks whose checksums differ; None where they were not taken of every block, twice."""
        return self.changed(self.proof.block_checksums_before, self.proof.block_checksums_after)

    @cached_property
    def changed_base(self) -> frozenset[int] | None:
        """Return the blocks whose own weights differ, added ones left out; None where that was not asked.

        It is not asked where nothing was added to any block: all weights are a block's own then.
        """
        before, after = self.proof.base_checksums_before, self.proof.base_checksums_after
        if not before and not after and self.declared and not any(one.num_params for one in self.declared.blocks):
            return self.changed_blocks
        return self.changed(before, after)

    @cached_property
    def changed_others(self) -> frozenset[str] | None:
        """Return which of embedding, final norm and head changed; None where that was not asked."""
        before, after = self.proof.other_checksums_before, self.proof.other_checksums_after
        if not before or before.keys() != after.keys():
            return None
        return frozenset(role for role in before if before[role] != after[role])

    def changed(self, before: Sequence[str], after: Sequence[str]) -> frozenset[int] | None:
        """Return where two lists of checksums differ; None where they are not of every block."""
        if not before or not len(before) == len(after) == self.train.num_blocks:
            return None
        return frozenset(index for index, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1])


def spans_of(entries: Sequence[tuple[int, Iterable[int]]], num_steps: int) -> list[Span]:
    """Return the spans of all steps, from entries that hold until the next; no block before the first."""
    found: list[Span] = []
    first, now = 0, frozenset[int]()
    for step, blocks in [*entries, (num_steps, ())]:
        end = min(step, num_steps)
        if end > first:
            found.append(Span(first, end, now))
            first = end
        now = frozenset(blocks)
    return found


def cut_at(spans: Sequence[Span], steps: Sequence[int]) -> list[Span]:
    """Return the same steps in spans none of which goes over one of ``steps``, which ascend."""
    found = []
    for first, end, blocks in spans:
        edges = [first, *steps[bisect_right(steps, first) : bisect_left(steps, end)], end]
        found += [Span(one, other, blocks) for one, other in pairwise(edges)]
    return found


def part(declared: Declaration, block: int) -> DeclaredPart:
    """Return what is declared of a block, nothing of one beyond the last."""
    return declared.blocks[block] if 0 <= block < len(declared.blocks) else DeclaredPart()
