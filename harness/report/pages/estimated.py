"""Tables of estimates: n stands in the heading where a whole column has it, and seeds in a column of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness.report.reading.words import estimate_cell, n_text
from harness.report.statistics.intervals import Estimate
from harness.report.table import Column, Entry, Table, counted
from harness.report.units import NOTHING

Found = tuple[Estimate, str]
"""An estimate and its unit."""
SEEDS = "seeds"
SEEDS_DEFINITION = "Seeds that the row's estimates are over."


def estimate_table(
    leading: Sequence[Column],
    columns: Sequence[Column],
    rows: Sequence[tuple[Sequence[Entry], Sequence[Found | Entry]]],
) -> Table:
    """Return a table of rows that begin with some cells and go on with estimates.

    Args:
        leading: The columns of the cells.
        columns: Those of the estimates.
        rows: The cells and estimates of each; an entry stands where there is no estimate.
    """
    counts = [_common({e.num_items for e in _estimates(found[i] for _, found in rows)}) for i in range(len(columns))]
    seeds = [{e.num_seeds for e in _estimates(found)} for _, found in rows]
    told = any(max(numbers, default=1) > 1 for numbers in seeds)
    heads = [
        column if n is None else replace(column, title=f"{column.title}, {n_text(n)}")
        for column, n in zip(columns, counts, strict=True)
    ]
    lines: list[tuple[Entry, ...]] = []
    for (cells, found), numbers in zip(rows, seeds, strict=True):
        alike = told and len(numbers) == 1
        entries = [
            estimate_cell(*one, with_n=n is None, with_seeds=not alike) if isinstance(one, tuple) else one
            for one, n in zip(found, counts, strict=True)
        ]
        shown: list[Entry] = [counted(next(iter(numbers))) if alike else NOTHING] if told else []
        lines.append((*cells, *shown, *entries))
    extra = [Column(SEEDS, definition=SEEDS_DEFINITION)] * told
    return Table((*leading, *extra, *heads), tuple(lines))


def _estimates(found: Iterable[Found | Entry]) -> list[Estimate]:
    return [one[0] for one in found if isinstance(one, tuple)]


def _common(counts: set[tuple[int, int]]) -> tuple[int, int] | None:
    return next(iter(counts)) if len(counts) == 1 else None
