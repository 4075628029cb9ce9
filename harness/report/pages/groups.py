"""Groups of tasks in a report: what each task of a group scored, and what the group's own scores are."""

from __future__ import annotations

from harness.report.pages.estimated import Found, estimate_table
from harness.report.reading.estimates import score_of_row
from harness.report.reading.summary import ScoreColumn, Summary
from harness.report.reading.words import NOT_SCORED, label_text, row_status
from harness.report.table import Column, Entry, Table

DEFINITIONS = (
    (
        "group of tasks",
        "A group, as MMLU and each of its categories, is scored as lm-eval scores it: every item counts once, so "
        "that a task with more items weighs more. In an average a group counts as one task. Its interval is ours and "
        "not lm-eval's standard error: Wilson's over all its items taken together, of one seed for the choice of "
        "items, of several for items and seeds.",
    ),
)


def groups_of(summary: Summary) -> tuple[ScoreColumn, ...]:
    """Return the columns of the groups that were asked for, without their categories."""
    return tuple(column for column in summary.columns if column.subtasks and column.in_average)


def subtask_table(summary: Summary, model: str, group: ScoreColumn) -> Table:
    """Return what each label of a model scored on the tasks of a group: a row a task, a column a label."""
    rows = summary.rows_of(model)
    categories = [column for column in summary.columns if column.subtasks and not column.in_average]
    columns = [Column("task", "left"), Column("category", "left")]
    lines: list[tuple[list[Entry], list[Found | Entry]]] = []
    for task in group.subtasks:
        category = next((column.task for column in categories if task in column.subtasks), group.task)
        own = ScoreColumn(task, group.metric, False)
        cells: list[Found | Entry] = []
        for row in rows:
            estimate = score_of_row(row, own) if row.finished else None
            cells.append(estimate or (NOT_SCORED if row.finished else row_status(row)))
        lines.append(([task, category], cells))
    return estimate_table(columns, [Column(label_text(row)) for row in rows], lines)
