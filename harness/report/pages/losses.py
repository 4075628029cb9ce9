"""Which labels of a model can be told apart by the held-out loss and by general text's, on the seeds they share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.quantities import GENERAL_LOSS, HELD_OUT_BEFORE, HELD_OUT_LOSS
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
    "of batches, blocks and adapters; not the choice of the rows whose loss is taken, nor that of the learning rates: "
    "a difference as small as that between two neighbours of a grid is none of methods. Left out by name are labels "
    "with a run that ended above its held-out loss before training or without a finite one, that lack a seed of the "
    "others, or that train on other rows, batches or in another precision."
)
LEAST = 1e-4
"""Nats: what is nearer is rounding, whatever seeds do."""
ALIKE = (
    *("data", "prompt", "loss_on", "packing", "sequence_length", "batch_size", "gradient_accumulation_steps"),
    *("validation_rows", "dtype", "quantization"),
)
"""Settings that labels must share for a seed to draw the same batches and a loss to be of the same rows."""
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
    """Labels with a loss that are not compared."""

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

    found = ((row.label, _readings(row, quantity)) for row in rows if row.trains and row.finished)
    given = {label: readings for label, readings in found if readings is not None}
    usable = {label: readings for label, readings in given.items() if readings.usable}
    alike, seeds = _most_telling(list(usable.values()))
    chosen = {
        label: readings.values
        for label, readings in usable.items()
        if readings.alike == alike and seeds <= readings.values.keys()
    }
    if len(chosen) < 2:
        return None
    order = sorted(seeds)
    table = np.array([[values[seed] for seed in order] for values in chosen.values()])
    left_out = tuple(label for label in given if label not in chosen)
    shown = tuple(tuple(map(float, line)) for line in table)
    return Losses(quantity, tuple(chosen), tuple(order), shown, blocked_means(table, least=LEAST), left_out)


@dataclass(frozen=True)
class _Readings:
    """One loss of one label."""

    alike: tuple[Any, ...]
    """What labels must share to be compared."""
    values: dict[int, float]
    """By seed; nothing that is not finite."""
    usable: bool
    """False: a run has no finite loss, or ended above where it began."""


def _readings(row: Row, quantity: Quantity) -> _Readings | None:
    """Return what was read of a loss; None where nothing was."""
    assert row.spec is not None and row.spec.train is not None
    runs = [(run.seed, run.record) for run in row.finished if run.record is not None]
    read = {seed: value for seed, record in runs if (value := quantity.read(record)) is not None}
    finite = {seed: value for seed, value in read.items() if math.isfinite(value)}
    ends = [(HELD_OUT_BEFORE.read(record), HELD_OUT_LOSS.read(record)) for _, record in runs]
    learned = all(before is None or after is None or after <= before for before, after in ends)
    alike = (*(getattr(row.spec.train, name) for name in ALIKE), row.spec.sources.get("train"))
    return _Readings(alike, finite, usable=learned and len(finite) == len(read)) if read else None


def _most_telling(given: Sequence[_Readings]) -> tuple[tuple[Any, ...] | None, frozenset[int]]:
    """Return what labels share and the seeds that give the most degrees of freedom; None where nothing gives any."""
    freedom: dict[tuple[tuple[Any, ...], frozenset[int]], int] = {}
    for one, other in itertools.combinations(given, 2):
        seeds = frozenset(one.values) & frozenset(other.values)
        if one.alike == other.alike and (one.alike, seeds) not in freedom:
            sharing = sum(third.alike == one.alike and seeds <= third.values.keys() for third in given)
            freedom[one.alike, seeds] = (sharing - 1) * (len(seeds) - 1)
    found = max(freedom, key=freedom.__getitem__, default=None)
    return (None, frozenset()) if found is None or freedom[found] < 1 else found


def losses_blocks(summary: Summary, found: dict[str, list[Losses]]) -> list[Block]:
    """Return the section of a page on losses that were compared, or nothing."""
    blocks: list[Block] = []
    for model, several in found.items():
        blocks.append(Heading(3, summary.heading(model)))
        for losses in several:
            blocks.append(TableBlock(losses_table(losses), _caption(losses)))
            if losses.left_out:
                blocks.append(Paragraph(f"Not compared: {', '.join(losses.left_out)}."))
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
