"""MT-Bench in a report: a table a judge, because scores of different judges do not compare."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev

from harness.record import Judging, Score
from harness.report.pages.estimated import Found, estimate_table
from harness.report.reading.items import outcomes_of
from harness.report.reading.summary import Row, Summary
from harness.report.reading.words import label_text, row_status
from harness.report.statistics.intervals import Estimate, Interval, estimate_score
from harness.report.statistics.means import mean_interval
from harness.report.table import Cell, Column, Entry, Table, counted
from harness.report.units import NOTHING

NOT_JUDGED = "not judged"
AGGREGATES = ("mean", "turn 1", "turn 2", "mean of 8 categories", "mean of 7 categories")
"""Metrics of the first table; all others are categories."""
COUNTS = ("judgments", "without a score")
SEVERAL = "several ratings"
"""A column only where some judgment gives several that differ."""
SPREAD = "repeats, standard deviation"
DEFINITIONS = (
    (
        "MT-Bench",
        "A judge gives each answer 1 to 10 points. mean: over the judgments of both turns, as FastChat's; n is their "
        "number. mean of 8 categories: unweighted mean of the categories' means; of 7: without coding, as LISA's.",
    ),
    (
        "judgments without a score",
        "Judgments in which no score could be read are counted under 'without a score' and enter no mean; those that "
        "give several ratings that differ under 'several ratings', a column only where there are any: the first of "
        "them counts, as FastChat has it, unless the judge's name says the last. What a judge thinks aloud (<think>) "
        "is not read.",
    ),
    (
        "intervals of MT-Bench",
        "One seed: normal, from the standard error over questions (turns and repeats of a question "
        "taken together); they cover neither the seed nor the judge. Several seeds: Student's t over the seeds.",
    ),
    (SPREAD, "Of the means of a run's repeated judging, largest over the seeds: how much the judge itself wavers."),
)


def judges_of(summary: Summary) -> tuple[str, ...]:
    """Return the identities of all judges of the shown runs, the one that judged last at the end."""
    judgings = [record for row in summary.rows for run in row.runs for record in run.judgings]
    judgings.sort(key=lambda record: record.in_time)
    names = [record.judging.identity for record in judgings if record.judging is not None]
    return tuple(reversed(dict.fromkeys(reversed(names))))


def judge_tables(summary: Summary, model: str, judge: str) -> tuple[Table, Table]:
    """Return what one judge gave the labels of a model: means and counts, and the means by category."""
    rows = summary.rows_of(model)
    known = dict.fromkeys(score.metric for row in rows for scores in _scores(row, judge) for score in scores)
    repeated = any(judging.repeats > 1 for row in rows for judging in _judgings(row, judge))
    several = any(judging.num_several for row in rows for judging in _judgings(row, judge))
    counts = (*COUNTS, *((SEVERAL,) if several else ()), *((SPREAD,) if repeated else ()))
    aggregates = [metric for metric in AGGREGATES if metric in known]
    categories = [metric for metric in known if metric not in AGGREGATES]
    return (
        _table(rows, judge, aggregates, counts),
        _table(rows, judge, categories, ()),
    )


def not_judged_sentence(summary: Summary) -> str | None:
    """Return what to do about answers that nobody has judged; None where some judge has, or there are none."""
    if summary.view.evaluation.mt_bench is None or judges_of(summary):
        return None
    answered = sum(record.mt_bench is not None for row in summary.rows for record in row.records)
    if not answered:
        return None
    runs = "1 run is" if answered == 1 else f"{answered} runs are"
    return (
        f"The MT-Bench answers of {runs} not judged yet: harness judge --suite {summary.suite.name} --judge URL "
        "--judge-model NAME."
    )


def points_of_row(row: Row, judge: str, metric: str) -> Estimate | None:
    """Return the estimate of one metric over a row's finished runs; None unless the judge gave all of them one."""
    found = [next((s for s in scores if s.metric == metric), None) for scores in _scores(row, judge)]
    known = [score for score in found if score is not None]
    if not known or len(known) < len(row.finished):
        return None
    return estimate_score(known, _by_item(row, judge, known) if len(known) > 1 else None)


def _by_item(row: Row, judge: str, scores: Sequence[Score]) -> Interval | None:
    """Return the interval over questions and seeds; None unless a judge's points are there for the same questions."""
    import numpy as np

    records = [
        next(r for r in reversed(run.judgings) if r.judging is not None and r.judging.identity == judge)
        for run in row.finished
    ]
    files = [None if record.items is None else row.read_items(record.items) for record in records]
    found = [None if file is None else outcomes_of(score, file) for score, file in zip(scores, files, strict=True)]
    known = [outcomes for outcomes in found if outcomes is not None]
    if len(known) < len(found) or any(outcomes.keys() != known[0].keys() for outcomes in known):
        return None
    return mean_interval([np.array([[outcomes[key] for key in known[0]] for outcomes in known])])


def counts_of_row(row: Row, judge: str) -> tuple[int, int]:
    """Return how many judgments there are of a row's runs, and in how many of them no score could be read."""
    judgings = _judgings(row, judge)
    return (
        sum(judging.num_parsed + judging.num_unparsed for judging in judgings),
        sum(judging.num_unparsed for judging in judgings),
    )


def _table(rows: Sequence[Row], judge: str, metrics: Sequence[str], counts: Sequence[str]) -> Table:
    titles = (*metrics, *counts)
    cells: list[tuple[list[Entry], list[Found | Entry]]] = []
    for row in rows:
        if not row.finished or not _judgings(row, judge):
            status = NOT_JUDGED if row.finished else row_status(row)
            cells.append(([label_text(row)], [status] * len(titles)))
            continue
        points = [points_of_row(row, judge, metric) for metric in metrics]
        shown: list[Found | Entry] = [NOT_JUDGED if cell is None else (cell, "points") for cell in points]
        numbers: dict[str, Entry] = dict(zip(COUNTS, map(counted, counts_of_row(row, judge)), strict=True))
        numbers[SEVERAL] = counted(sum(judging.num_several or 0 for judging in _judgings(row, judge)))
        numbers[SPREAD] = _spread(row, judge)
        cells.append(([label_text(row)], [*shown, *(numbers[title] for title in counts)]))
    return estimate_table((Column("label", "left"),), [Column(title) for title in titles], cells)


def _spread(row: Row, judge: str) -> Entry:
    spreads = [stdev(judging.repeat_means) for judging in _judgings(row, judge) if len(judging.repeat_means) > 1]
    return Cell(f"{max(spreads):.3f}", max(spreads)) if spreads else NOTHING


def _judgings(row: Row, judge: str) -> list[Judging]:
    """Return what one judge did of a row's finished runs."""
    return [
        record.judging
        for run in row.finished
        for record in run.judgings
        if record.judging is not None and record.judging.identity == judge
    ]


def _scores(row: Row, judge: str) -> list[tuple[Score, ...]]:
    return [scores for run in row.finished if (scores := run.judged_scores(judge))]
