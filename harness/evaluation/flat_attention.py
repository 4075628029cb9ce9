"""Attention over rows that lie one behind another in a single pass, each token seeing its own row and the stem.

Exact: what ``sdpa`` computes under a mask of all pairs, in another order. A block of queries sees the stem, then its
row; what all queries of the block see needs no mask, the rest of the row has an additive one. One head of keys at a
time, so that its scores stay in the processor's cache; the heads that share it are one matrix product, and no key is
copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

FLAT_ATTENTION = "harness_flat_rows"
"""The name of :func:`flat_attention` within transformers; it has no function for masks, so that none is made."""


@dataclass
class Held:
    """Keys and values of a row that is cut, by layer: (kv heads, tokens of the row, head size)."""

    length: int
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """Queries of one row that attend together."""

    queries: slice
    """Of those of the pass."""
    end: int
    """They see tokens of the row before this one."""
    mask: torch.Tensor | None = None
    """(queries, tokens) fp32, 0 or -inf, added to the scores of the last tokens before ``end``; all see the others."""
    is_causal: bool = False
    """Whether they are the first tokens of a row without a stem, each of which sees those before: sdpa's own case."""


@dataclass(frozen=True)
class Piece:
    """What a pass holds of a row."""

    place: int
    """Of its first token within the pass."""
    first: int
    end: int
    """Tokens of the row."""
    blocks: tuple[Block, ...]
    last_blocks: tuple[Block, ...]
    """Of the last layer, whose queries are those of the kept places alone."""
    held: Held | None
    """None: the row is whole."""

    def seen(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of the row up to the piece's end, (kv heads, tokens, head size); hold what is new.

        Args:
            layer: Of the decoder.
            keys: Of the pass, (kv heads, tokens of the pass, head size).
            values: Likewise.
        """
        number = self.end - self.first
        keys, values = keys.narrow(1, self.place, number), values.narrow(1, self.place, number)
        if self.held is None:
            return keys, values
        if layer not in self.held.keys:
            shape = (keys.shape[0], self.held.length, keys.shape[2])
            self.held.keys[layer], self.held.values[layer] = keys.new_empty(shape), values.new_empty(shape)
        all_keys, all_values = self.held.keys[layer], self.held.values[layer]
        all_keys[:, self.first : self.end] = keys
        all_values[:, self.first : self.end] = values
        return all_keys[:, : self.end], all_values[:, : self.end]


@dataclass
class FlatPass:
    """One forward pass over pieces of rows."""

    stem: Any
    """Cache of what stands before every row, or None."""
    pieces: list[Piece] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    """Places whose logits are asked for, ascending."""
    is_last: bool = False
    """Whether the last layer has begun: first it is asked for keys and values, then for what the kept places read."""
    last_seen: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """There, what each piece sees."""
    num_attended: int = 0
    """Calls of :func:`flat_attention`."""
    scores: torch.Tensor | None = None
    """Memory for the scores of one block after another: new memory for each costs as much as to compute them."""

    def room(self, like: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Return a matrix with undefined elements, in the same memory as the one before."""
        if self.scores is None or self.scores.numel() < rows * columns:
            self.scores = like.new_empty(rows * columns)
        return self.scores[: rows * columns].view(rows, columns)


def flat_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    flat_pass: FlatPass,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return what each token of a pass reads of those that it sees.

    Args:
        module: The attention of one layer.
        query: (1, heads, tokens, head size), fp32; of the kept places alone once ``flat_pass.last_seen`` is there.
        key: (1, kv heads, tokens, head size).
        value: Likewise.
        attention_mask: None: who sees whom, the pass knows.
        scaling: Of the scores.
        flat_pass: What the tokens are.

    Returns:
        (1, tokens, heads, head size), and no weights.
    """
    assert attention_mask is None
    flat_pass.num_attended += 1
    layer: Any = module.layer_idx
    is_second = bool(flat_pass.last_seen)
    seen = flat_pass.last_seen
    if not is_second:  # heads apart in memory: matrix products are a fifth quicker
        keys, values = key[0].contiguous(), value[0].contiguous()
        seen = [piece.seen(layer, keys, values) for piece in flat_pass.pieces]
    kv_heads, group = key.shape[1], query.shape[1] // key.shape[1]
    result = query.new_zeros(query.shape[2], kv_heads, group, query.shape[3])
    if flat_pass.is_last and not is_second:
        flat_pass.last_seen = seen
        return result.flatten(1, 2)[None], None
    grouped = query[0].view(kv_heads, group, *query.shape[2:])
    stem = None if flat_pass.stem is None else flat_pass.stem.layers[layer]
    for piece, (keys, values) in zip(flat_pass.pieces, seen, strict=True):
        if not is_second and piece.blocks[0].is_causal:
            here, end = piece.blocks[0].queries, piece.blocks[0].end
            run = (query[:, :, here], keys[None, :, :end], values[None, :, :end])
            read = scaled_dot_product_attention(*run, is_causal=True, scale=scaling, enable_gqa=group > 1)
            result[here] = read[0].view(kv_heads, group, -1, read.shape[-1]).permute(2, 0, 1, 3)
    for head in range(kv_heads):  # outermost, so that its keys and values stay in the cache
        before = [] if stem is None else [(stem.keys[0, head], stem.values[0, head])]
        for piece, (keys, values) in zip(flat_pass.pieces, seen, strict=True):
            for block in piece.last_blocks if is_second else piece.blocks:
                if block.is_causal:
                    continue
                runs = [*before, (keys[head, : block.end], values[head, : block.end])]
                read = _attended(grouped[head, :, block.queries], runs, block.mask, scaling, flat_pass)
                result[block.queries, head] = read.transpose(0, 1)
    return result.flatten(1, 2)[None], None


AttentionInterface.register(FLAT_ATTENTION, flat_attention)


def _attended(
    query: torch.Tensor,
    seen: Sequence[tuple[torch.Tensor, torch.Tensor]],
    mask: torch.Tensor | None,
    scaling: float,
    flat_pass: FlatPass,
) -> torch.Tensor:
    """Return ``softmax(scaling * query keys^T + mask) values``, (heads, queries, head size), of heads that share keys.

    Args:
        query: (heads, queries, head size).
        seen: Keys and values, (tokens, head size) each, one run behind the other.
        mask: (queries, tokens), added to the scores of the last tokens; None: all are seen.
        scaling: Of the scores.
        flat_pass: Has room for them.
    """
    heads, queries, size = query.shape
    rows = query.reshape(heads * queries, size)
    lengths = [len(keys) for keys, _ in seen]
    scores = flat_pass.room(query, len(rows), sum(lengths))
    parts = torch.split(scores, lengths, dim=1)
    for part, (keys, _) in zip(parts, seen, strict=True):
        torch.addmm(part, rows, keys.t(), beta=0, alpha=scaling, out=part)
    if mask is not None:
        scores.view(heads, queries, -1)[..., -mask.shape[1] :].add_(mask)
    torch.softmax(scores, dim=-1, out=scores)
    result = torch.mm(parts[0], seen[0][1])
    for part, (_, values) in zip(parts[1:], seen[1:], strict=True):
        result.addmm_(part, values)
    return result.view(heads, queries, size)
