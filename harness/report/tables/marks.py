"""What a table for a paper marks of its scores: the best where it can be told apart, or groups that cannot be.

The average is judged as the report does it, by paired tests over all pairs of a model's labels; single tasks by the
same tests, corrected over all pairs and all tasks of the table. Rows that a table leaves out count in the correction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.report.pages.pairs import compared, pairs_of
from harness.report.reading.items import ReadItems
from harness.report.reading.summary import Row, Summary
from harness.report.statistics.family import holm, letters_of
from harness.report.statistics.intervals import LEVEL
from harness.report.tables.cells import estimate_of
from harness.report.tables.choice import Marked
from harness.report.tables.columns import Chosen

Place = tuple[str, str]
"""Label and name of a column."""


@dataclass(frozen=True)
class Marks:
    """Of one model in one suite's block."""

    best: frozenset[Place] = frozenset()
    letters: Mapping[Place, str] = field(default_factory=dict)
    untested: tuple[str, ...] = ()
    """Columns of scores in which some of the rows have no test between them."""


def marks_of(
    summary: Summary, rows: Sequence[Row], columns: Sequence[Chosen], marked: Marked, read_items: ReadItems
) -> Marks:
    """Return what is marked of some rows of one model.

    Args:
        summary: Of the suite.
        rows: Those that are shown, all of one model.
        columns: Of the suite's block.
        marked: What was asked for.
        read_items: Returns a file of items, which the tests need.
    """
    if marked == "nothing" or not rows:
        return Marks()
    tested = _tests(summary, rows[0].model, columns, read_items)
    best: set[Place] = set()
    letters: dict[Place, str] = {}
    untested: list[str] = []
    for column in columns:
        scored = {row.label: found[0].mean for row in rows if (found := estimate_of(row, column, summary)) is not None}
        if not column.is_score or len(scored) < 2:
            continue
        apart = {pair: p_value <= 1 - LEVEL for pair, p_value in tested.get(column.name, {}).items()}
        pairs = [frozenset((one, other)) for one in scored for other in scored if one < other]
        if any(pair not in apart for pair in pairs):
            untested.append(column.name)
            continue
        falling = _falls(rows, column, summary)
        if falling is None:
            untested.append(column.name)
            continue
        order = sorted(scored, key=lambda label: scored[label] if falling else -scored[label])
        if marked == "best" and all(apart.get(frozenset((order[0], other)), False) for other in order[1:]):
            best.add((order[0], column.name))
        if marked == "groups" and all(pair in apart for pair in pairs):
            own = letters_of(order, {pair for pair in pairs if apart[pair]})
            letters |= {(label, column.name): text for label, text in own.items()}
    return Marks(frozenset(best), letters, tuple(untested))


def _tests(
    summary: Summary, model: str, columns: Sequence[Chosen], read_items: ReadItems
) -> dict[str, dict[frozenset[str], float]]:
    """Return the corrected p of each pair of a model's labels by column; of what no test is made of, nothing."""
    found: dict[str, dict[frozenset[str], float]] = {}
    single: list[tuple[str, frozenset[str], float]] = []
    for column in columns:
        if column.average == "avg":
            pairs = pairs_of(summary, model, read_items)
            found[column.name] = {frozenset((pair.first, pair.second)): pair.p_value for pair in pairs}
        elif column.score is not None:
            results = compared(summary, model, [column.score], read_items)
            single += [(column.name, frozenset((one, other)), result.p_value) for one, other, result in results]
    for (name, pair, _), p_value in zip(single, holm([p_value for *_, p_value in single]), strict=True):
        found.setdefault(name, {})[pair] = p_value
    return found


def _falls(rows: Sequence[Row], column: Chosen, summary: Summary) -> bool | None:
    """Return whether less is better, as of a perplexity; None of an average in which that is not the same for all."""
    within = [c for c in summary.columns if c.in_average] if column.score is None else [column.score]
    found = {
        score.higher_is_better
        for row in rows
        for run in row.finished
        for c in within
        if (score := run.score(c)) is not None
    }
    return None if len(found) > 1 else found == {False}
