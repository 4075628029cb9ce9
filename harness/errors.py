"""What may go wrong in a way that the user can mend, said in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LONGEST = 1800
"""Characters of a sentence."""
LONGEST_LINE = 300
"""Characters of one of several faults."""
MOST_LINES = 30
"""Of faults that are named; the rest is counted."""
LONGEST_WORD = 100
"""Characters of a word that is looked up among known ones: the time this takes grows with them."""


class HarnessError(Exception):
    """One sentence: what was found, where, what was expected, what to do. The CLI prints it without a traceback."""

    exit_code = 2

    def __init__(self, sentence: str) -> None:
        # What was found may be a word of ten megabytes.
        super().__init__(sentence if len(sentence) <= LONGEST else f"{sentence[:LONGEST]}…")


class Faults(HarnessError):
    """What is wrong with one file or table: one sentence, or several lines below one that names it."""

    def __init__(self, where: str, lines: Sequence[str], sentence: str | None = None) -> None:
        """Take how to call the file, and its faults.

        Args:
            where: As a sentence begins.
            lines: What is wrong, each as a sentence goes on behind the file's name.
            sentence: The whole message where there is one fault; None: made of the line.
        """
        super().__init__(f"{where} {lines[0]}" if sentence is None else sentence)
        self.where, self.lines = where, tuple(lines)
        if len(lines) > 1:
            shown = [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}…" for line in lines[:MOST_LINES]]
            more = [f"and {len(lines) - MOST_LINES} more"] * (len(lines) > MOST_LINES)
            self.args = ("\n  ".join((f"{where.rstrip(':')}: {len(lines)} faults:", *shown, *more)),)


class Refused(HarnessError):
    """A method or the engine cannot take a run as it was asked for; the reason becomes the record's."""


class NotInstalled(Refused):
    """It needs a package that only an extra brings, and that is not there, or too old."""


def near_miss(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for a likely typo, else the known words: the tail of an error sentence."""
    names = sorted(set(known))
    if (close := closest(word, names)) is not None:
        return f"; did you mean '{close}'?"
    return f"; known: {', '.join(names)}" if names else "; none are known"


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that a word is a likely typo of, or None."""
    import difflib  # only of words that are wrong

    close = difflib.get_close_matches(word, sorted(set(known)), n=1, cutoff=0.6) if len(word) <= LONGEST_WORD else []
    return close[0] if close else None
