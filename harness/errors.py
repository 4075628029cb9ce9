"""What may go wrong in a way that the user can mend, said in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """One sentence: what was found, where, what was expected, what to do. The CLI prints it without a traceback."""

    exit_code = 2


class Refused(HarnessError):
    """A method or the engine cannot take a run as it was asked for; the reason becomes the record's."""


def near_miss(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for a likely typo, else the known words: the tail of an error sentence."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else "; none are known"
