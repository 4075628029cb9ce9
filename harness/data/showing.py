"""Training examples as text: what the model sees, which tokens carry loss, where it was cut and where the next begins.

Without a terminal, trained text stands in ``⟦ ⟧``, ``‖`` is where another example begins in a packed row, and
``‹12 cut›`` stands for tokens that ``sequence_length`` left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from harness.data.examples import Example

OPENED, CLOSED, NEXT = "⟦", "⟧", "‖"
LEGEND = f"{OPENED}trained{CLOSED}  {NEXT} another example begins  ‹n cut› tokens left out"


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens of one example, all trained or none."""

    text: str
    trained: bool
    num_tokens: int
    begins_example: bool
    """Whether another example of a packed row begins here."""


def trained_flags(example: Example) -> list[bool]:
    """Return which tokens carry loss: never the first of a row, which has nothing to be predicted from."""
    return [flag and position > 0 for position, flag in enumerate(example.trained)]


def pieces(example: Example, tokenizer: Any) -> list[Piece]:
    """Return an example cut where its tokens begin or cease to be trained, and where another example begins."""
    flags, starts = trained_flags(example), set(example.starts or ()) - {0}
    edges = [0, *(i for i in range(1, len(flags)) if flags[i] != flags[i - 1] or i in starts), len(flags)]
    texts = [_decoded(tokenizer, example.ids[:edge]) for edge in edges]
    found = []
    for i, (begin, end) in enumerate(pairwise(edges)):
        # What a tokenizer writes of a piece alone may lack the space before it.
        whole = texts[i + 1].startswith(texts[i])
        text = texts[i + 1][len(texts[i]) :] if whole else _decoded(tokenizer, example.ids[begin:end])
        found.append(Piece(text, flags[begin], end - begin, begin in starts))
    return found


def heading(example: Example, number: int) -> str:
    """Return the line above an example."""
    told = [f"{len(example.ids)} tokens", f"{sum(trained_flags(example))} trained"]
    if example.truncated:
        told.append(f"truncated by {example.cut_before + example.cut_after}")
    if example.starts is not None:
        inside = "" if 0 in example.starts else ", the first from its middle"
        told.append(f"packed: parts of {len({0, *example.starts})} examples{inside}")
    return f"example {number}: {', '.join(told)}"


def marked(parts: Sequence[Piece], example: Example) -> str:
    """Return an example as plain text with its marks."""
    text = "".join(
        (NEXT if part.begins_example else "") + (f"{OPENED}{part.text}{CLOSED}" if part.trained else part.text)
        for part in parts
    )
    return f"{cut_mark(example.cut_before)}{text}{cut_mark(example.cut_after)}"


def cut_mark(num_tokens: int) -> str:
    """Return what stands for tokens that were left out; nothing for none."""
    return f"‹{num_tokens} cut›" if num_tokens else ""


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
