"""What may go wrong in a way that the user can mend, said in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 1800
"""Characters of a sentence."""
LONGEST_WORD = 100
"""Characters of a word that is looked up among known ones: the time this takes grows with them."""


class HarnessError(Exception):
    """One sentence: what was found, where, what was expected, what to do. The CLI prints it without a traceback."""

    exit_code = 2

    def __init__(self, sentence: str) -> None:
        # What was found may be a word of ten megabytes.
        super().__init__(sentence if len(sentence) <= LONGEST else f"{sentence[:LONGEST]}…")


class Refused(HarnessError):
    """A method or the engine cannot take a run as it was asked for; the reason becomes the record's."""


def near_miss(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for a likely typo, else the known words: the tail of an error sentence."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6) if len(word) <= LONGEST_WORD else []
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else "; none are known"
