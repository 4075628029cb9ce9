"""How text becomes tokens: one rule for special tokens, and one for where an answer begins.

Training, held-out and general text, calibration, scoring and generation all come here.

- *Beginning.* What a tokenizer puts before every text, as a rule its beginning-of-sequence token, stands before it
  once: a text that begins with it already gets no other. A tokenizer that puts nothing there gets nothing.
- *End.* What a tokenizer puts behind every text, as ``add_eos_token`` has it, is left out: whatever is continued, by an
  answer, a choice or the model itself, holds no end. A training example has one end-of-sequence token behind its
  answer, or the one that its text ends with, blanks behind it aside.
- *Rendered text.* A tokenizer's own chat template writes all special tokens: nothing is put before its text. A
  conversation template gets the beginning, as FastChat gives it, unless it writes it.
- *Samples.* Calibration and general text are cut out of the middle of running text: they hold no added token at all.
- *Splitting.* Prompt and answer are encoded as one text, as generation will read them. The answer is what comes where
  the encodings of the prompt and of the whole part: a token that holds the end of the prompt and the beginning of the
  answer is the answer's, and carries loss. Encoded apart, a tokenizer that puts a space before every text would put one
  before every answer. Of several answers in one conversation each begins so, and ends with the last token that holds
  anything of it.

lm-eval's own split of context and continuation stays in scoring: it differs where a token straddles the two, and its
scores are to be those of HFLM. Of the beginning HFLM has the same rule; of an added end it has none, so that every
continuation is that end and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from harness.errors import HarnessError
from harness.record_text import EncodingFacts

PROBE = "a"
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))
"""Characters that show nothing, for ``str.translate``: zero-width spaces and joiners, and the byte order mark."""


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer under the rule of this module."""

    tokenizer: Any
    beginning: tuple[int, ...]
    """What stands before every text."""
    left_out: tuple[int, ...]
    """What the tokenizer puts behind every text."""
    writers: dict[str | None, object] = field(default_factory=dict, compare=False, repr=False)
    """What writes conversations for it, by template: made where it is used, and kept as long as the encoder."""

    @cached_property
    def beginning_text(self) -> str:
        """Return the beginning as text."""
        return str(self.tokenizer.decode(list(self.beginning)))

    def bare(self, text: str) -> list[int]:
        """Return the tokens of a text alone."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def ids(self, text: str, *, rendered: bool = False) -> list[int]:
        """Return the tokens of a text behind its beginning.

        Args:
            text: Of any kind.
            rendered: By the tokenizer's own chat template.
        """
        ids = self.bare(text)
        return ids if rendered or self.begins(ids) else [*self.beginning, *ids]

    def split(self, prompt: str, whole: str, *, rendered: bool = False) -> tuple[list[int], list[int]]:
        """Return the tokens of a prompt, and those of the answer that makes it the whole.

        Args:
            prompt: What the whole begins with.
            whole: Prompt and answer.
            rendered: As of :meth:`ids`.
        """
        before, both = self.ids(prompt, rendered=rendered), self.ids(whole, rendered=rendered)
        shared = _num_shared(before, both)
        return both[:shared], both[shared:]

    def places(self, ids: Sequence[int], text: str, *, rendered: bool = False) -> tuple[int, int]:
        """Return where the tokens of a beginning part from those of its whole, and how many tokens hold all of it.

        The two are one number unless a token holds the end of the beginning and what comes behind it.

        Args:
            ids: Of the whole.
            text: What the whole begins with.
            rendered: As of :meth:`ids`.
        """
        before = self.ids(text, rendered=rendered)
        shared = _num_shared(before, ids)
        if shared == len(before):
            return shared, shared
        length, holding = len(str(self.tokenizer.decode(before))), shared + 1
        while holding < len(ids) and len(str(self.tokenizer.decode(list(ids[:holding])))) < length:
            holding += 1
        return shared, min(holding, len(ids))

    def begins(self, ids: Sequence[int]) -> bool:
        """Return whether tokens begin with the beginning; what stands before every text may be nothing."""
        return tuple(ids[: len(self.beginning)]) == self.beginning

    def is_begun(self, text: str) -> bool:
        """Return whether a text itself begins with the beginning."""
        return bool(self.beginning) and text.startswith(self.beginning_text)

    def ends(self, ids: Sequence[int]) -> bool:
        """Return whether tokens end with the end-of-sequence token, blanks behind it aside."""
        end = self.tokenizer.eos_token_id
        place = next((place for place in reversed(range(len(ids))) if ids[place] == end), None)
        return place is not None and not str(self.tokenizer.decode(list(ids[place + 1 :]))).strip()

    def is_blank(self, text: str) -> bool:
        """Return whether a text holds nothing that shows, the tokenizer's special tokens aside."""
        for token in self._special_texts:
            text = text.replace(token, "")
        return not text.translate(INVISIBLE).strip()

    def facts(self) -> EncodingFacts:
        """Return what a record says of the rule on this tokenizer."""
        end = self.tokenizer.eos_token
        return EncodingFacts(
            beginning=tuple(self._texts(self.beginning)),
            left_out=tuple(self._texts(self.left_out)),
            end=None if end is None else str(end),
        )

    @cached_property
    def _special_texts(self) -> tuple[str, ...]:
        return tuple(map(str, self.tokenizer.all_special_tokens))

    def _texts(self, ids: Sequence[int]) -> list[str]:
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(list(ids))]


def _num_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts begin with alike."""
    least = min(len(one), len(other))
    return next((place for place in range(least) if one[place] != other[place]), least)


def text_encoder(tokenizer: Any) -> TextEncoder:
    """Return the encoder of a tokenizer; an encoder is returned as it is.

    Raises:
        HarnessError: the tokenizer puts special tokens elsewhere than at the two ends of a text.
    """
    if isinstance(tokenizer, TextEncoder):
        return tokenizer
    bare, full = list(tokenizer.encode(PROBE, add_special_tokens=False)), list(tokenizer.encode(PROBE))
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return TextEncoder(tokenizer, tuple(full[:start]), tuple(full[start + len(bare) :]))
    raise HarnessError(
        f"the tokenizer puts special tokens inside a text ('{PROBE}' becomes {full}, and {bare} without them): such "
        "a tokenizer is not supported"
    )
