"""Which labels of one model can be told apart by their average, item by item on the same seeds.

All pairs of a model's table share one family-wise level. Labels without a test between them that rejects are shown as a
group: an order among them would be made up. A label without training ran once, and that run stands for every seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.record import Score
from harness.report.pages.document import Block, Heading, Paragraph, TableBlock
from harness.report.reading.items import ItemFile, ItemKey, ReadItems, outcomes_of
from harness.report.reading.summary import Row, ScoreColumn, Summary
from harness.report.statistics.family import POWER, holm, letters_of
from harness.report.statistics.intervals import LEVEL, mean_value
from harness.report.statistics.pairs import PairResult, compare_methods
from harness.report.table import Cell, Column, Entry, Table, counted
from harness.report.units import NOTHING, percent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NOTHING_FOUND = "nothing"
MOST_PAIRS = 30
"""Rows of a model's table of pairs."""
P_DEFINITION = (
    "Two-sided, by Holm's correction over all pairs of the model; at most "
    f"{1 - LEVEL:.2f} tells two labels apart. Labels that share a letter cannot be told apart."
)
DIFFERENCE_DEFINITION = (
    "Of the averages, item by item on the seeds that both labels have; a label without training counts with its one "
    "run for every seed. The interval is that of this one pair, by the variances of the test with parts of an item "
    "won and lost added; where no outcome differs it is the exact bound on what could."
)
TEST_DEFINITION = (
    "Of one seed the signs of the items that differ, exactly (McNemar's for one task; in general a randomisation test, "
    "items weighing as in the average), which covers the choice of items and not the seed; of several seeds besides "
    "Student's t with the variances of items and seeds, and the larger p of the two."
)
FOUND_DEFINITION = (
    f"The smallest true difference that these items and seeds would have shown in {POWER:.0%} of cases, at the share "
    f"of the level that one pair has; {NOTHING_FOUND}: none that the scale holds; {NOTHING} where no outcome differs."
)
EFFECT_DEFINITION = "Cohen's h of the two accuracies; 0.2 is small, 0.5 medium, 0.8 large."
DEFINITIONS = (
    ("second less first", DIFFERENCE_DEFINITION),
    ("p", P_DEFINITION),
    ("effect", EFFECT_DEFINITION),
    ("could be found", FOUND_DEFINITION),
    ("test", TEST_DEFINITION),
)


@dataclass(frozen=True)
class Pair:
    """Two labels of one model."""

    first: str
    second: str
    result: PairResult
    p_value: float
    """Corrected over the pairs of the model."""
    smallest: float | None
    """None: nothing that the scale holds, or no outcome differs, which tells nothing of it."""


def comparison_blocks(summary: Summary, read_items: ReadItems) -> list[Block]:
    """Return the section of a page, or nothing where no two labels have items of the same tasks and seeds."""
    return told_apart_blocks(summary, found_pairs(summary, read_items))


def found_pairs(summary: Summary, read_items: ReadItems) -> dict[str, list[Pair]]:
    """Return the comparisons of every model that has any."""
    found = {model: pairs_of(summary, model, read_items) for model in summary.models}
    return {model: pairs for model, pairs in found.items() if pairs}


def told_apart_blocks(summary: Summary, found: Mapping[str, Sequence[Pair]]) -> list[Block]:
    """Return the section of a page on comparisons that were made."""
    blocks: list[Block] = []
    for model, pairs in found.items():
        blocks.append(Heading(3, summary.heading(model)))
        averages = complete_averages(summary, model, pairs)
        if averages is not None:
            blocks.append(TableBlock(group_table(pairs, averages)))
        clearest = sorted(pairs, key=lambda pair: (pair.p_value, pair.result.p_value))
        blocks.append(TableBlock(pair_table(clearest[:MOST_PAIRS])))
        if len(pairs) > MOST_PAIRS:
            blocks.append(Paragraph(f"The {MOST_PAIRS} clearest of {len(pairs)} pairs."))
        if unlike := _on_unlike_weights(summary, model, pairs):
            blocks.append(Paragraph(unlike))
    if not blocks:
        return []
    return [Heading(2, "Which labels can be told apart"), *blocks]


def _on_unlike_weights(summary: Summary, model: str, pairs: Sequence[Pair]) -> str | None:
    """Return which labels in some pairs are on quantized base weights, where others are not."""
    labels = {label for pair in pairs for label in (pair.first, pair.second)}
    held = {
        row.label: row.spec is not None and row.spec.train is not None and row.spec.train.quantized is not None
        for row in summary.rows_of(model)
        if row.label in labels
    }
    packed = [label for label, quantized in held.items() if quantized]
    if not packed or all(held.values()):
        return None
    return (
        f"{', '.join(packed)} {'is' if len(packed) == 1 else 'are'} trained and scored on quantized base weights, the "
        "other labels are not: what tells the two apart includes what quantization changes."
    )


def pairs_of(summary: Summary, model: str, read_items: ReadItems) -> list[Pair]:
    """Return the comparison of each pair of a model's labels that answered the same items, in the order of the rows."""
    found = compared(summary, model, [column for column in summary.columns if column.in_average], read_items)
    adjusted = holm([result.p_value for _, _, result in found])
    level = (1 - LEVEL) / max(1, len(found))
    return [
        Pair(first, second, result, p_value, result.smallest(level) if result.difference.standard_error else None)
        for (first, second, result), p_value in zip(found, adjusted, strict=True)
    ]


def compared(
    summary: Summary, model: str, columns: Sequence[ScoreColumn], read_items: ReadItems
) -> list[tuple[str, str, PairResult]]:
    """Return the tests between a model's labels on the mean of some columns, not corrected, in the order of the rows.

    Two labels without the same items, seeds or precision have none.
    """
    rows = [row for row in summary.rows_of(model) if row.finished]
    found: list[tuple[str, str, PairResult]] = []
    for one, other in itertools.combinations(rows, 2):
        result = _compare(one, other, columns, read_items)
        if result is not None:
            found.append((one.label, other.label, result))
    return found


def group_table(pairs: Sequence[Pair], averages: dict[str, float]) -> Table:
    """Return the labels by their average with the letters of their groups.

    Args:
        pairs: Of one model, every two of its labels.
        averages: Of the labels, a fraction.
    """
    labels = sorted(averages, key=lambda label: -averages[label])
    apart = {frozenset((pair.first, pair.second)) for pair in pairs if pair.p_value <= 1 - LEVEL}
    letters = letters_of(labels, apart)
    columns = (
        Column("label", "left"),
        Column("average (%)"),
        Column("cannot be told apart", "left", "Labels that share a letter cannot be told apart."),
    )
    return Table(columns, tuple((label, _percent(averages[label]), letters[label]) for label in labels))


def pair_table(pairs: Sequence[Pair]) -> Table:
    """Return the pairs in the order given."""
    columns = (
        Column("first", "left"),
        Column("second", "left"),
        Column("second less first (pt)", definition=DIFFERENCE_DEFINITION),
        Column("p", definition=P_DEFINITION),
        Column("effect", definition=EFFECT_DEFINITION),
        Column("could be found (pt)", definition=FOUND_DEFINITION),
        Column("items"),
        Column("seeds"),
        Column("test", "left", TEST_DEFINITION),
    )
    rows = []
    for pair in pairs:
        result, difference = pair.result, pair.result.difference
        bounds = () if result.interval is None else ("[{:+.1f}, {:+.1f}]".format(*(100 * e for e in result.interval)),)
        rows.append(
            (
                pair.first,
                pair.second,
                Cell(f"{100 * difference.mean:+.1f}", difference.mean, bounds),
                Cell("<0.0001" if pair.p_value < 1e-4 else f"{pair.p_value:.2g}", pair.p_value),
                NOTHING if result.effect_size is None else Cell(f"{result.effect_size:+.2f}", result.effect_size),
                _smallest(pair),
                counted(difference.num_items),
                counted(difference.num_seeds),
                result.test,
            )
        )
    return Table(columns, tuple(rows))


def _smallest(pair: Pair) -> Entry:
    """Return what could be found; without an outcome that differs nothing is known of that."""
    if not pair.result.difference.standard_error:
        return NOTHING
    return NOTHING_FOUND if pair.smallest is None else _percent(pair.smallest)


def _percent(value: float) -> Cell:
    return Cell(percent(value), value)


def complete_averages(summary: Summary, model: str, pairs: Sequence[Pair]) -> dict[str, float] | None:
    """Return the averages of the labels in some pairs; None unless every two of them are a pair."""
    labels = {label for pair in pairs for label in (pair.first, pair.second)}
    if len(pairs) != len(labels) * (len(labels) - 1) // 2:
        return None
    columns = [column for column in summary.columns if column.in_average]
    return {
        row.label: mean_value(score for run in row.finished for c in columns if (score := run.score(c)) is not None)
        for row in summary.rows_of(model)
        if row.label in labels
    }


def _compare(one: Row, other: Row, columns: Sequence[ScoreColumn], read_items: ReadItems) -> PairResult | None:
    """Return the comparison of two rows, or None where they share no seed or precision, or items are missing."""
    if one.spec is None or other.spec is None or one.spec.dtype != other.spec.dtype:
        return None
    seeds = sorted(_seeds(one, other) & _seeds(other, one))
    tasks = [_arrays(one, other, column, seeds, read_items) for column in columns]
    known = [task for task in tasks if task is not None]
    if not seeds or not known or len(known) < len(tasks):
        return None
    return compare_methods([first for first, _ in known], [second for _, second in known])


def _seeds(row: Row, other: Row) -> set[int]:
    """Return the seeds of a row; one without training has those of the other, for its run stands for any."""
    own = {run.seed for run in row.finished}
    return own | {run.seed for run in other.finished} if row.trains is False and other.trains else own


def _arrays(
    one: Row, other: Row, column: ScoreColumn, seeds: Sequence[int], read_items: ReadItems
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the outcomes of two rows on one task, (num_seeds, num_items) each."""
    import numpy as np

    sides: list[list[dict[ItemKey, float]]] = []
    for row in (one, other):
        runs = {run.seed: run for run in row.finished}
        found = []
        for seed in seeds:
            run = runs.get(seed, row.finished[0])
            score = run.score(column)
            file = None if score is None else run.files.get(score.key)
            outcomes = None if score is None or file is None else _outcomes(score, read_items(file))
            if outcomes is None:
                return None
            found.append(outcomes)
        sides.append(found)
    keys = sorted(set.intersection(*(set(outcomes) for side in sides for outcomes in side)))
    if not keys:
        return None
    first, second = (np.array([[outcomes[key] for key in keys] for outcomes in side]) for side in sides)
    return first, second


def _outcomes(score: Score, file: ItemFile | None) -> dict[ItemKey, float] | None:
    return None if file is None else outcomes_of(score, file)
