"""Conversations of several answers as text, and which of the text is an answer: exact, or refused.

A template is code, and what it does with a turn may depend on what stands around it: some drop the thinking of earlier
answers, some put the system's words into the last question, some close the last turn otherwise. Where answers begin and
end is therefore never searched for in the text. The template writes the same roles with marks in place of what they
say, which shows what it puts between the turns, and then the conversation itself: the two must be the same but for the
words, as they are or without the blanks around them. Of each answer

- what the model reads before it must be how the conversation begins, as far as the prompt for generation goes: from
  there on carries loss, as with one answer;
- what closes it where it is the last turn must also stand behind it in the middle, up to the first text that ends an
  answer, or to the last character that is no blank: this carries loss too.

Otherwise the template rewrites turns, and :class:`Rewritten` is raised.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from harness.errors import HarnessError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """What one side of a conversation says at once."""

    role: Role
    content: str
    trained: bool = True
    """Of an assistant's turn: whether it carries loss where answers do; False of one that a prompt holds."""

    @property
    def is_answer(self) -> bool:
        """Return whether it carries loss where answers do."""
        return self.role == "assistant" and self.trained


Write = Callable[[Sequence[Turn], bool], str]
"""Writes turns down; True: as the prompt of the assistant's next turn."""


class Rewritten(HarnessError):
    """A template does not write turns as they are: which of its text is an answer cannot be told."""


@dataclass(frozen=True)
class Written:
    """A conversation as text."""

    text: str
    """Up to what closes the last answer."""
    answers: tuple[tuple[int, int], ...]
    """Where each answer that carries loss begins and ends in it, with what closes it."""
    closed: bool
    """Whether the text ends with one that ends an answer; else the end-of-sequence token must follow."""
    ended: bool
    """Whether the last answer itself ended with such a text, so that it stands once."""


@dataclass(frozen=True)
class _Shape:
    """What a template puts around the turns of one order of roles."""

    between: tuple[str, ...]
    """Before the first turn's words, between any two, and behind the last's."""
    openings: tuple[int, ...]
    """By turn, of an assistant's: how much of what stands before it is the prompt's."""
    closings: tuple[int, ...]
    """By turn, of an assistant's: how much of what stands behind it closes it."""
    closed: bool
    """Whether what closes the last turn is a text that ends an answer."""


class TurnWriter:
    """Writes conversations by one template; what it puts around an order of roles is found once."""

    def __init__(self, write: Write, stops: Sequence[str]) -> None:
        """Take what writes turns, and the texts that end an answer."""
        self._write = write
        self._stops = tuple(stops)
        self._shapes: dict[tuple[Role, ...], _Shape | Rewritten] = {}

    def written(self, turns: Sequence[Turn]) -> Written:
        """Return a conversation as text; its last turn is the assistant's.

        Raises:
            Rewritten: the template does not write turns as they are.
        """
        assert turns and turns[-1].role == "assistant"
        shape = self._shape(tuple(turn.role for turn in turns))
        bare = [self._without_end(turn) for turn in turns]
        text = self._write(bare, False)
        contents = next((said for said in _spellings(bare) if _joined(shape.between, said) == text), None)
        if contents is None:
            raise Rewritten("it does not write what was said as it was said")
        place, answers = len(shape.between[0]), []
        for number, (turn, said) in enumerate(zip(turns, contents, strict=True)):
            begin = place - len(shape.between[number]) + shape.openings[number]
            place += len(said)
            if turn.is_answer:
                answers.append((begin, place + shape.closings[number]))
            place += len(shape.between[number + 1])
        end = place - len(shape.between[-1]) + shape.closings[-1]
        return Written(text[:end], tuple(answers), shape.closed, ended=bare[-1] != turns[-1])

    def _without_end(self, turn: Turn) -> Turn:
        """Return an answer without the text that ends one, which the template writes itself."""
        said = turn.content.rstrip()
        stop = next((stop for stop in self._stops if stop and said.endswith(stop)), None)
        if turn.role != "assistant" or stop is None:
            return turn
        return replace(turn, content=said.removesuffix(stop))

    def _shape(self, roles: tuple[Role, ...]) -> _Shape:
        if roles not in self._shapes:
            try:
                self._shapes[roles] = self._found(roles)
            except Rewritten as error:
                self._shapes[roles] = error
        shape = self._shapes[roles]
        if isinstance(shape, Rewritten):
            raise shape
        return shape

    def _found(self, roles: Sequence[Role]) -> _Shape:
        marked = [Turn(role, f"Qz{number}turnZq") for number, role in enumerate(roles)]
        whole = self._write(marked, False)
        between = _cut(whole, marked)
        openings, closings, place, closed = [], [], 0, False
        for number, turn in enumerate(marked):
            opening = closing = 0
            if turn.role == "assistant":
                opening = self._opening(marked[:number], whole, place, between[number])
                closing, closed = self._closing(marked[: number + 1], between[number + 1])
            openings.append(opening)
            closings.append(closing)
            place += len(between[number]) + len(turn.content)
        return _Shape(tuple(between), tuple(openings), tuple(closings), closed)

    def _opening(self, before: Sequence[Turn], whole: str, place: int, between: str) -> int:
        """Return how much of what stands before an answer is the prompt's; ``place`` is where the turn before ends."""
        if not before:
            return len(between)  # nobody asked: all that the template puts there is its own
        prompt = self._write(before, True)
        if not whole.startswith(prompt) or not 0 <= len(prompt) - place <= len(between):
            raise Rewritten("what a model reads before an answer is not how the conversation with that answer begins")
        return len(prompt) - place

    def _closing(self, until: Sequence[Turn], behind: str) -> tuple[int, bool]:
        """Return how much of what stands behind an answer closes it, and whether it is a text that ends one."""
        tail = _cut(self._write(until, False), until)[-1]
        ends = [(tail.find(stop), len(stop)) for stop in self._stops if stop and stop in tail]
        length = sum(min(ends)) if ends else len(tail.rstrip())
        if not behind.startswith(tail[:length]):
            raise Rewritten("it closes the last turn otherwise than those before")
        return length, bool(ends)


def _cut(text: str, turns: Sequence[Turn]) -> list[str]:
    """Return what stands around the turns in a text, which holds each once and in order."""
    pieces, rest = [], text
    for turn in turns:
        before, _, rest = rest.partition(turn.content)
        pieces.append(before)
    pieces.append(rest)
    contents = [turn.content for turn in turns]
    if _joined(pieces, contents) != text or any(text.count(said) != 1 for said in contents):
        raise Rewritten("it leaves a turn out, or writes it twice or elsewhere")
    return pieces


def _spellings(turns: Sequence[Turn]) -> Iterator[list[str]]:
    """Yield what turns say: as it is, and, by role, without the blanks around it."""
    blank = [role for role in ("system", "user", "assistant") if any(_is_loose(turn, role) for turn in turns)]
    for number in range(len(blank) + 1):
        for roles in itertools.combinations(blank, number):
            yield [turn.content.strip() if turn.role in roles else turn.content for turn in turns]


def _is_loose(turn: Turn, role: str) -> bool:
    return turn.role == role and turn.content != turn.content.strip()


def _joined(between: Sequence[str], contents: Sequence[str]) -> str:
    return "".join(itertools.chain.from_iterable(zip(between, contents, strict=False))) + between[-1]
