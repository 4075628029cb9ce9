"""What is said of a table for a paper: the caption from the protocol, and notes on what else has to be known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from harness.readings import is_short
from harness.report.pages.costs import definition
from harness.report.pages.page import result_notes
from harness.report.reading.estimates import over_seeds, score_of_row
from harness.report.reading.summary import Row, ScoreColumn, Summary
from harness.report.reading.view import view_notes
from harness.report.reading.words import row_status
from harness.report.statistics.intervals import LEVEL
from harness.report.tables.cells import SHORT_RUN, estimate_of
from harness.report.tables.choice import TableChoice
from harness.report.tables.columns import Chosen
from harness.report.tables.marks import Marks

MOST_COUNTS = 3
"""Numbers of items that are named one by one."""
Rows = Sequence[Sequence[Row]]
"""The rows that are shown of each suite."""


def named_model(choice: TableChoice, summaries: Sequence[Summary], model: str) -> str:
    """Return how a model is called in the table, whatever was in its place said behind it."""
    marks = dict.fromkeys(mark for summary in summaries if (mark := summary.stand_ins(model)))
    return choice.names.get(model, model) + "".join(marks)


def caption_of(
    choice: TableChoice,
    summaries: Sequence[Summary],
    blocks: Sequence[Sequence[Chosen]],
    rows: Rows,
    marks: list[Marks],
) -> str:
    """Return the caption: what is shown, of which protocol, over how many items and seeds, and how it is marked."""
    named = len({row.model for known in rows for row in known}) == 1
    said = [choice.caption.strip()] if choice.caption.strip() else []
    for summary, block, known in zip(summaries, blocks, rows, strict=True):
        models = dict.fromkeys(row.model for row in known)
        on = f" on {', '.join(named_model(choice, summaries, model) for model in models)}" if named and models else ""
        name = choice.names.get(summary.suite.name, summary.suite.name)
        said.append(f"{name}, version {summary.view.suite_version}, protocol {summary.view.protocol}{on}.")
        said += view_notes(summary.suite, summary.view)
        if any(column.is_score for column in block):
            said.append(f"Scores in {_units(summary, block, known)}{_items(summary, block, known)}{_seeds(known)}.")
        else:
            said += [f"{part.strip(' ,;').capitalize()}." for part in [_seeds(known)] if part]
    said += _style_sentences(choice, summaries, blocks, rows)
    said += _mark_sentences(choice, blocks, marks)
    said += _row_sentences(choice, blocks, rows)
    said.append(_made(summaries, rows))
    return " ".join(said)


def _units(summary: Summary, block: Sequence[Chosen], rows: Sequence[Row]) -> str:
    found = {
        estimate[1] for column in block for row in rows if (estimate := estimate_of(row, column, summary)) is not None
    }
    return " and ".join("%" if unit == "fraction" else unit for unit in sorted(found)) or "%"


def _items(summary: Summary, block: Sequence[Chosen], rows: Sequence[Row]) -> str:
    counts = {
        count
        for score in dict.fromkeys(score for column in block for score in _scores_of(column, summary))
        for row in rows
        if row.finished and (found := score_of_row(row, score)) is not None
        for count in found[0].num_items
    }
    if not counts:
        return ""
    few = sorted(counts)
    told = " or ".join(map(str, few)) if len(few) <= MOST_COUNTS else f"{few[0]} to {few[-1]}"
    return f", n = {told} items a task"


def _scores_of(column: Chosen, summary: Summary) -> list[ScoreColumn]:
    """Return the scores that a column is of: its own, or those that enter its average."""
    if column.average is not None:
        return [score for score in summary.columns if score.in_average]
    return [] if column.score is None else [column.score]


def _seeds(rows: Sequence[Row]) -> str:
    """Return over which seeds the rows are, those that are not like most named."""
    trained = {(row.model, row.label): tuple(run.seed for run in row.finished) for row in rows if row.trains}
    counted = Counter(seeds for seeds in trained.values() if seeds)
    if not counted:
        return ""
    most = counted.most_common(1)[0][0]
    said = f", {_seed_words(most)}"
    others: dict[tuple[int, ...], list[str]] = {}
    for (_, label), seeds in trained.items():
        if seeds and seeds != most:
            others.setdefault(seeds, []).append(label)
    return said + "".join(f"; {', '.join(labels)}: {_seed_words(seeds)}" for seeds, labels in others.items())


def _seed_words(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"means over seeds {', '.join(map(str, seeds))}"


def _style_sentences(
    choice: TableChoice, summaries: Sequence[Summary], blocks: Sequence[Sequence[Chosen]], rows: Rows
) -> list[str]:
    found = [
        estimate[0]
        for summary, block, known in zip(summaries, blocks, rows, strict=True)
        for column in block
        for row in known
        if (estimate := estimate_of(row, column, summary)) is not None
    ]
    if choice.style == "mean" or not found:
        return []
    covered = " or ".join(dict.fromkeys(estimate.basis for estimate in found if estimate.interval is not None))
    if not covered:
        return ["No interval is shown: the outcomes item by item are not at hand."]
    what = f"{LEVEL:.0%} interval, over {covered}"
    said = [
        f"In brackets the {what}."
        if choice.style == "interval"
        else f"± is half the width of the {what}; it need not lie evenly about the mean."
    ]
    if any(estimate.interval is None for estimate in found):
        said.append("A score without one has no interval: its outcomes item by item are not at hand.")
    return said


def _mark_sentences(choice: TableChoice, blocks: Sequence[Sequence[Chosen]], marks: list[Marks]) -> list[str]:
    if choice.marked == "nothing":
        return []
    level = f"family-wise level {1 - LEVEL:.0%}"
    names = [column for block in blocks for column in block if column.is_score]
    over = []
    if any(column.average == "avg" for column in names):
        over.append("averages over all pairs of a model's labels")
    if any(column.score is not None for column in names):
        over.append("tasks over all pairs and tasks")
    test = f"paired tests on the same items ({level} by Holm's correction{''.join(f'; {part}' for part in over)})"
    if choice.marked == "best":
        if any(found.best for found in marks):
            said = [f"Bold: a best score that differs from every other of its model's rows by {test}."]
        else:
            said = [f"No score is marked as best: none differs from every other of its model's rows by {test}."]
    elif any(found.letters for found in marks):
        said = [f"Scores of a model that share a letter cannot be told apart by {test}."]
    else:
        said = ["No groups are marked: there is no test between these rows."]
    untested = dict.fromkeys(name for found in marks for name in found.untested)
    if untested and (choice.marked == "best" or any(found.letters for found in marks)):
        said.append(f"Without a test between some rows, and so not marked: {', '.join(untested)}.")
    return said


def _row_sentences(choice: TableChoice, blocks: Sequence[Sequence[Chosen]], rows: Rows) -> list[str]:
    """Return what is to be known of single rows: seeds without a result, times of a part of a refresh cycle."""
    said = []
    partly = dict.fromkeys(
        f"{choice.names.get(row.label, row.label)} {len(row.finished)} of {len(row.runs)} ({row_status(row)})"
        for known in rows
        for row in known
        if 0 < len(row.finished) < len(row.runs)
    )
    if partly:
        said.append(f"Seeds with a result: {'; '.join(partly)}.")
    timed = any(column.quantity is not None and column.quantity.shown.of_cycle for block in blocks for column in block)
    if timed and any(is_short(record) for known in rows for row in known for record in row.records):
        said.append(f"{SHORT_RUN}: of a run shorter than one refresh cycle.")
    return said


def _made(summaries: Sequence[Summary], rows: Rows) -> str:
    records = [record for known in rows for row in known for record in row.records]
    devices = dict.fromkeys(summary.view.environment.device_text for summary in summaries)
    commits = dict.fromkeys(
        "outside a checkout"
        if (where := record.environment).commit is None
        else where.commit[:12] + (" with uncommitted changes" if where.dirty else "")
        for record in records
    )
    by = f", harness at {' and '.join(commits)}" if commits else ""
    return f"Measured on {' and '.join(devices)}{by}."


def notes_of(
    choice: TableChoice, summaries: Sequence[Summary], blocks: Sequence[Sequence[Chosen]], rows: Rows
) -> tuple[str, ...]:
    """Return what else has to be known: of quantities their definitions, of suites and runs what their report says."""
    said: list[str] = []
    for summary, block, known in zip(summaries, blocks, rows, strict=True):
        for column in block:
            if column.quantity is not None:
                title, what = definition(column.quantity)
                after = "" if column.quantity.before is None else " The column holds what it was after training."
                said.append(f"{column.name}: {title}: {what}{after}")
                if known and all(over_seeds(row, column.quantity) is None for row in known):
                    why = (
                        " (no CUDA)"
                        if column.quantity.shown.needs_cuda and not summary.view.environment.on_cuda
                        else ""
                    )
                    said.append(f"{column.name} has no value in any row of {summary.suite.name}{why}.")
        said += result_notes(summary)
        said += summary.notes
    return tuple(_each_once(said))


def _each_once(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))
