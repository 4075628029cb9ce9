"""How token sequences that begin alike are encoded together: what they share once, the rest of each apart.

Two ways, one inside the other. A *family* is a run of many sequences behind one long stem, as MMLU's questions behind
the shots of their subject: the stem is encoded once and its keys and values serve every row of the family. A *row* is
a trie laid out flat, as the choices of one question: a token sees its ancestors and itself, and its position counts
from the root, so every sequence reads exactly as it would alone. Knows nothing of torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MIN_STEM_TOKENS = 64
"""Shortest stem of a family: below, an encoding of its own saves too little. Chosen by us."""

MIN_FAMILY_TOKENS = 512
"""Fewest tokens behind a stem: fewer are cheaper in one row with it, in a single forward pass. Chosen by us."""

STEM_TOKENS_PER_TOKEN = 4
"""Tokens of a stem that take a row as much memory as one of its own: copies of keys and values only. Chosen by us."""


@dataclass(frozen=True)
class Scored:
    """One continuation to be scored."""

    index: int
    """Place of the request in the order it was asked."""
    inputs: tuple[int, ...]
    """What the model reads: context and continuation without its last token, cut from the left where too long."""
    targets: tuple[int, ...]
    """The continuation: predicted at the last ``len(targets)`` tokens of ``inputs``."""

    @property
    def num_free(self) -> int:
        """Return how many tokens stand before the first that predicts a target."""
        return len(self.inputs) - len(self.targets)


@dataclass
class Row:
    """One row of a batch, before padding."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branches: list[tuple[int, int, NDArray[np.int64]]] = field(default_factory=list)
    """(first, end, ancestors): tokens ``first`` to ``end`` follow each other and continue the tokens ``ancestors``."""
    scored: list[tuple[int, NDArray[np.int64], tuple[int, ...]]] = field(default_factory=list)
    """(index of the request, tokens of the row that predict its targets, targets)."""

    @property
    def is_chain(self) -> bool:
        """Return whether the row holds a single sequence, for which plain causal attention is right."""
        return len(self.branches) == 1

    def visible(self) -> NDArray[np.bool_]:
        """Return which token (column) each token (row) attends to: (tokens, tokens)."""
        mask = np.zeros((len(self.tokens), len(self.tokens)), dtype=np.bool_)
        for first, end, ancestors in self.branches:
            mask[first:end, ancestors] = True
            mask[first:end, first:end] = np.tri(end - first, dtype=np.bool_)
        return mask


@dataclass
class Family:
    """Sequences that are encoded behind one stem."""

    stem: tuple[int, ...]
    """Empty for the sequences that are encoded from their first token on."""
    sequences: list[Scored]

    def rows(self, *, row_tokens: int, tokens_per_key: float) -> list[Row]:
        """Return rows that hold what follows the stem, the longest row first; see :func:`plan_rows`."""
        return plan_rows(self.sequences, row_tokens=row_tokens, tokens_per_key=tokens_per_key, start=len(self.stem))


def plan_families(sequences: Sequence[Scored]) -> list[Family]:
    """Return the families of the sequences, those without a stem first.

    The sequences stand in token order. A run of them is one family where what all share saves at least half of what
    neighbours share, and is split where neighbours share least otherwise: first one task's shots part from the next
    one's, and questions that happen to begin alike do not part from the rest of their task.
    """
    equal: dict[tuple[int, ...], list[Scored]] = {}
    for sequence in _ordered(sequences):
        equal.setdefault(sequence.inputs, []).append(sequence)
    groups = list(equal.values())
    shared = [0, *itertools.starmap(_common_free, itertools.pairwise(groups)), 0]
    loose: list[Scored] = []
    families = []
    runs = [(0, len(groups))]
    while runs:
        first, end = runs.pop()
        run, inner = groups[first:end], shared[first + 1 : end]
        stem = min(inner, default=0)
        if max(inner, default=0) < MIN_STEM_TOKENS:
            loose += itertools.chain(*run)
        elif stem < MIN_STEM_TOKENS or 2 * stem * len(inner) < sum(inner):
            cuts = [first, *(cut for cut in range(first + 1, end) if shared[cut] == stem), end]
            runs += itertools.pairwise(cuts)
        elif sum(len(group[0].inputs) - stem for group in run) < MIN_FAMILY_TOKENS:
            loose += itertools.chain(*run)
        else:
            families.append(Family(run[0][0].inputs[:stem], list(itertools.chain(*run))))
    return [Family((), loose), *families] if loose else families


def plan_rows(sequences: Sequence[Scored], *, row_tokens: int, tokens_per_key: float, start: int = 0) -> list[Row]:
    """Return rows that hold every sequence, the longest row first.

    A sequence joins the row of its neighbour in token order when the tokens it saves cost more than the attention of
    its own tokens over the other branches, which the mask then throws away. Equal sequences always share one row, so
    that equal choices get equal scores to the last bit and the first of them wins, as in HFLM.

    Args:
        sequences: What is to be scored.
        row_tokens: Most tokens of a row that holds different sequences; 0: only equal ones share.
        tokens_per_key: How many keys a token can attend to for the cost of its matrix products.
        start: First token of each sequence that rows hold; all share those before.
    """
    rows: list[Row] = []
    path: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # tokens of the open row that spell the previous sequence
    previous: tuple[int, ...] = ()
    for sequence in _ordered(sequences):
        inputs = sequence.inputs[start:]
        shared = _common_prefix(previous, inputs) if rows else 0
        new = len(inputs) - shared
        row = rows[-1] if rows else None
        length = len(row.tokens) + new if row is not None else 0
        saves = new * length < shared * tokens_per_key
        if row is None or (new > 0 and (length > row_tokens or not saves)):
            row, shared, path = Row(), 0, path[:0]
            rows.append(row)
        path = _append(row, path[:shared], sequence, start)
        previous = inputs
    rows.sort(key=lambda row: -len(row.tokens))
    return rows


def batches(
    rows: Sequence[Row], batch_tokens: int, stem_tokens: int = 0, *, padded: bool = True
) -> Iterator[list[Row]]:
    """Yield the rows in order, as many at once as fit in ``batch_tokens`` with padding; at least one.

    Args:
        rows: In order of their length, the longest first.
        batch_tokens: Padded tokens of one forward pass.
        stem_tokens: Of the stem before all of them.
        padded: False: rows of one length alone share a batch.
    """
    batch: list[Row] = []
    longest = 0
    for row in rows:
        width = max(longest, len(row.tokens)) + stem_tokens // STEM_TOKENS_PER_TOKEN
        if batch and (width * (len(batch) + 1) > batch_tokens or not (padded or len(row.tokens) == longest)):
            yield batch
            batch, longest = [], 0
        batch.append(row)
        longest = max(longest, len(row.tokens))
    if batch:
        yield batch


def _append(row: Row, ancestors: NDArray[np.int64], sequence: Scored, start: int) -> NDArray[np.int64]:
    """Add what ``ancestors`` do not spell of a sequence; return the tokens of the row that spell it from ``start``."""
    first, new = len(row.tokens), sequence.inputs[start + len(ancestors) :]
    if new:
        row.tokens.extend(new)
        row.positions.extend(range(start + len(ancestors), len(sequence.inputs)))
        row.branches.append((first, first + len(new), ancestors))
    path = np.concatenate([ancestors, np.arange(first, first + len(new), dtype=np.int64)])
    row.scored.append((sequence.index, path[len(path) - len(sequence.targets) :], sequence.targets))
    return path


def _ordered(sequences: Sequence[Scored]) -> list[Scored]:
    return sorted(sequences, key=lambda scored: (scored.inputs, scored.index))


def _common_free(left: Sequence[Scored], right: Sequence[Scored]) -> int:
    """Return how many tokens two groups of equal sequences share before the first scored position of any."""
    free = min(sequence.num_free for sequence in (*left, *right))
    return min(free, _common_prefix(left[0].inputs, right[0].inputs))


def _common_prefix(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return length
    differ = np.asarray(left[:length]) != np.asarray(right[:length])
    return int(differ.argmax())
