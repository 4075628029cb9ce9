"""Conversation templates by explicit name: how turns become prompts, of training rows and of generated answers alike.

FastChat's own templates (``fschat``, extra ``mt-bench``), and ours for what it lacks. A template is never guessed from
a model's name: FastChat's guess gives every Llama 3 its ``one_shot`` template without a word.

Ours:

- ``llama-3``: fschat 0.2.36 has none. Source: llama3/tokenizer.py, ``ChatFormat`` (meta-llama/llama3), with a system
  message where one is given. Difference from the template of that name in FastChat's later sources: the text does not
  begin with ``<|begin_of_text|>``, which the tokenizer adds.
- ``chatml``: the turns of SmolLM2's own chat template, without a system message that nobody gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Protocol

from harness.errors import HarnessError, near_miss
from harness.turns import Turn


class ConversationTemplate(Protocol):
    """How turns are written down for a model."""

    @property
    def name(self) -> str:
        """Return the name that a suite gives."""

    @property
    def origin(self) -> str:
        """Return whose template it is, with its version: what is recorded beside the name."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Return texts before which an answer ends."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Return tokens before which an answer ends, beside the tokenizer's end of sequence."""

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Return the same as texts of special tokens, whose ids the tokenizer knows."""

    def render(self, turns: Sequence[str], system: str | None = None) -> str:
        """Return the text of turns, the user's first; after a user's turn it stops where the answer begins.

        Args:
            turns: What user and assistant say, in turn.
            system: What the system says before; None: what the template has it say, if anything.
        """


@dataclass(frozen=True)
class _Own:
    """A template of ours: each turn is opened by its role and closed by one special token."""

    name: str
    opening: str
    """With the role in the place of ``{role}``."""
    closing: str
    between: str
    """What stands after the closing token."""
    origin: str = "harness"
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        return (self.closing,)

    def render(self, turns: Sequence[str], system: str | None = None) -> str:
        before = "" if system is None else f"{self.opening.format(role='system')}{system}{self.closing}{self.between}"
        roles = ["user" if number % 2 == 0 else "assistant" for number in range(len(turns) + 1)]
        text = before + "".join(
            f"{self.opening.format(role=role)}{turn}{self.closing}{self.between}"
            for role, turn in zip(roles, turns, strict=False)
        )
        return text if len(turns) % 2 == 0 else text + self.opening.format(role="assistant")


OWN_TEMPLATES: dict[str, ConversationTemplate] = {
    template.name: template
    for template in (
        _Own(
            name="llama-3",
            opening="<|start_header_id|>{role}<|end_header_id|>\n\n",
            closing="<|eot_id|>",
            between="",
        ),
        _Own(name="chatml", opening="<|im_start|>{role}\n", closing="<|im_end|>", between="\n"),
    )
}


class _FastChat:
    """A template of the installed fschat."""

    stop_tokens: tuple[str, ...] = ()

    def __init__(self, conversation: Any) -> None:
        self._conversation = conversation
        self.name = str(conversation.name)
        self.origin = f"fschat {version('fschat')}"
        stops = conversation.stop_str or ()
        self.stop_strings = (stops,) if isinstance(stops, str) else tuple(stops)
        self.stop_token_ids = tuple(conversation.stop_token_ids or ())

    def render(self, turns: Sequence[str], system: str | None = None) -> str:
        conversation = self._conversation.copy()
        if system is not None:
            conversation.set_system_message(system)
        for number, turn in enumerate(turns):
            conversation.append_message(conversation.roles[number % 2], turn)
        if len(turns) % 2 == 1:
            conversation.append_message(conversation.roles[1], None)
        try:
            return str(conversation.get_prompt())
        except ValueError as error:  # of a style that is an API's: it has no text
            raise HarnessError(f"conversation template '{self.name}' of FastChat's writes no text: {error}") from error


def find_template(name: str) -> ConversationTemplate:
    """Return the template called ``name``, ours before FastChat's.

    Raises:
        HarnessError: there is none, or it would be FastChat's and fschat is not installed.
    """
    if name in OWN_TEMPLATES:
        return OWN_TEMPLATES[name]
    if find_spec("fastchat") is None:
        raise HarnessError(
            f"conversation template '{name}' is none of ours ({', '.join(sorted(OWN_TEMPLATES))}), and fschat, which "
            "has others, is not installed: pip install fschat, or in a checkout pip install '.[mt-bench]'"
        )
    from fastchat.conversation import conv_templates

    if name not in conv_templates:
        raise HarnessError(
            f"there is no conversation template '{name}'{near_miss(name, [*OWN_TEMPLATES, *conv_templates])}"
        )
    return _FastChat(conv_templates[name])


@dataclass(frozen=True)
class TrainingTurn:
    """A training row as one exchange of a conversation."""

    prompt: str
    whole: str
    """Prompt, answer and what closes it, up to the end of the turn; nothing of a turn after it."""
    closed: bool
    """Whether ``whole`` ends with a text that ends an answer; else the end-of-sequence token must follow."""
    ended: bool = False
    """Whether the answer itself ended with such a text, so that what the template closes it with is left out."""


def training_turn(
    template: ConversationTemplate, question: str, answer: str, eos_token: str, system: str | None = None
) -> TrainingTurn:
    """Return question and answer in a template, cut where generation would stop.

    Raises:
        HarnessError: the template does not keep the answer, or what the system says, as it is.
    """
    prompt = template.render([question], system)
    if system and system not in prompt:
        raise HarnessError(f"conversation template '{template.name}' leaves out what the system says")
    if not answer:
        return TrainingTurn(prompt, prompt, closed=False)
    turn = _cut_turn(prompt, template.render([question, answer], system), answer, answer_ends(template, eos_token))
    if turn is None:
        raise HarnessError(f"conversation template '{template.name}' rewrites answers, so it cannot be trained on")
    return turn


def answer_ends(template: ConversationTemplate, eos_token: str) -> tuple[str, ...]:
    """Return the texts that end an answer in a template."""
    return (eos_token, *template.stop_tokens, *template.stop_strings)


def chat_turn(tokenizer: Any, asked: Sequence[Turn], answer: str) -> TrainingTurn:
    """Return turns and the answer to them in a tokenizer's own chat template, cut behind its end-of-sequence token.

    A template that rewrites answers, or whose prompt for generation is not how its answers begin, is used for the
    prompt alone: the answer follows it as it is.
    """
    prompt = write_chat(tokenizer, asked, True)
    if not answer:
        return TrainingTurn(prompt, prompt, closed=False)
    whole = write_chat(tokenizer, [*asked, Turn("assistant", answer)], False)
    turn = _cut_turn(prompt, whole, answer, (str(tokenizer.eos_token),))
    return TrainingTurn(prompt, f"{prompt}{answer}", closed=False) if turn is None else turn


def write_chat(tokenizer: Any, turns: Sequence[Turn], prompt: bool) -> str:
    """Return turns in a tokenizer's own chat template; ``prompt``: as the prompt of the assistant's next turn."""
    return str(tokenizer.apply_chat_template(messages(turns), tokenize=False, add_generation_prompt=prompt))


def messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Return turns as chat templates take them."""
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def write_conversation(template: ConversationTemplate, turns: Sequence[Turn]) -> str:
    """Return turns in a conversation template; after a user's turn it stops where the answer begins.

    Raises:
        HarnessError: they are not those of a user and an assistant in turn, the system before them.
    """
    system, said = spoken(template, turns)
    return template.render(said, system)


def spoken(template: ConversationTemplate, turns: Sequence[Turn]) -> tuple[str | None, list[str]]:
    """Return what the system says, and what user and assistant say in turn.

    Raises:
        HarnessError: others speak, or not in turn.
    """
    system = turns[0].content if turns and turns[0].role == "system" else None
    said = turns[1:] if system is not None else turns
    if any(turn.role != ("user", "assistant")[number % 2] for number, turn in enumerate(said)):
        raise HarnessError(
            f"conversation template '{template.name}' takes user and assistant in turn, the user first, with the "
            f"system before them, and not {', '.join(turn.role for turn in turns)}"
        )
    return system, [turn.content for turn in said]


def _cut_turn(prompt: str, whole: str, answer: str, stops: Sequence[str]) -> TrainingTurn | None:
    """Return a rendered exchange up to the first text behind the answer that ends one; None: it is not as asked."""
    if not whole.startswith(prompt):
        return None
    # From the prompt's end on: short answers stand in other places too, as "end" does in the text that closes a turn.
    start = whole.find(answer, len(prompt))
    if start < 0:
        return None
    if (bare := answer.rstrip()).endswith(tuple(stops)):
        return TrainingTurn(prompt, whole[: start + len(bare)], closed=True, ended=True)
    body, closing = whole[: start + len(answer)], whole[start + len(answer) :]
    ends = [(closing.find(stop), len(stop)) for stop in stops if stop in closing]
    if not ends:
        return TrainingTurn(prompt, body + closing.rstrip(), closed=False)
    position, length = min(ends)
    return TrainingTurn(prompt, body + closing[: position + length], closed=True)
