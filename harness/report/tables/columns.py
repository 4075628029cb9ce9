"""From the name of a column to what stands in it: a quantity, a task or group, an average; with its heading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness import quantities
from harness.errors import HarnessError, near_miss
from harness.quantity import Quantity
from harness.report.pages.costs import heading as full_heading
from harness.report.reading.summary import ScoreColumn, Summary

LABEL = "label"
AVERAGES = {"avg": "avg", "average": "avg", "avg_norm": "avg_norm"}
"""The mean of the headline metrics, and the same with ``acc_norm`` where a task has it."""
TASK = "task:"
"""In front of a task that is called like a quantity."""
SHORT_TASKS: Mapping[str, str] = {
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "social_iqa": "SIQA",
    "hellaswag": "HellaSw.",
    "winogrande": "WinoG.",
    "arc_easy": "ARC-e",
    "arc_challenge": "ARC-c",
    "openbookqa": "OBQA",
    "gsm8k": "GSM8K",
    "mmlu": "MMLU",
    "mmlu_stem": "STEM",
    "mmlu_humanities": "Hum.",
    "mmlu_social_sciences": "Social",
    "mmlu_other": "Other",
}
"""How papers head the columns of tasks."""
IN_LINES: Mapping[str, tuple[str, ...]] = {
    "HellaSw.": ("Hella", "Sw."),
    "WinoG.": ("Wino", "G."),
    "ARC-e": ("ARC", "-e"),
    "ARC-c": ("ARC", "-c"),
}
"""Where such a heading breaks, should one line be too long."""


@dataclass(frozen=True)
class Heading:
    """A column's heading in one line, and in several where it has them."""

    line: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Chosen:
    """One column of one suite's block: a score, an average, or a quantity."""

    name: str
    """As it was asked for."""
    heading: Heading
    score: ScoreColumn | None = None
    average: str | None = None
    quantity: Quantity | None = None

    @property
    def is_score(self) -> bool:
        """Return whether it holds scores, which have intervals and tests."""
        return self.quantity is None


def choose_columns(
    asked: Sequence[str], summaries: Sequence[Summary], headings: Mapping[str, str]
) -> list[tuple[Chosen, ...]]:
    """Return the columns of each suite's block; a task stands in the block of each suite that has it.

    Args:
        asked: Names, of one suite alone as ``SUITE:NAME``.
        summaries: Of the suites.
        headings: Own headings by the name.

    Raises:
        HarnessError: a name is of nothing, or of two things; the label stands behind others; a block is empty.
    """
    blocks: list[list[Chosen]] = [[] for _ in summaries]
    names = [name for name in asked if _plain(name) != LABEL]
    if len(names) < len(asked) and _plain(asked[0]) != LABEL:
        raise HarnessError("--table: 'label' is the first column, or is left out: it heads the rows in any case")
    if not names:
        raise HarnessError("--table names no column beside the label")
    for asked_name in names:
        suite, name = _of_suite(asked_name, summaries)
        found = 0
        for block, summary in zip(blocks, summaries, strict=True):
            chosen = None if suite not in (None, summary.suite.name) else _find(asked_name, name, summary, headings)
            if chosen is not None:
                if any(_same(chosen, other) for other in block):
                    raise HarnessError(f"--table: '{asked_name}' is a column that is there already")
                block.append(chosen)
                found += 1
        if not found:
            known = [known for summary in summaries for known in _known(summary)]
            raise HarnessError(f"--table: there is no column '{asked_name}'{near_miss(name, known)}")
    for block, summary in zip(blocks, summaries, strict=True):
        if not block:
            raise HarnessError(f"--table: no column of it is one of suite '{summary.suite.name}'; leave the suite out")
    return [tuple(block) for block in blocks]


def _of_suite(name: str, summaries: Sequence[Summary]) -> tuple[str | None, str]:
    before, colon, after = name.partition(":")
    return (before, after) if colon and any(summary.suite.name == before for summary in summaries) else (None, name)


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def _same(one: Chosen, other: Chosen) -> bool:
    return (one.score, one.average, one.quantity) == (other.score, other.average, other.quantity)


def _find(asked: str, name: str, summary: Summary, headings: Mapping[str, str]) -> Chosen | None:
    own = headings.get(asked)
    average = AVERAGES.get(_plain(name))
    score = _score_column(name.removeprefix(TASK), summary)
    quantity = None if name.startswith(TASK) else _quantity(name)
    if score is not None and (quantity is not None or average is not None):
        raise HarnessError(f"--table: '{name}' is a task and a figure of every run; write {TASK}{name} for the task")
    if average is not None:
        return Chosen(asked, _heading(own, "Avg." if average == "avg" else "Avg.\nnorm."), average=average)
    if quantity is not None:
        return Chosen(asked, _heading(own, quantity.shown.printed or full_heading(quantity)), quantity=quantity)
    if score is None:
        return None
    short = SHORT_TASKS.get(score.task, score.task.removeprefix("mmlu_").replace("_", " "))
    metric = name.partition("/")[2]
    return Chosen(asked, _heading(own, f"{short}\n{metric}" if metric else short), score=score)


def _heading(own: str | None, text: str) -> Heading:
    lines = tuple(line.strip() for line in (text if own is None else own).split("\n"))
    parts = tuple(part for line in lines for part in IN_LINES.get(line, (line,)))
    return Heading(" ".join(lines), parts)


def _quantity(name: str) -> Quantity | None:
    word = _plain(name)
    for quantity in quantities.ALL:
        called = (quantity.shown.brief, quantity.metric, quantity.name, quantity.title, quantity.column_of_runs)
        if word in {_plain(text) for text in called if text is not None}:
            return quantity
    return None


def _score_column(name: str, summary: Summary) -> ScoreColumn | None:
    """Return the column of a task, by default of its headline metric, as ``TASK/METRIC`` of any that it is scored by.

    A task inside a group has none in the score table, and one here.
    """
    word, _, metric = name.partition("/")
    tasks = dict.fromkeys(column.task for column in summary.columns)
    within = {task: column for column in summary.columns for task in column.subtasks}
    called = {_plain(task): task for task in (*within, *tasks)}
    short = {_plain(SHORT_TASKS[task]).rstrip("."): task for task in called.values() if task in SHORT_TASKS}
    task = called.get(_plain(word)) or short.get(_plain(word).rstrip("."))
    if task is None:
        return None
    of_task = [column for column in summary.columns if column.task == task]
    if not metric:
        headline = next((column for column in of_task if column.in_average), None)
        if headline is not None or of_task:
            return headline or of_task[0]
        return ScoreColumn(task, within[task].metric, False)
    keys = dict.fromkeys(
        score.key for row in summary.rows for run in row.finished for score in run.scores if score.task == task
    )
    for _, scored, subtasks in keys:
        whole, _, through = scored.partition(",")
        if metric in (scored, whole, through):
            in_average = any(c.in_average and (c.metric, c.subtasks) == (scored, subtasks) for c in of_task)
            return ScoreColumn(task, scored, in_average, subtasks)
    raise HarnessError(
        f"--table: task '{task}' is not scored by '{metric}'{near_miss(metric, [scored for _, scored, _ in keys])}"
    )


def _known(summary: Summary) -> list[str]:
    called = [quantity.shown.brief or quantity.metric for quantity in quantities.ALL]
    subtasks = [task for column in summary.columns for task in column.subtasks]
    return [*called, *(column.task for column in summary.columns), *subtasks, "avg", "avg_norm"]
