"""A comparison for a terminal: what fails first, what was not compared next, the rest as counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.report.comparing.cells import FAILING, Cell, Comparison
from harness.report.comparing.page import COLUMNS, by_rank, cell_texts, filled_columns, headline
from harness.report.table import one_line

SHORT = 40
"""Rows of a part that are printed."""
NOTE_LIMIT = 300


@dataclass(frozen=True)
class Part:
    """Rows under a line of their own."""

    title: str
    rows: Sequence[Mapping[str, str]]


def comparison_text(comparison: Comparison) -> tuple[list[str], list[Part], list[str]]:
    """Return the lines on top, the tables, and the lines below."""
    top = [
        f"{one_line(comparison.baseline)} -> {one_line(comparison.candidate)}: {headline(comparison)}",
        "",
    ]
    changed = "; ".join(f"{name} {old} -> {new}" for name, old, new in comparison.environment)
    top.append(f"environment: {one_line(changed) if changed else 'the same on both sides'}")
    for subject, name, old, new in comparison.settings[:SHORT]:
        top.append(f"setting changed under the same label: {one_line(f'{subject}: {name} {old} -> {new}')}")
    if left := len(comparison.settings) - SHORT:
        top += [f"and {left} settings more"] if left > 0 else []
    cells = by_rank(comparison.cells)
    failing = [cell for cell in cells if cell.verdict in FAILING]
    moved = [cell for cell in cells if cell.verdict in ("improved", "fixed")]
    apart = [cell for cell in cells if cell.verdict in ("not comparable", "not measured again")]
    parts = [
        _part("What fails", failing, comparison),
        _part("What became better", moved, comparison),
        _part("What was not compared", apart, comparison),
    ]
    below = [f"note: {one_line(note, NOTE_LIMIT)}" for note in comparison.notes[:SHORT]]
    rest = {verdict: count for verdict in ("same", "new") if (count := comparison.counts[verdict])}
    if rest:
        said = " and ".join(f"{count} {verdict}" for verdict, count in rest.items())
        below.append(f"not shown: {said}; --format md or json has all")
    below.append(
        "found from: the smallest true worsening that would have been found in 80% of cases; p: of being worse beyond "
        f"the tolerance, corrected over the whole comparison at the family-wise level {comparison.level:g}"
    )
    return top, [part for part in parts if part.rows], below


def _part(title: str, cells: Sequence[Cell], comparison: Comparison) -> Part:
    shown = cells[:SHORT]
    more = f", {len(shown)} of {len(cells)}" if len(cells) > len(shown) else ""
    texts = [cell_texts(cell, comparison) for cell in shown]
    chosen = filled_columns(texts)
    return Part(f"{title}{more}", [{COLUMNS[i].title: row[i] for i in chosen} for row in texts])
