"""What came out, in a few sentences on top of a report: only what its tables and tests say, and nothing beyond."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from harness import quantities
from harness.quantity import Quantity
from harness.report.pages.losses import Losses, losses_sentences
from harness.report.pages.pairs import Pair
from harness.report.reading.estimates import over_seeds
from harness.report.reading.summary import Row, Summary
from harness.report.reading.words import status_words
from harness.report.statistics.intervals import LEVEL
from harness.report.units import UNITS, bare

NO_LOSSES: Mapping[str, Sequence[Losses]] = {}
MOST_NAMED = 6
"""Pairs of labels that are told apart and named."""


def outcome_sentences(
    summary: Summary, pairs: Mapping[str, Sequence[Pair]], losses: Mapping[str, Sequence[Losses]] = NO_LOSSES
) -> list[str]:
    """Return how many runs have a result, which labels can be told apart, and the ranges of memory and loss.

    Args:
        summary: What is reported.
        pairs: The comparisons of each model's labels that could be made.
        losses: Those by a loss.
    """
    sentences = [_runs_sentence(summary)]
    models = [model for model in summary.models if summary.has_records(model)]
    for model in models:
        said = [
            *([_apart_sentence(pairs[model])] if model in pairs else []),
            *losses_sentences(losses.get(model, ())),
            *_range_sentences(summary, summary.rows_of(model)),
        ]
        sentences += [f"{model}: {sentence}" if len(models) > 1 else sentence for sentence in said]
    return sentences


def _runs_sentence(summary: Summary) -> str:
    runs = [run for row in summary.rows for run in row.runs]
    others = Counter(status_words(run.status) for run in runs if run.status != "ok")
    have = "1 run has" if len(runs) == 1 else f"{len(runs)} runs have"
    if not others:
        return f"{have} a result: all that were asked for."
    told = ", ".join(f"{count} {words}" for words, count in others.items())
    return f"{len(runs) - others.total()} of {len(runs)} runs have a result; {told}."


def _apart_sentence(pairs: Sequence[Pair]) -> str:
    """Return which labels the tests tell apart; of the others nothing but that they do not."""
    apart = sorted((pair for pair in pairs if pair.p_value <= 1 - LEVEL), key=lambda pair: pair.p_value)
    if not apart:
        if len(pairs) == 1:
            return f"The averages of {pairs[0].first} and {pairs[0].second} cannot be told apart."
        return f"None of the {len(pairs)} pairs of labels can be told apart by their average."
    named = [_higher(pair) for pair in apart[:MOST_NAMED]]
    more = f" and {len(apart) - MOST_NAMED} pairs more" if len(apart) > MOST_NAMED else ""
    rest = len(pairs) - len(apart)
    left = f"; the other {'pair' if rest == 1 else f'{rest} pairs'} cannot" if rest else ""
    return f"Told apart by their average: {'; '.join(named)}{more}{left}."


def _higher(pair: Pair) -> str:
    above, below = (pair.second, pair.first) if pair.result.difference.mean > 0 else (pair.first, pair.second)
    return f"{above} is above {below}"


def _range_sentences(summary: Summary, rows: Sequence[Row]) -> list[str]:
    memory = quantities.PEAK_MEMORY if summary.view.environment.on_cuda else quantities.TRACKED_PEAK
    sentences = [_range(memory, rows)]
    before = {over_seeds(row, quantities.HELD_OUT_BEFORE) for row in rows} - {None}
    loss = _range(quantities.HELD_OUT_LOSS, rows)
    if loss is not None and len(before) == 1:
        loss = f"{loss.removesuffix('.')}; before training {bare(before.pop() or 0.0, 'nats')} for all."
    return [sentence for sentence in (*sentences, loss) if sentence is not None]


def _range(quantity: Quantity, rows: Sequence[Row]) -> str | None:
    """Return the smallest and the largest value of a quantity with their labels; None where no row has one."""
    found = {row.label: value for row in rows if row.finished and (value := over_seeds(row, quantity)) is not None}
    if not found:
        return None
    low, high = min(found, key=lambda label: found[label]), max(found, key=lambda label: found[label])
    unit, title = UNITS[quantity.unit][1], quantity.title[0].upper() + quantity.title[1:]
    if found[low] == found[high]:
        return f"{title}: {bare(found[low], quantity.unit)} {unit} ({', '.join(found)})."
    return (
        f"{title}: from {bare(found[low], quantity.unit)} {unit} ({low}) to {bare(found[high], quantity.unit)} {unit} "
        f"({high})."
    )
