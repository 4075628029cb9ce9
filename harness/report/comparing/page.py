"""A comparison as Markdown that fits a pull-request comment, the worst first, and as JSON with every number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from harness.report.comparing.cells import FAILING, RUN, VERDICTS, Cell, Comparison, Verdict
from harness.report.comparing.measures import SCORE, measures
from harness.report.table import Column, Table, escape_markdown, markdown_table, one_line
from harness.report.units import NOTHING, with_unit

CHARACTERS = 60_000
"""Of the whole page: GitHub takes 65,536 of a comment."""
SHORT = 40
"""Rows of what is worse that stand in the open."""
SHORTEST_ROW = 60
"""Characters that a row of a table has at least."""
CELL_LIMIT = 200
SENTENCE_LIMIT = 600
MOST_SOLVED = 1000
"""Cells of a comparison for which the smallest worsening that would be found is worked out."""
COLUMNS = (
    Column("verdict", "left"),
    Column("what", "left"),
    Column("metric", "left"),
    Column("baseline"),
    Column("candidate"),
    Column("change"),
    Column("tolerance"),
    Column("found from"),
    Column("rests on", "left"),
)
FOLDED: dict[Verdict, str] = {
    "not comparable": "Not comparable",
    "not measured again": "Not measured again",
    "fixed": "Fixed",
    "improved": "Improved",
    "new": "New in the candidate",
    "same": "No worse than tolerated, as far as could be told",
}
NOTHING_FOUND = "nothing"
"""In place of the smallest worsening that would have been found."""
LEGEND = (
    f"*found from*: the smallest true worsening that would have been found in 80% of cases; {NOTHING_FOUND}: none that "
    "there can be. *p* is of being worse beyond the tolerance, corrected over the whole comparison. Means of times, "
    "bytes and losses are geometric."
)


def comparison_markdown(comparison: Comparison) -> str:
    """Return the page, cut to what a comment holds; what was cut is counted."""
    cells = by_rank(comparison.cells)
    failing = [cell for cell in cells if cell.verdict in FAILING]
    parts = [f"## harness compare: {headline(comparison)}\n", _introduction(comparison)]
    if failing:
        parts.append(_table(failing[:SHORT], comparison))
    if len(failing) > SHORT:
        parts.append(_folded(f"{len(failing) - SHORT} more", failing[SHORT:], comparison, CHARACTERS // 4))
    for verdict, title in FOLDED.items():
        chosen = [cell for cell in cells if cell.verdict == verdict]
        if chosen:
            left = CHARACTERS - sum(map(len, parts)) - 1000
            parts.append(_folded(f"{title}: {len(chosen)}", chosen, comparison, left))
    if comparison.notes:
        lines = "\n".join(f"- {escape_markdown(one_line(note, CELL_LIMIT))}" for note in comparison.notes[:20])
        more = f"\n- and {len(comparison.notes) - 20} more" if len(comparison.notes) > 20 else ""
        parts.append(f"<details><summary>Notes: {len(comparison.notes)}</summary>\n\n{lines}{more}\n\n</details>\n")
    parts.append(f"{LEGEND}\n")
    return "\n".join(parts)


def comparison_json(comparison: Comparison) -> str:
    """Return everything as JSON; fractions and bytes as they are."""
    value = {
        "baseline": comparison.baseline,
        "candidate": comparison.candidate,
        "level": comparison.level,
        "fails": comparison.fails,
        "counts": {verdict: comparison.counts[verdict] for verdict in VERDICTS},
        "environment": [{"name": n, "baseline": a, "candidate": b} for n, a, b in comparison.environment],
        "settings": [{"subject": s, "name": n, "baseline": a, "candidate": b} for s, n, a, b in comparison.settings],
        "notes": list(comparison.notes),
        "cells": [_json(cell) for cell in by_rank(comparison.cells)],
    }
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _json(cell: Cell) -> dict[str, Any]:
    suite, model, label = cell.key
    return {
        "suite": suite,
        "model": model,
        "label": label,
        "metric": cell.metric,
        "title": cell.title,
        "verdict": cell.verdict,
        "baseline": cell.baseline,
        "candidate": cell.candidate,
        "change": cell.change,
        "tolerance": None if cell.tolerance is None else str(cell.tolerance),
        "p_value": cell.p_value,
        "smallest_worsening_found": cell.smallest,
        "basis": cell.basis,
    }


def by_rank(cells: Iterable[Cell]) -> list[Cell]:
    """Return cells in the order in which they are told: by verdict, the largest change of each first."""
    return sorted(cells, key=_rank)


def cell_sentence(cell: Cell) -> str:
    """Return what a cell says, in one line."""
    parts = [f"{cell.title}: {cell.verdict}"]
    if cell.baseline is not None or cell.candidate is not None:
        moved = f" ({_change(cell, cell.change)})" if cell.change is not None else ""
        parts.append(f"{_value(cell, cell.baseline)} -> {_value(cell, cell.candidate)}{moved}")
    if cell.tolerance is not None:
        parts.append(f"tolerance {cell.tolerance}")
    rests = _rests_on(cell)
    return one_line(", ".join([*parts, *([rests] if rests else [])]), SENTENCE_LIMIT)


def _rank(cell: Cell) -> tuple[int, float]:
    """Return the place of a cell: by verdict, then by how far the change goes beyond its tolerance."""
    change = 0.0 if cell.change is None or cell.tolerance is None else abs(cell.change) / max(cell.limit(), 1e-9)
    return VERDICTS.index(cell.verdict), -change


def headline(comparison: Comparison) -> str:
    """Return how many cells have each verdict, the worst first."""
    counts = [f"{count} {verdict}" for verdict in VERDICTS if (count := comparison.counts[verdict])]
    return ", ".join(counts) or "nothing to compare"


def _introduction(comparison: Comparison) -> str:
    names = f"{escape_markdown(comparison.baseline)} -> {escape_markdown(comparison.candidate)}"
    lines = [f"{names}, family-wise level {comparison.level:g}.\n"]
    changed = "; ".join(f"{name} {old} -> {new}" for name, old, new in comparison.environment)
    lines.append(
        f"**Environment:** {escape_markdown(one_line(changed, 2000)) if changed else 'the same on both sides'}.\n"
    )
    if comparison.settings:
        said = "; ".join(f"{subject}: {name} {old} -> {new}" for subject, name, old, new in comparison.settings)
        lines.append(f"**Settings changed under the same label:** {escape_markdown(one_line(said, 2000))}.\n")
    return "\n".join(lines)


def _folded(summary: str, cells: Sequence[Cell], comparison: Comparison, characters: int) -> str:
    """Return a table that opens on a click, with as many rows as the characters allow."""
    shown = list(cells)[: max(0, characters) // SHORTEST_ROW]
    table = _table(shown, comparison)
    while shown and len(table) > characters:
        shown = shown[: int(len(shown) * min(0.9, characters / len(table)))]
        table = _table(shown, comparison)
    cut = len(cells) - len(shown)
    more = f"\n{cut} more rows are left out here; `--format json` has all.\n" if cut else ""
    return f"<details><summary>{summary}</summary>\n\n{table if shown else ''}{more}\n</details>\n"


def _table(cells: Sequence[Cell], comparison: Comparison) -> str:
    rows = [cell_texts(cell, comparison) for cell in cells]
    filled = filled_columns(rows)
    return markdown_table(
        Table(tuple(COLUMNS[i] for i in filled), tuple(tuple(row[i] for i in filled) for row in rows))
    )


def cell_texts(cell: Cell, comparison: Comparison) -> tuple[str, ...]:
    """Return a cell's texts, one a column of ``COLUMNS``."""
    return tuple(_texts(cell, len(comparison.cells) < MOST_SOLVED))


def filled_columns(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the places of the columns to show: the first three, and of the others those with anything in them."""
    return [i for i in range(len(COLUMNS)) if i < 3 or any(row[i] != NOTHING for row in rows)]


def _texts(cell: Cell, with_smallest: bool) -> Iterator[str]:
    yield cell.verdict
    yield one_line(cell.subject, CELL_LIMIT)
    yield one_line(cell.title, CELL_LIMIT)
    yield _value(cell, cell.baseline)
    yield _value(cell, cell.candidate)
    yield _change(cell, cell.change)
    yield NOTHING if cell.tolerance is None else str(cell.tolerance)
    none_found = with_smallest and cell.test is not None and cell.smallest is None
    yield NOTHING_FOUND if none_found else _change(cell, cell.smallest if with_smallest else None).removeprefix("+")
    yield one_line(_rests_on(cell), CELL_LIMIT) or NOTHING


def _rests_on(cell: Cell) -> str:
    p_value = "" if cell.p_value is None else f"p = {_probability(cell.p_value)}"
    return ", ".join(filter(None, (cell.basis, p_value)))


def _value(cell: Cell, value: float | None) -> str:
    if value is None or cell.metric == RUN:
        return NOTHING
    if cell.metric != SCORE:
        return with_unit(value, measures()[cell.metric].unit)
    return f"{100 * value:.2f}%" if cell.scale == 1 else f"{value:.2f}"


def _change(cell: Cell, value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:+.2f}" if cell.metric == SCORE and cell.scale != 1 else f"{100 * value:+.2f}{_unit(cell)}"


def _unit(cell: Cell) -> str:
    return " pt" if cell.metric == SCORE else "%"


def _probability(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.2g}"
