"""Where in a judgment the verdict stands: what a judge thinks aloud is none, and a rating may be quoted before it.

Reference: fschat 0.2.36, llm_judge/common.py, ``one_score_pattern`` and ``run_judge_single``: the first match counts.
Deliberate difference: a thinking part, ``<think>…</think>`` at the beginning, is left out first, because judges that
think quote the format of the prompt there ("Rating: [[5]]") before they have a verdict. FastChat, which is older than
they are, would read it.
"""

from __future__ import annotations

import ast
import re
from typing import Literal

Verdict = Literal["first", "last"]
"""Which of several ratings counts; FastChat's is the first."""

NOT_PARSED = -1
"""Score of a judgment that holds none. Source: ``run_judge_single``."""
PATTERNS = (re.compile(r"\[\[(\d+(?:\.\d*)?)\]\]"), re.compile(r"\[(\d+(?:\.\d*)?)\]"))
"""Tried in this order, the first that matches anywhere counts. Source: ``one_score_pattern`` and
``one_score_pattern_backup``, whose ``\\d+\\.?\\d*`` matches the same but takes the square of the digits in time where
no bracket follows."""
LARGEST_SCORE = 10**6
"""Of a judgment; a mean of larger ones may be no number."""
_OPENED = re.compile(r"\s*<(think|thinking|thought|reasoning)>", re.IGNORECASE)
_CLOSED = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)


def without_thinking(judgment: str) -> str:
    """Return a judgment without the thinking at its beginning; empty where that never ended.

    Some chat templates open the thinking in the prompt, so that only its end stands in the judgment: what is before
    that end is then thinking where a rating follows.
    """
    opened = _OPENED.match(judgment)
    if opened is not None:
        closing = re.search(f"</{opened.group(1)}>", judgment, re.IGNORECASE)
        return "" if closing is None else judgment[closing.end() :]
    closed = _CLOSED.search(judgment)
    if closed is not None and ratings(judgment[closed.end() :]):
        return judgment[closed.end() :]
    return judgment


def ratings(text: str) -> tuple[str, ...]:
    """Return all ratings that stand in a text in the form that counts, as they are written."""
    return next((tuple(found) for pattern in PATTERNS if (found := pattern.findall(text))), ())


def read_score(judgment: str, verdict: Verdict) -> float:
    """Return the score that a judgment gives, ``NOT_PARSED`` where there is none."""
    found = ratings(without_thinking(judgment))
    return _number(found[0 if verdict == "first" else -1]) if found else NOT_PARSED


def has_several(judgment: str) -> bool:
    """Return whether a judgment gives several ratings that differ, so that which of them counts matters."""
    return len({_number(text) for text in ratings(without_thinking(judgment))}) > 1


def thinks(judgment: str) -> bool:
    """Return whether a judgment begins with thinking, which is left out."""
    return without_thinking(judgment) != judgment


def _number(text: str) -> float:
    try:
        score: float = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return NOT_PARSED
    return score if score <= LARGEST_SCORE else NOT_PARSED
