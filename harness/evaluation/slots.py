"""Continuous batching: rows that end leave at once, and waiting prompts enter in their places.

A static batch runs until its longest answer ends, and every row with it. Here a fixed number of slots
(:mod:`harness.evaluation.slot_cache`) is kept full: each step writes one token in every slot, a row that has ended
gives its slot away, and a prompt is read into it, in pieces that fit in the processor's caches, before the next step.
Rows never see each other, so an answer is the one of its prompt alone but for rounding, and what is drawn comes from
the request's own stream. Where memory runs out, rows in flight are read again with what they had written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.evaluation.packing import MIN_STEM_TOKENS
from harness.evaluation.slot_cache import SLOT_ATTENTION, Decoding, Entering, SlotCache, SlotPass, Stem
from harness.tensors.causality import is_known_causal
from harness.tensors.out_of_memory import is_out_of_memory
from harness.tensors.rotary import reset_rotation, rotation_limit
from harness.tensors.sharded import is_sharded

SLOT_ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""``model_type`` of the decoders whose attention hands the keyword arguments of ``forward`` on to the attention
function, and reads nothing else of the cache than what ``update`` returns (transformers 5.23.0)."""

PIECE_TOKENS = 256
"""Tokens of a prompt read at once on a CPU: more leave its caches between two operations. Measured by us."""

CPU_KEPT_TOKENS = 4
"""Tokens whose keys and values are kept on a CPU for each of the budget. Chosen by us."""

SLOW_ROWS = range(7, 16)
"""Rows of a step that a CPU multiplies slower than one more: MKL 2024.2 takes 1.1 to 1.6 times as long for
them as for 16, in products of 576 columns and fp32. Measured by us."""

MIN_PASS_TOKENS = 64
"""Budget under which a single row is not tried again when memory runs out. Chosen by us."""


@dataclass(frozen=True)
class Ask:
    """One prompt to be answered."""

    index: int
    prompt: tuple[int, ...]
    """Its tokens, those of the stem among them; at least one stands behind the stem."""
    limit: int
    """Most tokens of the answer, at least one."""
    ends: Callable[[list[int]], bool]
    """Whether the answer ends with the last of the tokens written so far."""
    choose: Callable[[torch.Tensor, list[int]], int] | None = None
    """The next token by its logits, (1, vocab) fp32, and all tokens before it; None: the likeliest."""


@dataclass
class _Row:
    """An answer in the making."""

    ask: Ask
    written: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    """Tokens behind the stem whose keys and values the slot holds."""


class Slots:
    """Answers prompts with one model; it must be in evaluation mode, and :func:`takes_slots` true of it."""

    def __init__(
        self,
        model: Any,
        device: torch.device,
        *,
        batch_tokens: Callable[[], int],
        back_off: Callable[[], None],
        on_end: Callable[[Ask, list[int]], None],
        on_read: Callable[[int], None] = lambda tokens: None,
        shares: bool = True,
    ) -> None:
        """Take a model.

        Args:
            model: A transformers causal language model on ``device``, peft-wrapped or not.
            device: Where inputs go.
            batch_tokens: The budget: tokens of one pass, and of all slots (:func:`most_slots`).
            back_off: Lowers the budget, after memory ran out.
            on_end: Called with each answer's tokens as it ends; the last may be one that ends a sequence.
            on_read: Called with the number of tokens of prompts that went through the model.
            shares: Whether a prompt takes keys and values over from another slot that begins alike.
        """
        self._model, self._device = model, device
        self._batch_tokens, self._back_off = batch_tokens, back_off
        self._on_end, self._on_read, self._shares = on_end, on_read, shares
        self._waiting: deque[_Row] = deque()
        self._rows: list[_Row | None] = []
        self._held: list[list[int]] = []
        self._cache: SlotCache | None = None

    @torch.no_grad()
    def answer(self, asks: Sequence[Ask], stem: Callable[[], Stem | None] = lambda: None) -> None:
        """Answer prompts, which enter in their order.

        Args:
            asks: At best the longest first, as rows of one length cost least beside each other.
            stem: Encodes what all prompts begin with.

        Raises:
            MemoryError: memory ran out over a single row; also torch.OutOfMemoryError.
        """
        self._waiting = deque(_Row(ask) for ask in asks)
        while self._waiting or any(self._rows):
            try:
                if self._cache is None:
                    self._begin(stem())
                self._enter()
                self._step()
                failed = False
            except (MemoryError, RuntimeError) as error:
                alone = sum(row is not None for row in self._rows) <= 1
                if not is_out_of_memory(error) or (alone and self._batch_tokens() <= MIN_PASS_TOKENS):
                    self._end()
                    raise
                failed = True
            if failed:  # not inside except: the error holds the tensors of the failed pass
                self._waiting.extendleft(reversed([row for row in self._rows if row is not None]))
                self._end()
                self._back_off()
        self._end()

    def _begin(self, stem: Stem | None) -> None:
        """Make as many slots as the budget holds rows of the longest prompt and answer."""
        reset_rotation(self._model)
        before = 0 if stem is None else int(stem[0][0].shape[-2])
        longest = max(len(row.ask.prompt) + row.ask.limit for row in self._waiting) - before
        fitting = most_slots(self._batch_tokens(), longest, self._device, before)
        number = min(fitting, len(self._waiting))
        self._cache = SlotCache(number, stem)
        self._rows, self._held = [None] * number, [[] for _ in range(number)]

    def _end(self) -> None:
        self._cache, self._rows, self._held = None, [], []

    def _enter(self) -> None:
        """Read waiting prompts into the free slots, until there is none of either."""
        while self._waiting and None in self._rows:
            free = [slot for slot, row in enumerate(self._rows) if row is None]
            self._read(free[: self._num_together(len(free))])

    def _num_together(self, most: int) -> int:
        """Return how many of the waiting prompts are read in one pass."""
        piece, longest, number = self._piece(), 0, 0
        for row in list(self._waiting)[:most]:
            longest = max(longest, len(row.ask.prompt) + len(row.written) - self._before)
            if longest * (number + 1) > piece:
                break
            number += 1
        return max(1, number)

    def _piece(self) -> int:
        budget = self._batch_tokens()
        return min(budget, PIECE_TOKENS) if self._device.type == "cpu" else budget

    @property
    def _before(self) -> int:
        assert self._cache is not None
        return self._cache.stem_tokens

    def _read(self, slots: list[int]) -> None:
        """Read the first waiting prompts into these slots, and choose the first token of each."""
        assert self._cache is not None
        rows, texts = [], []
        for slot in slots:
            row = self._waiting.popleft()
            row.held = []
            rows.append(row)
            texts.append([*row.ask.prompt, *row.written][self._before :])
            self._rows[slot] = row
        self._cache.reserve(max(map(len, texts)) + 1)
        start = self._take_over(slots[0], texts[0]) if len(slots) == 1 else 0
        longest, piece = max(map(len, texts)), self._piece()
        logits = torch.empty(0)
        for first in range(start, longest, piece):
            pieces = [text[first : first + piece] for text in texts]  # several rows fit in one
            lengths = [len(one) for one in pieces]
            self._on_read(sum(lengths))
            tokens = torch.zeros(len(pieces), max(lengths), dtype=torch.int64)
            kept = torch.zeros(tokens.shape, dtype=torch.bool)
            for number, one in enumerate(pieces):
                tokens[number, : len(one)] = torch.tensor(one)
                kept[number, len(one) - 1] = True
            positions = torch.arange(tokens.shape[1])[None] + first
            logits = self._forward(Entering(self._cache, slots, first, lengths), tokens, positions, kept)
        for slot, row, text in zip(slots, rows, texts, strict=True):
            row.held = self._held[slot] = text
        self._choose(logits, slots)

    def _take_over(self, slot: int, text: list[int]) -> int:
        """Copy what another slot's text shares with this one; return how many tokens that are."""
        assert self._cache is not None
        best, source = 0, slot
        for other, held in enumerate(self._held if self._shares else ()):
            if held[:MIN_STEM_TOKENS] == text[:MIN_STEM_TOKENS]:
                shared = _shared(held, text[:-1])
                best, source = max((best, source), (shared, other))
        if best < MIN_STEM_TOKENS:
            return 0
        if source != slot:
            self._cache.copy(source, slot, best)
        return best

    def _step(self) -> None:
        """Write one token in every slot that is in use."""
        self._close_up()
        slots = [slot for slot, row in enumerate(self._rows) if row is not None]
        rows = [row for row in self._rows if row is not None]
        if not rows:
            return
        assert self._cache is not None and slots == list(range(len(rows)))
        lengths = [len(row.held) for row in rows]
        self._cache.reserve(max(lengths) + 1)
        padding = SLOW_ROWS.stop - len(rows) if self._device.type == "cpu" and len(rows) in SLOW_ROWS else 0
        tokens = torch.tensor([[row.written[-1]] for row in rows] + [[0]] * padding)
        places = torch.tensor(lengths + [0] * padding)[:, None]
        kept = torch.arange(len(tokens))[:, None] < len(rows)
        logits = self._forward(Decoding(self._cache, lengths, self._device), tokens, places, kept)
        for row in rows:
            row.held.append(row.written[-1])
        self._choose(logits, slots)

    def _close_up(self) -> None:
        """Move the last rows into free slots, which no prompt waits for."""
        assert self._cache is not None
        while self._rows and None in self._rows:
            last = self._rows.pop()
            if last is not None:
                free = self._rows.index(None)
                self._cache.copy(len(self._rows), free, len(last.held))
                self._rows[free], self._held[free] = last, last.held

    def _forward(self, one: SlotPass, tokens: torch.Tensor, places: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Return the logits at the kept tokens, row by row: (kept tokens, vocab)."""
        assert self._cache is not None
        with _attending(self._model), self._cache.passing(one):
            out = self._model(
                input_ids=tokens.to(self._device),
                position_ids=(places + self._before).expand(tokens.shape).to(self._device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=kept.to(self._device),
                slots=one,
            )
        return out.logits  # type: ignore[no-any-return]

    def _choose(self, logits: torch.Tensor, slots: Sequence[int]) -> None:
        """Write the next token of each slot's row; let go those that end with it."""
        likeliest = logits.float().argmax(-1).tolist()
        for number, slot in enumerate(slots):
            row = self._rows[slot]
            assert row is not None
            ask, token = row.ask, likeliest[number]
            if ask.choose is not None:
                token = ask.choose(logits[number : number + 1].float(), [*ask.prompt, *row.written])
            row.written.append(token)
            if len(row.written) >= ask.limit or ask.ends(row.written):
                self._rows[slot] = None
                self._on_end(ask, row.written)


def most_slots(batch_tokens: int, longest: int, device: torch.device, stem_tokens: int = 0) -> int:
    """Return how many rows a budget holds, at least one.

    Args:
        batch_tokens: Tokens of all prompts and answers at once; on a CPU a quarter of them, as memory is plenty there
            and a step of few rows takes hardly less time than one of many.
        longest: Tokens of the longest prompt and answer behind the stem.
        device: Where keys and values are kept.
        stem_tokens: Of the stem, which is held once.
    """
    kept = CPU_KEPT_TOKENS * batch_tokens if device.type == "cpu" else batch_tokens
    return max(1, min((kept - stem_tokens) // longest, batch_tokens))


def takes_slots(model: Any, longest: int) -> bool:
    """Return whether rows of up to so many tokens may be answered in slots.

    They may of decoders whose code was read, under sdpa attention, while no row is longer than a sliding window or
    than what positions are rotated alike for. Processes that share a model out must make the same passes.
    """
    config = model.config
    window, limit = getattr(config, "sliding_window", None), rotation_limit(model)
    attention = [module for module in model.modules() if type(module).__name__.endswith("Attention")]
    return (
        is_known_causal(model)
        and config.model_type in SLOT_ARCHITECTURES
        and config._attn_implementation == "sdpa"
        and all(module.config is config for module in attention)
        and (window is None or longest <= window)
        and (limit is None or longest <= limit)
        and not any(is_sharded(parameter) for parameter in model.parameters())
    )


@contextmanager
def _attending(model: Any) -> Iterator[None]:
    """Have the model attend over slots meanwhile."""
    config = model.config
    own, config._attn_implementation = config._attn_implementation, SLOT_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = own


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    length = min(len(left), len(right))
    return next((place for place in range(length) if left[place] != right[place]), length)
