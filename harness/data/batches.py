"""Training examples: rows become token ids with a loss mask, and a seeded order of micro-batches.

Two layouts, recorded in TrainSettings: one example a row, padded on the right to the longest of its micro-batch; or
packed, all examples concatenated and cut to ``sequence_length`` without regard to where one ends, as the released code
of OwLore does it (pixeli99/OwLore, block_size 512). What is an example already needs no
tokenizer.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from harness.conversation import ConversationTemplate, training_turn
from harness.errors import HarnessError
from harness.settings import TextSettings, TrainSettings
from harness.tensors.seeding import torch_generator

IGNORED = -100
"""Label of a token without loss, as in torch's cross-entropy."""

# Source: tatsu-lab/stanford_alpaca, README, the two prompts.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


class Row(Protocol):
    """One training row, as the assets give it."""

    @property
    def instruction(self) -> str:
        """Return what is asked."""

    @property
    def input(self) -> str:
        """Return what it is asked of; may be empty."""

    @property
    def output(self) -> str:
        """Return the answer."""


@dataclass(frozen=True)
class Example:
    """Token ids of one row, and which of them carry loss."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    cut_before: int = 0
    """Tokens that ``sequence_length`` left out before the first."""
    cut_after: int = 0
    """The same behind the last."""
    starts: tuple[int, ...] | None = None
    """Of a packed row: where an example of its own begins in it; None: the row is one example."""

    @property
    def truncated(self) -> bool:
        """Return whether tokens were left out."""
        return bool(self.cut_before or self.cut_after)


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
    trained_positions: torch.Tensor | None = None  # (num_trained_tokens,) int64
    """Positions in the flattened input whose next token is trained; None: every position but a row's last."""

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors of the batch."""
        return [t for t in (self.input_ids, self.labels, self.attention_mask) if t is not None]

    def to(self, device: torch.device, *, masked: bool = True) -> MicroBatch:
        """Return the batch on a device; the mask, where there is one, stays behind unless ``masked``."""
        batch = self if masked else replace(self, attention_mask=None)
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(batch).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(batch, **moved)


def encode(
    row: Row | Example, tokenizer: Any, settings: TrainSettings, conversation: ConversationTemplate | None = None
) -> Example:
    """Return a row's tokens: prompt, answer, end of sequence; too long a prompt loses its beginning.

    An example is returned as it is, without a look at the tokenizer. ``conversation`` is the template of
    ``prompt = 'conversation'``.

    Raises:
        HarnessError: the tokenizer has no end-of-sequence token, or no chat template where one is asked for.
    """
    if isinstance(row, Example):
        return row
    if tokenizer.eos_token_id is None:
        raise HarnessError("the tokenizer has no end-of-sequence token, which ends every training example")
    if settings.prompt == "conversation":
        assert conversation is not None
        prompt, answer = _turn_ids(row, tokenizer, conversation)
    elif settings.prompt == "as_is":
        prompt, answer = _as_is_ids(row, tokenizer)
    else:
        prompt = _prompt_ids(row, tokenizer, settings)
        answer = [*tokenizer(row.output, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    in_full = len(prompt), len(answer)
    if not settings.packing:
        answer = answer[: settings.sequence_length]
        room = settings.sequence_length - len(answer)
        prompt = prompt[-room:] if room else []
    on_prompt = settings.loss_on == "all"
    return Example(
        ids=(*prompt, *answer),
        trained=(*(on_prompt for _ in prompt), *(True for _ in answer)),
        cut_before=in_full[0] - len(prompt),
        cut_after=in_full[1] - len(answer),
    )


def pack(examples: Sequence[Example], length: int) -> list[Example]:
    """Return the concatenation of all examples, cut into pieces of exactly ``length`` tokens; the rest is dropped."""
    ids = [token for example in examples for token in example.ids]
    trained = [flag for example in examples for flag in example.trained]
    begins = [0, *itertools.accumulate(len(example.ids) for example in examples)]
    packed = []
    for start in range(0, len(ids) - length + 1, length):
        first, behind = bisect_left(begins, start), bisect_left(begins, start + length)
        packed.append(
            Example(
                tuple(ids[start : start + length]),
                tuple(trained[start : start + length]),
                starts=tuple(begin - start for begin in begins[first:behind]),
            )
        )
    return packed


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
        """Take the rows; packed ones are encoded here. Examples need no tokenizer: it may be None.

        Raises:
            HarnessError: there is nothing to train on.
        """
        self._settings = settings
        self._seed = seed
        self._tokenizer = tokenizer
        self._conversation = conversation
        self._rows = rows
        self._packed: list[Example] | None = None
        if settings.packing:
            examples = [encode(row, tokenizer, settings, conversation) for row in rows]
            packed = pack(examples, settings.sequence_length)
            self._packed = [example for example in packed if any(example.trained[1:])]
        if not len(self):
            raise HarnessError(f"data set '{settings.data}' holds no example with a token to train on")

    def __len__(self) -> int:
        """Return the number of examples of one epoch."""
        return len(self._rows if self._packed is None else self._packed)

    def example(self, index: int) -> Example:
        """Return one example; unpacked rows are encoded when they are asked for, so that a run starts at once."""
        if self._packed is not None:
            return self._packed[index]
        return encode(self._rows[index], self._tokenizer, self._settings, self._conversation)

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
            yield [collate([self.example(next(order)) for _ in range(size)], fill) for _ in range(accumulation)]

    def order(self, position: int = 0) -> Iterator[int]:
        """Yield the index of the example at a position of the run, of the next, and so on, for ever."""
        epoch, offset = divmod(position, len(self))
        while True:
            generator = torch_generator(self._seed, f"data_order/{epoch}")
            permutation = torch.randperm(len(self), generator=generator).tolist()
            yield from permutation[offset:]
            epoch, offset = epoch + 1, 0


def validation_batches(
    rows: Sequence[Row | Example],
    tokenizer: Any,
    settings: TrainSettings,
    conversation: ConversationTemplate | None = None,
) -> list[MicroBatch]:
    """Return the fixed held-out batch of a run: the first ``validation_rows`` rows, in micro-batches, never packed."""
    unpacked = settings.model_copy(update={"packing": False})
    examples = [encode(row, tokenizer, unpacked, conversation) for row in rows[: settings.validation_rows]]
    size = settings.batch_size
    return [collate(examples[i : i + size], pad_id(tokenizer)) for i in range(0, len(examples), size)]


def text_samples(texts: Sequence[str], tokenizer: Any, settings: TextSettings, what: str) -> list[list[int]]:
    """Return ``num_samples`` sequences of ``sequence_length`` token ids, cut from the texts in their order.

    Args:
        texts: An empty line is set between any two.
        tokenizer: The model's.
        settings: How many, how long.
        what: What the texts are for, in a message.

    Raises:
        HarnessError: the texts do not hold enough tokens.
    """
    length, needed = settings.sequence_length, settings.num_samples * settings.sequence_length
    ids: list[int] = []
    for text in texts:
        ids.extend(tokenizer(f"{text}\n\n", add_special_tokens=False)["input_ids"])
        if len(ids) >= needed:
            break
    if len(ids) < needed:
        raise HarnessError(
            f"{what} data '{settings.data}' holds {len(ids)} tokens, fewer than the {needed} that "
            f"{settings.num_samples} samples of {settings.sequence_length} need; lower one of them"
        )
    return [ids[start : start + length] for start in range(0, needed, length)]


def general_batches(
    texts: Sequence[str], tokenizer: Any, settings: TextSettings, train: TrainSettings
) -> list[MicroBatch]:
    """Return samples of the general text, all of whose tokens carry loss, no more at once than a training micro-batch.

    Raises:
        HarnessError: as :func:`text_samples`.
    """
    samples = text_samples(texts, tokenizer, settings, "general")
    examples = [Example(tuple(ids), (True,) * len(ids)) for ids in samples]
    size = max(1, train.batch_size * train.sequence_length // settings.sequence_length)
    return [collate(examples[i : i + size], pad_id(tokenizer)) for i in range(0, len(examples), size)]


def pad_id(tokenizer: Any) -> int:
    """Return the id that fills rows up; no token with a loss sees it: any will do, and 0 does without a tokenizer."""
    if tokenizer is None:
        return 0
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def _turn_ids(row: Row, tokenizer: Any, conversation: ConversationTemplate) -> tuple[list[int], list[int]]:
    """Return prompt and answer of a row in a conversation template.

    The answer is what the encoding of the whole turn adds to that of the prompt, as generation will continue it.
    """
    turn = training_turn(conversation, _content(row), row.output, tokenizer.eos_token)
    prompt, answer = _split_ids(turn.prompt, turn.whole, tokenizer)
    return prompt, answer if turn.closed and answer else [*answer, tokenizer.eos_token_id]


def _as_is_ids(row: Row, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return prompt and answer of a row with nothing added but a space between them, as lm-eval joins the two."""
    prompt = "\n".join(filter(None, (row.instruction, row.input)))
    between = " " if prompt and not prompt[-1].isspace() else ""
    shared, answer = _split_ids(prompt, f"{prompt}{between}{row.output}", tokenizer)
    return shared, [*answer, tokenizer.eos_token_id]


def _split_ids(prompt: str, whole: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return what the encodings of a prompt and of the whole begin with alike, and what the whole's adds."""
    before, both = list(tokenizer(prompt)["input_ids"]), list(tokenizer(whole)["input_ids"])
    shared = 0
    while shared < min(len(before), len(both)) and before[shared] == both[shared]:
        shared += 1
    return both[:shared], both[shared:]


def _content(row: Row) -> str:
    """Return what a user would say: the instruction, and its input below it."""
    return f"{row.instruction}\n\n{row.input}" if row.input else row.instruction


def _prompt_ids(row: Row, tokenizer: Any, settings: TrainSettings) -> list[int]:
    if settings.prompt == "chat":
        if not tokenizer.chat_template:
            raise HarnessError(
                f"the tokenizer has no chat template, which prompt = 'chat' needs; use 'alpaca' or 'plain' for "
                f"data set '{settings.data}'"
            )
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _content(row)}], tokenize=False, add_generation_prompt=True
        )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if settings.prompt == "alpaca":
        template = ALPACA_WITH_INPUT if row.input else ALPACA
        text = template.format(instruction=row.instruction, input=row.input)
    else:
        text = f"{row.instruction}\n{row.input}\n" if row.input else f"{row.instruction}\n"
    return list(tokenizer(text)["input_ids"])
