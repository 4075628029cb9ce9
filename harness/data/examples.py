"""Rows become examples: token ids, and which of them carry loss.

What is an example already needs no tokenizer. Packed, all examples are concatenated and cut to ``sequence_length``
without regard to where one ends, as the released code of OwLore does it (pixeli99/OwLore, block_size 512).
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from harness.conversation import ConversationTemplate, TrainingTurn, chat_turn, training_turn
from harness.data.dialogues import Dialogue, DialogueWriter
from harness.encoding import TextEncoder, text_encoder
from harness.errors import HarnessError
from harness.settings import CONVERSATIONS, TextSettings, TrainSettings
from harness.turns import Turn

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

    @property
    def turns(self) -> Sequence[Turn]:
        """Return the turns of a conversation, which the above then is told of alone; of any other row none."""

    @property
    def place(self) -> str:
        """Return where it stands in its file; empty: in none."""


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
    begun: bool = False
    """Whether the row's text began with the tokenizer's beginning, so that none was put before it."""
    ended: bool = False
    """Whether it ended with the end-of-sequence token, so that none was put behind it."""

    @property
    def truncated(self) -> bool:
        """Return whether tokens were left out."""
        return bool(self.cut_before or self.cut_after)


def encode(
    row: Row | Example, tokenizer: Any, settings: TrainSettings, conversation: ConversationTemplate | None = None
) -> Example:
    """Return a row's tokens: prompt, answer, end of sequence; too long a prompt loses its beginning.

    Special tokens and where the answer begins are as :mod:`harness.encoding` says.

    Args:
        row: An example is returned as it is, without a look at the tokenizer.
        tokenizer: Or its :class:`harness.encoding.TextEncoder`, which many rows can share.
        settings: How the prompt is worded, what carries loss, and the length.
        conversation: Template of ``prompt = 'conversation'``.

    Raises:
        HarnessError: the tokenizer has no end-of-sequence token, or no chat template where one is asked for.
    """
    if isinstance(row, Example):
        return row
    text = text_encoder(tokenizer)
    if text.tokenizer.eos_token_id is None:
        raise HarnessError("the tokenizer has no end-of-sequence token, which ends every training example")
    on_prompt = settings.loss_on == "all"
    written, rendered = _written(row, text, settings, conversation)
    if isinstance(written, Dialogue):
        trained = [on_prompt or flag for flag in written.answers]
        prompt, answer = written.ids[: written.last], written.ids[written.last :]
        begun, ended = written.begun, written.ended
    else:
        prompt, answer = text.split(written.prompt, written.whole, rendered=rendered)
        ended = not written.closed and text.ends(answer)
        if not ((written.closed and answer) or ended):
            answer.append(text.tokenizer.eos_token_id)
        begun, ended = not rendered and text.is_begun(written.whole), ended or written.ended
        trained = [on_prompt] * len(prompt) + [True] * len(answer)
    kept, room = len(answer), len(prompt)
    if not settings.packing:
        kept = min(kept, settings.sequence_length)
        room = min(room, settings.sequence_length - kept)
    first, behind = len(prompt) - room, len(prompt) + kept
    return Example(
        ids=(*prompt[first:], *answer[:kept]),
        trained=tuple(trained[first:behind]),
        cut_before=first,
        cut_after=len(answer) - kept,
        begun=begun,
        ended=ended,
    )


def check_dialogues(
    rows: Sequence[Row | Example],
    tokenizer: Any,
    settings: TrainSettings,
    conversation: ConversationTemplate | None = None,
) -> None:
    """Refuse conversations that cannot be written so that their answers can be told, before anything is trained.

    Args:
        rows: Of any kind; of one answer each, one of every order of roles is looked at, of several answers all.
        tokenizer: As of :func:`encode`.
        settings: As of :func:`encode`.
        conversation: As of :func:`encode`.

    Raises:
        HarnessError: one cannot; the sentence names its row.
    """
    seen: set[tuple[str, ...]] = set()
    for row in rows:
        if isinstance(row, Example) or not row.turns:
            continue
        roles = tuple(turn.role for turn in row.turns)
        if sum(turn.is_answer for turn in row.turns) == 1 and roles in seen:
            continue
        seen.add(roles)
        with _of_row(row, settings):
            _writer(text_encoder(tokenizer), settings, conversation).check(row.turns)


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
    encoder = text_encoder(tokenizer)
    ids: list[int] = []
    for text in texts:
        ids.extend(encoder.bare(f"{text}\n\n"))
        if len(ids) >= needed:
            break
    if len(ids) < needed:
        raise HarnessError(
            f"{what} data '{settings.data}' holds {len(ids)} tokens, fewer than the {needed} that "
            f"{settings.num_samples} samples of {settings.sequence_length} need; lower one of them"
        )
    return [ids[start : start + length] for start in range(0, needed, length)]


@contextmanager
def _of_row(row: Row, settings: TrainSettings) -> Iterator[None]:
    """Say of which row something is that is raised inside."""
    try:
        yield
    except HarnessError as error:
        raise HarnessError(f"data set '{settings.data}'{row.place and f': {row.place}'}: {error}") from error


def _writer(text: TextEncoder, settings: TrainSettings, conversation: ConversationTemplate | None) -> DialogueWriter:
    """Return what writes the conversations of a run, made once."""
    if settings.prompt not in CONVERSATIONS:
        raise HarnessError(
            f"is a conversation, which prompt = '{settings.prompt}' cannot write: set prompt = 'chat' or 'conversation'"
        )
    template = conversation if settings.prompt == "conversation" else None
    if template is None:
        _check_template(text.tokenizer, settings)
    key = None if template is None else template.name
    if key not in text.writers:
        text.writers[key] = DialogueWriter(text, template)
    writer = text.writers[key]
    assert isinstance(writer, DialogueWriter)
    return writer


def _check_template(tokenizer: Any, settings: TrainSettings) -> None:
    if not tokenizer.chat_template:
        raise HarnessError(
            f"the tokenizer has no chat template, which prompt = 'chat' needs; use 'alpaca' or 'plain' for "
            f"data set '{settings.data}'"
        )


def _written(
    row: Row, text: TextEncoder, settings: TrainSettings, conversation: ConversationTemplate | None
) -> tuple[TrainingTurn | Dialogue, bool]:
    """Return a row in the words of its prompt style, and whether the tokenizer's own template wrote them."""
    if row.turns:
        with _of_row(row, settings):
            return _writer(text, settings, conversation).written(row.turns), settings.prompt == "chat"
    if settings.prompt == "conversation":
        assert conversation is not None
        return training_turn(conversation, _content(row), row.output, text.tokenizer.eos_token), False
    if settings.prompt == "chat":
        _check_template(text.tokenizer, settings)
        return chat_turn(text.tokenizer, [Turn("user", _content(row))], row.output), True
    prompt, between = _prompt(row, settings.prompt), ""
    if settings.prompt == "as_is" and prompt and not (prompt[-1].isspace() or row.output[:1].isspace()):
        between = " "  # as lm-eval joins the two
    return TrainingTurn(prompt, f"{prompt}{between}{row.output}", closed=False), False


def _content(row: Row) -> str:
    """Return what a user would say: the instruction, and its input below it."""
    return f"{row.instruction}\n\n{row.input}" if row.input else row.instruction


def _prompt(row: Row, style: str) -> str:
    if style == "as_is":
        return "\n".join(filter(None, (row.instruction, row.input)))
    if style == "alpaca":
        template = ALPACA_WITH_INPUT if row.input else ALPACA
        return template.format(instruction=row.instruction, input=row.input)
    return f"{row.instruction}\n{row.input}\n" if row.input else f"{row.instruction}\n"
