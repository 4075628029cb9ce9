"""Which rows of a data set without parts are held out for validation, and what is told of both parts.

Rows with one prompt stay together, so that no part asks what the other answers. Prompts are taken in the order of a
hash until the share is reached; one whose rows would exceed it by more than a tenth is passed over. Where what is left
cannot fill the share, the prompt with the fewest rows does, up to ``MOST_OVER`` times what was wanted; beyond that
holding out is refused where held-out rows were asked for, and nothing more is held out where they were not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.data.files import TrainingRow
from harness.data.parts import normalised
from harness.encoding import INVISIBLE
from harness.errors import HarnessError
from harness.record_text import RowFacts

HELD_OUT_SHARE = 0.01
MOST_OVER = 2
"""How many times the wanted rows are held out at most, where the rows of a prompt are many."""


@dataclass(frozen=True)
class Parts:
    """The rows to train on and those held out; they share no prompt."""

    train: list[TrainingRow]
    validation: list[TrainingRow]
    facts: RowFacts


def without_blank(rows: Sequence[TrainingRow], name: str) -> list[TrainingRow]:
    """Return the rows that have an answer.

    Raises:
        HarnessError: none has.
    """
    kept = [row for row in rows if row.output.translate(INVISIBLE).strip()]
    if rows and not kept:
        raise HarnessError(f"data set '{name}': all of its {len(rows)} rows are blank: none has anything to train on")
    return kept


def hold_out(rows: Sequence[TrainingRow], at_least: int, name: str) -> tuple[list[TrainingRow], list[TrainingRow]]:
    """Return the rows to train on, in their order, and those held out: 1 % of all, and at least ``at_least``.

    Raises:
        HarnessError: that many cannot be held out, or not without far more.
    """
    wanted = max(at_least, math.ceil(len(rows) * HELD_OUT_SHARE))
    by_prompt: dict[str, list[TrainingRow]] = {}
    for row in rows:
        by_prompt.setdefault(_prompt_hash(row), []).append(row)
    held: list[str] = []
    total = 0
    for prompt in sorted(by_prompt):
        if len(held) == len(by_prompt) - 1:
            break  # one prompt is left to train on
        if total < wanted and total + len(by_prompt[prompt]) <= wanted + wanted // 10:
            held.append(prompt)
            total += len(by_prompt[prompt])
    if total < wanted:
        rest = sorted(set(by_prompt) - set(held), key=lambda prompt: (len(by_prompt[prompt]), prompt))
        nearest = total + len(by_prompt[rest[0]]) if rest else total
        if len(rest) > 1 and nearest <= MOST_OVER * wanted:
            held.append(rest[0])
            total = nearest
    if total < at_least:
        raise HarnessError(_too_few(name, len(rows), len(by_prompt), wanted))
    validation = [row for prompt in held for row in by_prompt[prompt]]
    kept = set(held)
    return [row for prompt, row in ((_prompt_hash(row), row) for row in rows) if prompt not in kept], validation


def told_of(
    train: Sequence[TrainingRow], validation: Sequence[TrainingRow], *, source_rows: int, by_prompt: bool
) -> RowFacts:
    """Return what a record says of the two parts.

    Args:
        train: Rows to train on.
        validation: Rows that are held out.
        source_rows: Rows of both parts with those left out as blank.
        by_prompt: Whether rows were held out here; else the data set has parts of its own.
    """
    held = {_prompt_hash(row) for row in validation} if by_prompt else set()
    asked = {question for row in train if (question := _question(row)) is not None}
    return RowFacts(
        num_rows=len(train),
        num_source_rows=source_rows,
        num_blank_rows=source_rows - len(train) - len(validation),
        num_held_out_rows=len(validation),
        num_held_out_prompts=len(held) if by_prompt else None,
        num_prompts=len(held | {_prompt_hash(row) for row in train}) if by_prompt else None,
        num_repeated_rows=len(train) - len(set(train)),
        num_open_rows=sum(row.num_unanswered > 0 for row in (*train, *validation)) or None,
        num_held_out_asked=sum(_question(row) in asked for row in validation),
    )


def _too_few(name: str, num_rows: int, num_prompts: int, wanted: int) -> str:
    if num_prompts == num_rows:
        return f"data set '{name}': has {num_rows} rows, too few to hold {wanted} out for validation"
    return (
        f"data set '{name}': has {num_rows} rows and only {num_prompts} "
        f"{'prompt' if num_prompts == 1 else 'different prompts'}, and rows with one prompt stay together, so {wanted} "
        f"rows cannot be held out for validation without more than {MOST_OVER} times as many: set validation_rows = 0, "
        "or give rows with more prompts"
    )


def _prompt_hash(row: TrainingRow) -> str:
    prompt = f"{normalised(row.instruction)}\n{normalised(row.input)}"
    return hashlib.sha256((prompt if prompt.strip() else normalised(row.output)).encode()).hexdigest()


def _question(row: TrainingRow) -> str | None:
    """Return what stands before the last line of a text that is trained on as a whole: its question, if it has one."""
    if row.instruction or row.input or row.turns:
        return None
    before, _, _ = row.output.strip().rpartition("\n")
    return normalised(before) or None
