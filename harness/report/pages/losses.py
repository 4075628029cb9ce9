"""Which labels of a model can be told apart by the held-out loss and by general text's, on the seeds they share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.quantities import GENERAL_LOSS, HELD_OUT_LOSS
from harness.quantity import Quantity
from harness.report.pages.document import Block, Heading, Paragraph, TableBlock
from harness.report.reading.summary import Row, Summary
from harness.report.statistics.blocked import Blocked, blocked_means
from harness.report.statistics.family import letters_of
from harness.report.statistics.intervals import LEVEL
from harness.report.table import Cell, Column, Table
from harness.report.units import percent

LOSSES = (HELD_OUT_LOSS, GENERAL_LOSS)
LETTERS_DEFINITION = "Labels that share a letter cannot be told apart by this loss."
LOSSES_DEFINITION = (
    "Means over the seeds that all labels of the table have; a seed draws the same batches for every label, so its "
    "part falls out. Two are told apart where they differ by more than Tukey's honest significant difference at "
    f"{percent(1 - LEVEL)}% over all pairs of the table, by the variance of what neither label nor seed explains; "
    "where the differences of a pair spread more than that from seed to seed, by half their own. It covers the draws "
    "of batches, blocks and adapters, and not the choice of the rows whose loss is taken."
)
DEFINITIONS = (("losses told apart", LOSSES_DEFINITION),)


@dataclass(frozen=True)
class Losses:
    """One loss of the labels of one model that share seeds."""

    quantity: Quantity
    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    """Nats, of each label with each seed."""
    blocked: Blocked
    left_out: tuple[str, ...]
    """Labels with a loss that lack a seed of the others', or that train in another precision."""

    @property
    def pairs_apart(self) -> frozenset[frozenset[str]]:
        """Return the pairs of labels that can be told apart."""
        places = itertools.combinations(range(len(self.labels)), 2)
        return frozenset(frozenset((self.labels[i], self.labels[j])) for i, j in places if self.blocked.apart(i, j))


def found_losses(summary: Summary) -> dict[str, list[Losses]]:
    """Return the losses of every model of which labels can be compared, in the order of the report."""
    found = {
        model: [losses for quantity in LOSSES if (losses := losses_of(summary.rows_of(model), quantity)) is not None]
        for model in summary.models
    }
    return {model: losses for model, losses in found.items() if losses}


def losses_of(rows: Sequence[Row], quantity: Quantity) -> Losses | None:
    """Return a loss of the rows of one model that share at least two seeds; None where no two do."""
    import numpy as np

    given: dict[str, tuple[str, dict[int, float]]] = {}
    for row in rows:
        read = {run.seed: quantity.read(run.record) for run in row.finished if run.record is not None}
        values = {seed: value for seed, value in read.items() if value is not None and math.isfinite(value)}
        if row.trains and row.spec is not None and values:
            given[row.label] = row.spec.dtype, values
    precision, seeds = _most_telling([(dtype, frozenset(values)) for dtype, values in given.values()])
    chosen = {
        label: values for label, (dtype, values) in given.items() if dtype == precision and seeds <= values.keys()
    }
    if len(chosen) < 2:
        return None
    table = np.array([[values[seed] for seed in sorted(seeds)] for values in chosen.values()])
    left_out = tuple(label for label in given if label not in chosen)
    shown = tuple(tuple(map(float, line)) for line in table)
    return Losses(quantity, tuple(chosen), tuple(sorted(seeds)), shown, blocked_means(table), left_out)


def _most_telling(given: Sequence[tuple[str, frozenset[int]]]) -> tuple[str | None, frozenset[int]]:
    """Return the precision and the seeds of which labels give the most degrees of freedom; None where none has two."""
    freedom = {
        (dtype, seeds): (sum(dtype == other and seeds <= others for other, others in given) - 1) * (len(seeds) - 1)
        for dtype, seeds in given
    }
    found = max(freedom, key=freedom.__getitem__, default=None)
    return (None, frozenset()) if found is None or not freedom[found] else found


def losses_blocks(summary: Summary, found: dict[str, list[Losses]]) -> list[Block]:
    """Return the section of a page on losses that were compared, or nothing."""
    blocks: list[Block] = []
    for model, several in found.items():
        blocks.append(Heading(3, summary.heading(model)))
        for losses in several:
            blocks.append(TableBlock(losses_table(losses), _caption(losses)))
            if losses.left_out:
                others = "Of other seeds or another precision, and not compared: "
                blocks.append(Paragraph(f"{others}{', '.join(losses.left_out)}."))
    return [Heading(2, "Which losses can be told apart"), *blocks] if blocks else []


def _caption(losses: Losses) -> str:
    title = losses.quantity.title
    return (
        f"{title[0].upper()}{title[1:]}, the lowest first: mean over seeds {', '.join(map(str, losses.seeds))}. "
        f"Nothing nearer than {losses.blocked.smallest_apart:.4f} nats is told apart."
    )


def losses_table(losses: Losses) -> Table:
    """Return the labels by their mean loss with its range over the seeds and the letters of their groups."""
    means = losses.blocked.means
    order = sorted(range(len(means)), key=means.__getitem__)
    labels = [losses.labels[i] for i in order]
    letters = letters_of(labels, losses.pairs_apart)
    columns = (
        Column("label", "left"),
        Column(f"{losses.quantity.title} (nats)"),
        Column("lowest to highest seed"),
        Column("cannot be told apart", "left", LETTERS_DEFINITION),
    )
    rows = tuple(
        (
            losses.labels[i],
            Cell(f"{means[i]:.4f}", means[i]),
            f"{min(losses.values[i]):.4f} to {max(losses.values[i]):.4f}",
            letters[losses.labels[i]],
        )
        for i in order
    )
    return Table(columns, rows)


def losses_sentences(several: Sequence[Losses]) -> list[str]:
    """Return how many pairs of a model's labels each loss tells apart."""
    sentences = []
    for losses in several:
        pairs = len(losses.labels) * (len(losses.labels) - 1) // 2
        those = "the one pair" if pairs == 1 else f"{len(losses.pairs_apart)} of {pairs} pairs"
        can = "cannot" if pairs == 1 and not losses.pairs_apart else "can"
        sentence = f"{those} of labels on the same seeds {can} be told apart by their {losses.quantity.title}."
        sentences.append(sentence[0].upper() + sentence[1:])
    return sentences
