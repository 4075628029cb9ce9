"""Rows become examples: token ids, and which of them carry loss.

What is an example already needs no tokenizer. Packed, all examples are concatenated and cut to ``sequence_length``
without regard to where one ends, as the released code of OwLore does it (pixeli99/OwLore, block_size 512).
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from harness.conversation import ConversationTemplate, training_turn
from harness.errors import HarnessError
from harness.settings import TextSettings, TrainSettings

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
