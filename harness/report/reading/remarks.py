"""What a report says of its runs beside their figures: remarks by row, as bullets of the page and for machines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from harness.remarks import Remark, remarks_of
from harness.report.reading.summary import Row, Summary

SENTENCES_SHOWN = 3
"""Of one kind; the numbers in them differ from run to run."""
_KEY = "remarks"
"""Place of a row's remarks among its estimates."""


def remarks_of_row(row: Row) -> tuple[Remark, ...]:
    """Return what is to be known of a row's runs and of their later scores, what several have in common once."""
    if _KEY not in row.estimates:
        records = [record for run in row.runs for record in run.told_by]
        row.estimates[_KEY] = tuple(dict.fromkeys(remark for record in records for remark in remarks_of(record)))
    found: tuple[Remark, ...] = row.estimates[_KEY]
    return found


def remark_sentences(summary: Summary) -> list[str]:
    """Return a sentence for each kind of remark: what is said, of which labels."""
    kinds: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in summary.rows:
        for remark in remarks_of_row(row):
            kinds[remark.kind][remark.sentence].append(row)
    sentences = []
    for kind, said in kinds.items():
        shown = [
            f"{sentence} ({_named(rows, summary.models)})" for sentence, rows in list(said.items())[:SENTENCES_SHOWN]
        ]
        more = len(said) - len(shown)
        others = f"; and {more} more like it, in harness show" if more > 0 else ""
        sentences.append(f"{kind[0].upper()}{kind[1:]}: {'; '.join(shown)}{others}.")
    return sentences


def _named(rows: Sequence[Row], models: Sequence[str]) -> str:
    """Return the labels of rows; where they are not the same on every model of the report, those of each model."""
    labels = {model: ", ".join(row.label for row in rows if row.model == model) for model in models}
    if len(set(labels.values())) == 1:
        return labels[models[0]]
    return "; ".join(f"{model}: {of_model}" for model, of_model in labels.items() if of_model)


def remarks_json(summary: Summary) -> list[dict[str, Any]]:
    """Return every remark for machines, with its run."""
    return [
        {"model": run.model, "label": run.label, "seed": run.seed, "kind": remark.kind, "sentence": remark.sentence}
        for row in summary.rows
        for run in row.runs
        for remark in dict.fromkeys(remark for record in run.told_by for remark in remarks_of(record))
    ]
