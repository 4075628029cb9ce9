"""How token sequences that begin alike share one row: the shared prefix stands in it once, each rest is a branch.

A row is a trie laid out flat. A token sees its ancestors and itself, and its position counts from the root, so every
sequence reads exactly as it would alone. The choices of one question share their context this way, two continuations
of one token share everything, and so do questions behind one few-shot prefix where that is cheaper than apart.
Knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Scored:
    """One continuation to be scored."""

    index: int
    """Place of the request in the order it was asked."""
    inputs: tuple[int, ...]
    """What the model reads: context and continuation without its last token, cut from the left where too long."""
    targets: tuple[int, ...]
    """The continuation: predicted at the last ``len(targets)`` tokens of ``inputs``."""


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


def plan_rows(sequences: Iterable[Scored], *, row_tokens: int, tokens_per_key: float) -> list[Row]:
    """Return rows that hold every sequence, the longest row first.

    A sequence joins the row of its neighbour in token order when the tokens it saves cost more than the attention of
    its own tokens over the other branches, which the mask then throws away. Equal sequences always share one row, so
    that equal choices get equal scores to the last bit and the first of them wins, as in HFLM.

    Args:
        sequences: What is to be scored.
        row_tokens: Most tokens of a row that holds different sequences; 0: only equal ones share.
        tokens_per_key: How many keys a token can attend to for the cost of its matrix products.
    """
    rows: list[Row] = []
    path: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # tokens of the open row that spell the previous sequence
    previous: tuple[int, ...] = ()
    for sequence in sorted(sequences, key=lambda scored: (scored.inputs, scored.index)):
        shared = _common_prefix(previous, sequence.inputs) if rows else 0
        new = len(sequence.inputs) - shared
        row = rows[-1] if rows else None
        length = len(row.tokens) + new if row is not None else 0
        saves = new * length < shared * tokens_per_key
        if row is None or (new > 0 and (length > row_tokens or not saves)):
            row, shared, path = Row(), 0, path[:0]
            rows.append(row)
        path = _append(row, path[:shared], sequence)
        previous = sequence.inputs
    rows.sort(key=lambda row: -len(row.tokens))
    return rows


def batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Yield the rows in order, as many at once as fit in ``batch_tokens`` with padding; at least one."""
    batch: list[Row] = []
    longest = 0
    for row in rows:
        if batch and max(longest, len(row.tokens)) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, longest = [], 0
        batch.append(row)
        longest = max(longest, len(row.tokens))
    if batch:
        yield batch


def _append(row: Row, ancestors: NDArray[np.int64], sequence: Scored) -> NDArray[np.int64]:
    """Add what ``ancestors`` do not spell of a sequence; return the tokens of the row that spell it all."""
    first, new = len(row.tokens), sequence.inputs[len(ancestors) :]
    if new:
        row.tokens.extend(new)
        row.positions.extend(range(len(ancestors), len(sequence.inputs)))
        row.branches.append((first, first + len(new), ancestors))
    path = np.concatenate([ancestors, np.arange(first, first + len(new), dtype=np.int64)])
    row.scored.append((sequence.index, path[len(path) - len(sequence.targets) :], sequence.targets))
    return path


def _common_prefix(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return length
    differ = np.asarray(left[:length]) != np.asarray(right[:length])
    return int(differ.argmax())
