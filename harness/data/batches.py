"""Examples become micro-batches in a seeded order: one example a row, padded on the right to the longest, or packed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from harness.conversation import ConversationTemplate
from harness.data.examples import Example, Row, check_dialogues, encode, pack, text_samples
from harness.encoding import TextEncoder, text_encoder
from harness.errors import HarnessError, Refused
from harness.settings import TextSettings, TrainSettings
from harness.tensors.seeding import torch_generator

IGNORED = -100
"""Label of a token without loss, as in torch's cross-entropy."""

NOTHING_PREDICTED = "sequence_length = 1 leaves no token that another could predict: give 2 or more"


@dataclass(frozen=True)
class RowCounts:
    """What is to be told of rows, besides their number; counts of several batches add up."""

    cut_tokens: int = 0
    """Tokens that ``sequence_length`` left out."""
    cut_answers: int = 0
    """Rows whose answer lost its end."""
    begun: int = 0
    """Rows whose text began with the tokenizer's beginning."""
    ended: int = 0
    """Rows whose text ended with the end-of-sequence token."""

    def __add__(self, other: RowCounts) -> RowCounts:
        """Return the counts of both."""
        return RowCounts(**{name: count + getattr(other, name) for name, count in vars(self).items()})


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model at once."""

    input_ids: torch.Tensor  # (rows, length) int64
    labels: torch.Tensor  # (rows, length) int64, IGNORED where there is no loss
    attention_mask: torch.Tensor | None  # (rows, length) int64, 0 on padding; None when there is none
    num_tokens: int
    """Padding left out."""
    num_trained_tokens: int
    """Labels that the loss sees: the first token of a row has nothing to be predicted from."""
    num_truncated: int = 0
    """Rows that lost tokens to ``sequence_length``."""
    told: RowCounts = RowCounts()
    """What else is to be told of the rows."""
    trained_positions: torch.Tensor | None = None  # (num_trained_tokens,) int64
    """Positions in the flattened input whose next token is trained; None: every position but a row's last."""

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors of the batch."""
        every = (self.input_ids, self.labels, self.attention_mask, self.trained_positions)
        return [tensor for tensor in every if tensor is not None]

    def to(self, device: torch.device, *, masked: bool = True) -> MicroBatch:
        """Return the batch on a device; the mask, where there is one, stays behind unless ``masked``."""
        batch = self if masked else replace(self, attention_mask=None)
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(batch).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(batch, **moved)


def collate(examples: Sequence[Example], pad_id: int) -> MicroBatch:
    """Return examples as one micro-batch, padded on the right to the longest."""
    length = max(len(example.ids) for example in examples)
    padded = any(len(example.ids) < length for example in examples)
    input_ids = torch.full((len(examples), length), pad_id, dtype=torch.int64)
    labels = torch.full((len(examples), length), IGNORED, dtype=torch.int64)
    mask = torch.zeros((len(examples), length), dtype=torch.int64)
    for row, example in enumerate(examples):
        ids = torch.tensor(example.ids, dtype=torch.int64)
        size = len(example.ids)
        input_ids[row, :size] = ids
        labels[row, :size] = torch.where(torch.tensor(example.trained), ids, IGNORED)
        mask[row, :size] = 1
    return MicroBatch(
        input_ids,
        labels,
        mask if padded else None,
        num_tokens=int(mask.sum()),
        num_trained_tokens=int((labels[:, 1:] != IGNORED).sum()),
        num_truncated=sum(example.truncated for example in examples),
        told=RowCounts(
            cut_tokens=sum(example.cut_before + example.cut_after for example in examples),
            cut_answers=sum(example.cut_after > 0 for example in examples),
            begun=sum(example.begun for example in examples),
            ended=sum(example.ended for example in examples),
        ),
        trained_positions=_trained_positions(labels),
    )


def _trained_positions(labels: torch.Tensor) -> torch.Tensor:
    """Return the positions in the flattened (rows, length) labels whose next token of the same row carries loss."""
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != IGNORED
    return predicts.flatten().nonzero()[:, 0]


class TrainData:
    """The encoded training rows of a run, and the order in which steps see them."""

    def __init__(
        self,
        rows: Sequence[Row | Example],
        tokenizer: Any,
        settings: TrainSettings,
        seed: int,
        conversation: ConversationTemplate | None = None,
    ) -> None:
        """Take the rows, blank ones left out; packed ones are encoded here.

        Examples need no tokenizer: it may be None.

        Raises:
            HarnessError: there is nothing to train on.
        """
        if settings.sequence_length < 2:
            raise HarnessError(NOTHING_PREDICTED)
        self._settings = settings
        self._seed = seed
        self._tokenizer = tokenizer
        self._text = None if tokenizer is None else text_encoder(tokenizer)
        self._conversation = conversation
        self._rows = _not_blank(rows, self._text)
        check_dialogues(self._rows, self._text, settings, conversation)
        self.num_blank = len(rows) - len(self._rows)
        """Rows that hold nothing but special tokens, and were left out."""
        self._packed: list[Example] | None = None
        self.packing_counts: dict[str, int] = {}
        """What packing kept and left out, by field of the record; empty without packing."""
        if settings.packing:
            examples = [encode(row, self._text, settings, conversation) for row in self._rows]
            packed = pack(examples, settings.sequence_length)
            self._packed = [example for example in packed if any(example.trained[1:])]
            total, length = sum(len(example.ids) for example in examples), settings.sequence_length
            self.packing_counts = {
                "num_packed_tokens": len(self._packed) * length,
                "num_unpacked_tokens": total - len(packed) * length,
                "num_untrained_rows": len(packed) - len(self._packed),
            }
        if not len(self):
            raise HarnessError(f"data set '{settings.data}' holds no example with a token to train on")

    def __len__(self) -> int:
        """Return the number of examples of one epoch."""
        return len(self._rows if self._packed is None else self._packed)

    def example(self, index: int) -> Example:
        """Return one example; unpacked rows are encoded when they are asked for, so that a run starts at once."""
        if self._packed is not None:
            return self._packed[index]
        return encode(self._rows[index], self._text, self._settings, self._conversation)

    def num_steps(self, max_steps: int | None) -> int:
        """Return the optimizer steps of the run."""
        settings = self._settings
        if settings.num_steps is not None:
            steps = settings.num_steps
        else:
            assert settings.num_epochs is not None
            rows = settings.batch_size * settings.gradient_accumulation_steps
            steps = max(1, math.ceil(len(self) * settings.num_epochs / rows))
        return steps if max_steps is None else min(steps, max_steps)

    def step_batches(self, first_step: int = 0) -> Iterator[list[MicroBatch]]:
        """Yield the micro-batches of each optimizer step, for ever, from ``first_step`` on."""
        size, accumulation = self._settings.batch_size, self._settings.gradient_accumulation_steps
        order = self.order(first_step * size * accumulation)
        fill = pad_id(self._tokenizer)
        while True:
            batches = [collate([self.example(next(order)) for _ in range(size)], fill) for _ in range(accumulation)]
            if not any(batch.num_trained_tokens for batch in batches):
                raise HarnessError(
                    f"data set '{self._settings.data}': the {size * accumulation} rows of a step hold no token to "
                    "train on; look at them with harness show-data"
                )
            yield batches

    def stream_batch(self, stream: str, index: int, num_rows: int) -> MicroBatch:
        """Return the ``index``-th so many rows, 0-based, of an order of the examples that is a named stream's own.

        Raises:
            HarnessError: they hold no token to train on.
        """
        order = self.order(index * num_rows, stream)
        batch = collate([self.example(next(order)) for _ in range(num_rows)], pad_id(self._tokenizer))
        if not batch.num_trained_tokens:
            raise HarnessError(
                f"data set '{self._settings.data}': {num_rows} rows, on which the method takes a loss of its own, hold "
                "no token to train on; look at them with harness show-data"
            )
        return batch

    def refuse_more_rows_at_once(self, num_rows: int) -> None:
        """Refuse a method's passes over more rows than there are, which would hold some of them twice.

        Raises:
            Refused: how many there are.
        """
        if num_rows > len(self):
            raise Refused(
                f"the method takes the loss of {num_rows:,} training rows at once, and data set "
                f"'{self._settings.data}' has {len(self):,} to train on: lower their number"
            )

    def order(self, position: int = 0, stream: str = "data_order") -> Iterator[int]:
        """Yield the index of the example at a position of a stream, of the next, and so on, for ever."""
        return shuffled(len(self), self._seed, stream, position)


def shuffled(number: int, seed: int, stream: str, position: int = 0) -> Iterator[int]:
    """Yield the indices of so many examples from a position of a stream on, an epoch after the other, for ever."""
    epoch, offset = divmod(position, number)
    while True:
        permutation = torch.randperm(number, generator=torch_generator(seed, f"{stream}/{epoch}")).tolist()
        yield from permutation[offset:]
        epoch, offset = epoch + 1, 0


def validation_batches(
    rows: Sequence[Row | Example],
    tokenizer: Any,
    settings: TrainSettings,
    conversation: ConversationTemplate | None = None,
) -> list[MicroBatch]:
    """Return the fixed held-out batch of a run: the first ``validation_rows`` rows, in micro-batches, never packed.

    Raises:
        HarnessError: they hold no token that is predicted.
    """
    unpacked = settings.model_copy(update={"packing": False})
    text = None if tokenizer is None else text_encoder(tokenizer)
    examples = [encode(row, text, unpacked, conversation) for row in _not_blank(rows, text)[: settings.validation_rows]]
    size = settings.batch_size
    batches = [collate(examples[i : i + size], pad_id(tokenizer)) for i in range(0, len(examples), size)]
    if not any(batch.num_trained_tokens for batch in batches):
        raise HarnessError(f"data set '{settings.data}': its held-out rows hold no token to take a loss of")
    return batches


def _not_blank(rows: Sequence[Row | Example], text: TextEncoder | None) -> Sequence[Row | Example]:
    """Return the rows without those that hold nothing but special tokens; examples are taken as they are."""
    if text is None or (rows and isinstance(rows[0], Example)):
        return rows
    return [row for row in rows if isinstance(row, Example) or not text.is_blank(row.output)]


def general_batches(
    texts: Sequence[str], tokenizer: Any, settings: TextSettings, train: TrainSettings
) -> list[MicroBatch]:
    """Return samples of the general text, all of whose tokens carry loss, no more at once than a training micro-batch.

    Raises:
        HarnessError: as :func:`text_samples`.
    """
    if settings.sequence_length < 2:
        raise HarnessError(f"[general]: {NOTHING_PREDICTED}")
    samples = text_samples(texts, tokenizer, settings, "general")
    examples = [Example(tuple(ids), (True,) * len(ids)) for ids in samples]
    size = max(1, train.batch_size * train.sequence_length // settings.sequence_length)
    return [collate(examples[i : i + size], pad_id(tokenizer)) for i in range(0, len(examples), size)]


def pad_id(tokenizer: Any) -> int:
    """Return the id that fills rows up; no token with a loss sees it: any will do, and 0 does without a tokenizer."""
    if tokenizer is None:
        return 0
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
