"""The plot of scores by task: grouped bars, a group a column of the score table, the average last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

from harness.report.plots.panels import finish, shown_models
from harness.report.plots.style import GREY, LABEL_LIMIT, PAGE_INCHES, LabelStyle
from harness.report.reading.estimates import average_of_row, average_title, column_title, score_of_row
from harness.report.reading.summary import Row, ScoreColumn, Summary
from harness.report.reading.words import NOT_SCORED, row_status
from harness.report.statistics.intervals import Estimate
from harness.report.table import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_INCHES = 1.75
BAR_INCHES, GAP_INCHES, GROUP_INCHES = 0.085, 0.16, 0.62
"""A bar's least width, the space between two groups, and a group's least width."""
AXES_INCHES = PAGE_INCHES - 0.6
CAPTION = (
    "The columns of the score table with their 95% intervals, the average last; a group of tasks, as MMLU's, is one "
    "column. A bar that is missing has its reason in its place."
)


class Group(NamedTuple):
    """One group of bars: a column of the score table."""

    title: str
    read: Callable[[Row], tuple[Estimate, str] | None]


def task_figure(summary: Summary, styles: Mapping[str, LabelStyle]) -> Figure | None:
    """Return the bars of every task and label, or None where nothing is scored."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = {
        (model, unit): (summary.rows_of(model), groups)
        for model in shown_models(summary, (row.model for row in summary.rows if _is_scored(row, summary)))
        for unit, groups in _groups_by_unit(summary, summary.rows_of(model)).items()
    }
    if not shown:
        return None
    parts = [
        (model, unit, rows, groups[i : i + size])
        for (model, unit), (rows, groups) in shown.items()
        for size in [_even_size(len(groups), len(rows))]
        for i in range(0, len(groups), size)
    ]
    figure = Figure(figsize=(PAGE_INCHES, ROW_INCHES * len(parts)), layout="constrained")
    axes = figure.subplots(len(parts), 1, squeeze=False)[:, 0]
    named: set[str] = set()
    for axis, (model, unit, rows, groups) in zip(axes, parts, strict=True):
        if model not in named:
            axis.set_title(one_line(model, LABEL_LIMIT))
            named.add(model)
        _draw_groups(axis, rows, groups, styles)
        axis.set_ylabel("%" if unit == "fraction" else unit)
    entries: list[tuple[Artist, str]] = [
        (Patch(facecolor=style.color, hatch=style.hatch, edgecolor="white", linewidth=0), style.name)
        for label, style in styles.items()
        if any(row.label == label for rows, _ in shown.values() for row in rows)
    ]
    finish(figure, "Scores by task, with 95% intervals", entries)
    return figure


def _is_scored(row: Row, summary: Summary) -> bool:
    return any(run.score(column) is not None for run in row.finished for column in summary.columns)


def _groups_by_unit(summary: Summary, rows: Sequence[Row]) -> dict[str, list[Group]]:
    """Return the groups of bars that share an axis; a column without any score of the model is one of per cent."""
    groups = [Group(column_title(column), partial(_score, column=column)) for column in summary.columns]
    if summary.lone_group is None and sum(column.in_average for column in summary.columns) > 1:
        groups.append(Group(average_title(summary), partial(_average, columns=summary.columns)))
    found: dict[str, list[Group]] = {}
    for group in groups:
        unit = next((result[1] for row in rows if (result := group.read(row)) is not None), "fraction")
        found.setdefault(unit, []).append(group)
    return found


def _score(row: Row, column: ScoreColumn) -> tuple[Estimate, str] | None:
    return score_of_row(row, column) if row.finished else None


def _average(row: Row, columns: Sequence[ScoreColumn]) -> tuple[Estimate, str] | None:
    return average_of_row(row, columns) if row.finished else None


def _even_size(num_groups: int, num_labels: int) -> int:
    """Return how many groups stand beside each other, so that no bar is thinner than it may be and rows are even."""
    most = max(1, int(AXES_INCHES / max(GROUP_INCHES, num_labels * BAR_INCHES + GAP_INCHES)))
    return ceil(num_groups / ceil(num_groups / most))


def _draw_groups(axis: Axes, rows: Sequence[Row], groups: Sequence[Group], styles: Mapping[str, LabelStyle]) -> None:
    group_inches = AXES_INCHES / len(groups)
    width = min(0.8, 1.0 - GAP_INCHES / group_inches) / len(rows)
    slot_points = 72 * width * group_inches
    for k, row in enumerate(rows):
        style = styles[row.label]
        bars: list[tuple[float, float, float, float]] = []  # place, mean, and how far the interval goes down and up
        for i, group in enumerate(groups):
            place = i + (k - (len(rows) - 1) / 2) * width
            result = group.read(row)
            if result is None:
                words = NOT_SCORED if row.finished else row_status(row)
                size = min(6.0, 0.85 * slot_points)
                axis.annotate(
                    words,
                    (place, 0),
                    (0, 2),
                    textcoords="offset points",
                    rotation=90,
                    ha="center",
                    va="bottom",
                    fontsize=size,
                    color=GREY,
                )
                continue
            estimate, unit = result
            scale = 100 if unit == "fraction" else 1
            low, high = estimate.interval or (estimate.mean, estimate.mean)
            bars.append((place, scale * estimate.mean, scale * (estimate.mean - low), scale * (high - estimate.mean)))
        if bars:
            places, means, downs, ups = zip(*bars, strict=True)
            axis.bar(
                places,
                means,
                0.92 * width,
                yerr=[downs, ups],
                color=style.color,
                hatch=style.hatch,
                edgecolor="white",
                linewidth=0,
                error_kw={"elinewidth": 0.7, "ecolor": GREY, "capsize": 0},
                label=style.name,
            )
    letters = max(8, int(group_inches / 0.062))
    axis.set_xticks(range(len(groups)), [_wrapped(group.title, letters) for group in groups], parse_math=False)
    axis.tick_params(axis="x", length=0)
    axis.set_xlim(-0.5, len(groups) - 0.5)
    axis.set_ylim(bottom=0)
    axis.grid(visible=False, axis="x")


def _wrapped(title: str, letters: int) -> str:
    """Return a title in lines of so many letters; names of tasks break after an underscore."""
    return fill(one_line(title).replace("_", "_ "), letters).replace("_ ", "_")
