"""Keys and values of rows that are generated side by side, each of a length of its own, and the attention over them.

A *slot* is the place of one row in one tensor a layer, so that a row that ends gives its place to the next one without
any other being copied. What all rows begin with, the *stem*, is held once. The cache is handed to a transformers model
like any other; attention is a function of ours, registered under ``SLOT_ATTENTION``, because transformers' own, under
a mask, first copies grouped keys and values for each query head (5.23.0, integrations/sdpa_attention.py,
``repeat_kv``): on a CPU that takes ten times the attention itself. Queries that share a head of keys are attended to
together instead, as if they were consecutive tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache

SLOT_ATTENTION = "harness_slots"
GROWTH = 1.25
"""How much longer slots get when a row outgrows them. Chosen by us."""

Stem = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer: (1, key heads, stem tokens, head size)."""


class SlotPass(Protocol):
    """One forward pass over some slots."""

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep the keys and values of the pass's tokens: (rows, key heads, tokens, head size)."""

    def attend(
        self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Return what each token reads: (rows, tokens, heads, head size)."""


class SlotCache(DynamicCache):  # type: ignore[misc]
    """Keys and values of all slots."""

    def __init__(self, num_slots: int, stem: Stem | None) -> None:
        """Make empty slots behind a stem that all of them share."""
        super().__init__()
        self.stem = stem
        self.num_slots = num_slots
        self.capacity = 0
        self.keys: list[torch.Tensor] = []
        """Of each layer: (slots, key heads, capacity, head size); zero where nothing was written, as garbage times a
        weight of zero may be no number."""
        self.values: list[torch.Tensor] = []
        self.current: SlotPass | None = None

    @property
    def stem_tokens(self) -> int:
        """Return how many tokens stand before every slot."""
        return 0 if self.stem is None else int(self.stem[0][0].shape[-2])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep what one layer made of a pass's tokens, and return it."""
        if layer_idx == len(self.keys):
            shape = (self.num_slots, key_states.shape[1], self.capacity)
            self.keys.append(key_states.new_zeros(*shape, key_states.shape[-1]))
            self.values.append(value_states.new_zeros(*shape, value_states.shape[-1]))
        assert self.current is not None
        self.current.write(layer_idx, key_states, value_states)
        return key_states, value_states

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens in every slot."""
        if tokens <= self.capacity:
            return
        self.capacity = tokens if not self.capacity else max(tokens, int(self.capacity * GROWTH))
        for held in (self.keys, self.values):
            for layer, old in enumerate(held):  # one by one, so that a single layer is held twice
                held[layer] = old.new_zeros(*old.shape[:2], self.capacity, old.shape[-1])
                held[layer][:, :, : old.shape[2]] = old

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give a slot the first tokens of another."""
        for held in (*self.keys, *self.values):
            held[target, :, :tokens] = held[source, :, :tokens]

    @contextmanager
    def passing(self, one: SlotPass) -> Iterator[None]:
        """Take keys and values as those of one pass meanwhile."""
        self.current = one
        try:
            yield
        finally:
            self.current = None


class Entering:
    """A pass over consecutive tokens of rows that enter, padded on the right, where no token of theirs sees it."""

    def __init__(self, cache: SlotCache, slots: Sequence[int], start: int, lengths: Sequence[int]) -> None:
        """Take rows.

        Args:
            cache: Of all slots, with room.
            slots: Of each row; a single one where ``start`` is not 0.
            start: Tokens that the slot holds already.
            lengths: Tokens of each row in this pass.
        """
        assert start == 0 or len(slots) == 1
        self._cache, self._slots, self._start, self._lengths = cache, slots, start, lengths

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep the keys and values of the rows' tokens."""
        for row, (slot, length) in enumerate(zip(self._slots, self._lengths, strict=True)):
            where = slice(self._start, self._start + length)
            self._cache.keys[layer][slot, :, where] = keys[row, :, :length]
            self._cache.values[layer][slot, :, where] = values[row, :, :length]

    def attend(
        self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Return what each token reads of the stem, of what its slot holds and of the tokens before it."""
        rows, heads, tokens, size = query.shape
        if self._start:
            (slot,) = self._slots
            held = slice(0, self._start + tokens)
            keys = self._cache.keys[layer][slot : slot + 1, :, held]
            values = self._cache.values[layer][slot : slot + 1, :, held]
        if self._cache.stem is not None:
            stem_keys, stem_values = self._cache.stem[layer]
            keys = torch.cat([stem_keys.expand(rows, -1, -1, -1), keys], dim=2)
            values = torch.cat([stem_values.expand(rows, -1, -1, -1), values], dim=2)
        before = keys.shape[2] - tokens
        grouped = heads // keys.shape[1]
        read = scaled_dot_product_attention(
            query.reshape(rows * keys.shape[1], grouped, tokens, size),
            keys.flatten(0, 1)[:, None].expand(-1, grouped, -1, -1),  # (rows x key heads, group, before + tokens, size)
            values.flatten(0, 1)[:, None].expand(-1, grouped, -1, -1),
            attn_mask=_causal(tokens, before, query.device) if before else None,
            is_causal=not before,
            scale=scaling,
        )
        return read.reshape(rows, heads, tokens, -1).transpose(1, 2)


class Decoding:
    """A pass over one token of each of the first slots; rows behind them are padding."""

    def __init__(self, cache: SlotCache, lengths: Sequence[int], device: torch.device) -> None:
        """Take the first ``len(lengths)`` slots.

        Args:
            cache: Of all slots, with room for another token of each row.
            lengths: Tokens that each slot holds.
            device: Where the cache is.
        """
        self._cache, self._rows, self._longest = cache, len(lengths), max(lengths) + 1
        self._places = torch.tensor(lengths, device=device)
        self._slots = torch.arange(len(lengths), device=device)
        behind = torch.arange(self._longest, device=device) > self._places[:, None]
        self._unseen = behind[:, None, None, :]  # (rows, 1, 1, longest)

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep each row's token behind those that its slot holds."""
        self._cache.keys[layer][self._slots, :, self._places] = keys[: self._rows, :, 0]
        self._cache.values[layer][self._slots, :, self._places] = values[: self._rows, :, 0]

    def attend(
        self, layer: int, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Return what each token reads of the stem and of its slot; rows behind the slots read nothing."""
        asked, heads, _, size = query.shape
        rows, key_heads = self._rows, keys.shape[1]
        keys = self._cache.keys[layer][:rows, :, : self._longest]
        values = self._cache.values[layer][:rows, :, : self._longest]
        query = query[:rows].reshape(rows, key_heads, heads // key_heads, size)
        if self._cache.stem is None:
            read = scaled_dot_product_attention(query, keys, values, attn_mask=~self._unseen, scale=scaling)
        elif query.dtype == torch.float32:
            read = self._attend_behind_stem(query * scaling, keys, values, *self._cache.stem[layer])
        else:  # products of 16-bit tensors would be rounded before the softmax; sdpa keeps them in fp32
            stem_keys, stem_values = (part.expand(rows, -1, -1, -1) for part in self._cache.stem[layer])
            read = scaled_dot_product_attention(
                query,
                torch.cat([stem_keys, keys], dim=2),
                torch.cat([stem_values, values], dim=2),
                attn_mask=~torch.nn.functional.pad(self._unseen, (stem_keys.shape[2], 0)),
                scale=scaling,
            )
        return torch.nn.functional.pad(read.reshape(rows, 1, heads, -1), (0, 0, 0, 0, 0, 0, 0, asked - rows))

    def _attend_behind_stem(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        stem_keys: torch.Tensor,
        stem_values: torch.Tensor,
    ) -> torch.Tensor:
        """Return softmax over the stem and each row's own tokens, the stem read once for all rows.

        Args:
            query: Scaled: (rows, key heads, group, head size).
            keys: Each row's own: (rows, key heads, longest, head size).
            values: As ``keys``.
            stem_keys: (1, key heads, stem tokens, head size).
            stem_values: As ``stem_keys``.
        """
        rows, key_heads, grouped, size = query.shape
        together = query.transpose(0, 1).reshape(key_heads, rows * grouped, size)
        of_stem = (together @ stem_keys[0].transpose(1, 2)).view(key_heads, rows, grouped, -1).transpose(0, 1)
        own = (query @ keys.transpose(2, 3)).masked_fill_(self._unseen, -torch.inf)
        weights = torch.cat([of_stem, own], dim=-1).softmax(-1)
        stem_weights, own_weights = weights[..., : of_stem.shape[-1]], weights[..., of_stem.shape[-1] :]
        stem_weights = stem_weights.transpose(0, 1).reshape(key_heads, rows * grouped, -1)
        read = (stem_weights @ stem_values[0]).view(key_heads, rows, grouped, -1).transpose(0, 1)
        return (own_weights @ values).add_(read)


@functools.lru_cache(maxsize=4)
def _causal(tokens: int, before: int, device: torch.device) -> torch.Tensor:
    """Return what each of some tokens sees, those before the first included: (tokens, before + tokens) bool."""
    return torch.ones(tokens, before + tokens, dtype=torch.bool, device=device).tril(before)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    slots: SlotPass,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Return what transformers' attention modules ask of an attention function."""
    assert attention_mask is None
    return slots.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(SLOT_ATTENTION, _attend)
