"""Conversations as tokens: turns of any number in a tokenizer's chat template, or in one that the suite names.

One answer behind its prompt is written and split as any other row (``harness.conversation``). Of several answers each
is found in the text by what the template puts around turns (``harness.turns``), and its tokens by the rule of
``harness.encoding``. A chat template that rewrites earlier turns is taken where it marks answers itself with
``{% generation %}``, as transformers' ``return_assistant_tokens_mask`` finds them, an end-of-sequence token behind a
mark being the answer's; else it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from jinja2 import TemplateError

from harness.conversation import (
    ConversationTemplate,
    TrainingTurn,
    answer_ends,
    chat_turn,
    messages,
    spoken,
    training_turn,
    write_chat,
    write_conversation,
)
from harness.encoding import TextEncoder
from harness.errors import HarnessError
from harness.turns import Rewritten, Turn, TurnWriter

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
V = TypeVar("V")


@dataclass(frozen=True)
class Dialogue:
    """A conversation as tokens."""

    ids: list[int]
    answers: list[bool]
    """Which tokens are an answer's."""
    last: int
    """Where the last answer begins."""
    begun: bool
    """Whether the text began with the tokenizer's beginning."""
    ended: bool
    """Whether the last answer ended with the end-of-sequence token itself."""


class DialogueWriter:
    """Conversations in one template."""

    def __init__(self, text: TextEncoder, template: ConversationTemplate | None) -> None:
        """Take a tokenizer, and a template; None: the tokenizer's own."""
        self._text = text
        self._template = template
        end = str(text.tokenizer.eos_token)
        if template is None:
            self._writer = TurnWriter(partial(write_chat, text.tokenizer), (end,))
        else:
            self._writer = TurnWriter(lambda turns, _: write_conversation(template, turns), answer_ends(template, end))
        self._marks = template is None and bool(MARKED.search(str(text.tokenizer.get_chat_template())))

    def written(self, turns: Sequence[Turn]) -> TrainingTurn | Dialogue:
        """Return turns in the words of their template, or, of several answers, as tokens.

        Raises:
            HarnessError: as :meth:`check`.
        """
        only = self._only_answer(turns)
        return self._dialogue(turns) if only is None else only

    def _only_answer(self, turns: Sequence[Turn]) -> TrainingTurn | None:
        """Return turns of which nothing but the last carries loss, in the words of their template; None: more does."""
        if sum(turn.is_answer for turn in turns) > 1 or all(turn.role != "user" for turn in turns[:-1]):
            return None
        answer = turns[-1].content
        if self._template is None:
            return self._said(lambda: chat_turn(self._text.tokenizer, turns[:-1], answer))
        system, said = spoken(self._template, turns)
        if len(said) > 2:
            return None
        return training_turn(self._template, said[0], answer, self._text.tokenizer.eos_token, system)

    def check(self, turns: Sequence[Turn]) -> None:
        """Refuse turns that cannot be written so that their answers can be told, before anything is trained.

        Raises:
            HarnessError: they cannot.
        """
        if self._only_answer(turns) is not None:
            return
        try:
            self._said(lambda: self._writer.written(turns))
        except Rewritten as error:
            if not self._marks:
                raise self._refusal(error) from error
            self._marked(turns)

    def _dialogue(self, turns: Sequence[Turn]) -> Dialogue:
        """Return turns of several answers as tokens."""
        rendered = self._template is None
        try:
            written = self._said(lambda: self._writer.written(turns))
        except Rewritten as error:
            if not self._marks:
                raise self._refusal(error) from error
            return self._marked(turns)
        ids = self._text.ids(written.text, rendered=rendered)
        answers, last = [False] * len(ids), 0
        for begin, end in written.answers:
            last, _ = self._text.places(ids, written.text[:begin], rendered=rendered)
            _, behind = self._text.places(ids, written.text[:end], rendered=rendered)
            answers[last:behind] = [True] * (behind - last)
        own_end = not written.closed and self._text.ends(ids)
        if not (written.closed or own_end):
            ids.append(self._text.tokenizer.eos_token_id)
            answers.append(True)
        begun = not rendered and self._text.is_begun(written.text)
        return Dialogue(ids, answers, last, begun, ended=own_end or written.ended)

    def _marked(self, turns: Sequence[Turn]) -> Dialogue:
        """Return turns as tokens by the marks of their template, up to the end of the last answer."""
        tokenizer = self._text.tokenizer
        try:
            found: Any = self._said(
                lambda: tokenizer.apply_chat_template(
                    messages(turns), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
                )
            )
        except ValueError as error:  # a tokenizer that does not say which character a token came from
            raise HarnessError(
                f"the tokenizer cannot tell what its chat template marks as an answer: {error}"
            ) from error
        ids, answers = list(found["input_ids"]), [bool(flag) for flag in found["assistant_masks"]]
        runs = _runs(answers)
        wanted = [turn.trained for turn in turns if turn.role == "assistant"]
        if len(runs) != len(wanted):
            raise HarnessError(
                f"the tokenizer's chat template marks {len(runs)} answers with {{% generation %}}, and the "
                f"conversation has {len(wanted)}"
            )
        eos, answers, end = tokenizer.eos_token_id, [False] * len(ids), 0
        for (start, behind), trained in zip(runs, wanted, strict=True):
            ends = [place + 1 for place in range(start, min(behind + 1, len(ids))) if ids[place] == eos]
            end = ends[-1] if ends else behind
            answers[start:end] = [trained] * (end - start)
        ids, answers = ids[:end], answers[:end]
        if ids[-1] != eos:
            ids.append(eos)
            answers.append(True)
        return Dialogue(ids, answers, runs[-1][0], begun=False, ended=False)

    def _said(self, write: Callable[[], V]) -> V:
        """Return what a template writes; what it refuses is said in one sentence."""
        try:
            return write()
        except TemplateError as error:
            raise HarnessError(f"the tokenizer's chat template refuses it: {' '.join(str(error).split())}") from error

    def _refusal(self, error: Rewritten) -> HarnessError:
        whose = "the tokenizer's chat template" if self._template is None else f"template '{self._template.name}'"
        instead = "prompt = 'conversation'" if self._template is None else "another template"
        return HarnessError(
            f"{whose} rewrites turns ({error}), so that which tokens of several answers carry loss cannot be told: "
            f"take {instead}, a chat template that marks answers with {{% generation %}}, or rows of one answer each"
        )


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Return where each run of what is true begins, and where it ends."""
    padded = [False, *flags, False]
    edges = [place for place in range(len(flags) + 1) if padded[place] != padded[place + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))
