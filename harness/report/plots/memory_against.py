"""Memory against what it bought: the average score, and the held-out loss, each with its front."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from harness.quantities import HELD_OUT_LOSS, PEAK_MEMORY, PREDICTED_PEAK, TRACKED_PEAK
from harness.quantity import Quantity
from harness.report.plots.names import Named, Segment, write_names
from harness.report.plots.panels import finish, panels, set_x_label, shown_models
from harness.report.plots.style import GREY, NO_NAME, LabelStyle
from harness.report.reading.estimates import average_of_row, average_title, over_seeds
from harness.report.reading.summary import Row, Summary
from harness.report.reading.words import NOT_SCORED
from harness.report.table import one_line
from harness.report.units import GIB

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_HEIGHT = 2.5
LEAST_POINTS = 2
"""Of a model in the plot of losses: one alone is compared with nothing."""
CUDA_AXIS = "peak memory in training (CUDA, allocated), GiB"
TRACKED_AXIS = "tracked peak of the first steps, GiB\n(live storages on the CPU: not GPU memory)"
PREDICTED_AXIS = "predicted peak of the whole run, GiB\n(for the CPU: not GPU memory)"
GROWS = 1.02
"""Of the tracked peak: a run predicted to need more than this goes on growing after its tracked steps."""
ACROSS = (
    "Across: the largest peak over the seeds, as in the tables, with a line to the smallest; without CUDA it is the "
    "tracked peak, or, where a run needs more after its tracked steps, the predicted one of every label."
)
MEMORY_SCORE_CAPTION = (
    f"{ACROSS} Up: the average with its "
    "95% interval. The thin steps are the Pareto front: the best mean that so much memory bought here. It joins point "
    "estimates and is no test: a label below it may well be as good. What does not train is a level and no point, "
    "and no part of the front."
)
MEMORY_LOSS_CAPTION = (
    f"{ACROSS} Up: the mean held-out loss, lower being better, with a line from the lowest to the highest seed, "
    "which is no interval. The thin steps are the Pareto front: the lowest mean that so much memory bought here. It "
    "joins means and is no test: where labels share seeds, a table says which losses can be told apart."
)


@dataclass(frozen=True)
class Point:
    """One label of one model."""

    label: str
    peaks: tuple[float, ...]
    """Bytes, one a seed; empty for a label that does not train."""
    up: float
    """As it is drawn."""
    reach: tuple[float, float] | None
    """From where to where a line goes through it."""


@dataclass(frozen=True)
class Against:
    """What is drawn against memory."""

    title: str
    axis: str
    lower_is_better: bool
    lacking: str
    """Of labels with a result and no point."""


def memory_score_figure(summary: Summary, styles: dict[str, LabelStyle]) -> Figure | None:
    """Return memory against the average score, a panel a model, or None where no label has both."""
    averages = {(row.model, row.label): average_of_row(row, summary.columns) for row in summary.rows if row.finished}
    unit = next((average[1] for average in averages.values() if average is not None), None)
    scale = 100 if unit == "fraction" else 1
    points: dict[str, list[Point]] = {}
    for row, peaks in _with_peaks(summary):
        average = averages.get((row.model, row.label))
        if average is not None and average[1] == unit:
            estimate = average[0]
            reach = None if estimate.interval is None else (scale * estimate.interval[0], scale * estimate.interval[1])
            points.setdefault(row.model, []).append(Point(row.label, peaks, scale * estimate.mean, reach))
    axis = f"{average_title(summary)}, {'%' if unit == 'fraction' else unit}"
    against = Against("Memory against score, with 95% intervals", axis, lower_is_better=False, lacking=NOT_SCORED)
    return _figure(summary, styles, points, against)


def memory_loss_figure(summary: Summary, styles: dict[str, LabelStyle]) -> Figure | None:
    """Return memory against the held-out loss, a panel a model, or None where fewer than two labels have both."""
    points: dict[str, list[Point]] = {}
    for row, peaks in _with_peaks(summary):
        mean = over_seeds(row, HELD_OUT_LOSS)
        read = [HELD_OUT_LOSS.read(record) for record in row.records]
        values = [value for value in read if value is not None]
        if mean is not None and math.isfinite(mean) and peaks:
            reach = (min(values), max(values)) if len(values) > 1 else None
            points.setdefault(row.model, []).append(Point(row.label, peaks, mean, reach))
    if all(len(found) < LEAST_POINTS for found in points.values()):
        return None
    against = Against(
        "Memory against held-out loss", "held-out loss, nats", lower_is_better=True, lacking="no finite loss"
    )
    return _figure(summary, styles, points, against)


def _with_peaks(summary: Summary) -> Iterable[tuple[Row, tuple[float, ...]]]:
    """Yield the rows that have a peak, or do not train."""
    quantity, _ = _memory(summary)
    for row in summary.rows:
        read = [quantity.read(record) for record in row.records] if row.trains else []
        peaks = tuple(peak for peak in read if peak is not None)
        if peaks or row.trains is False:
            yield row, peaks


def _memory(summary: Summary) -> tuple[Quantity, str]:
    """Return which peak is drawn, of all labels the same, and how its axis is called."""
    if summary.view.environment.on_cuda:
        return PEAK_MEMORY, CUDA_AXIS
    rows = [row for row in summary.rows if row.finished and row.trains and over_seeds(row, TRACKED_PEAK) is not None]
    pairs = [(over_seeds(row, TRACKED_PEAK) or 0, over_seeds(row, PREDICTED_PEAK) or 0) for row in rows]
    if all(predicted for _, predicted in pairs) and any(predicted > GROWS * tracked for tracked, predicted in pairs):
        return PREDICTED_PEAK, PREDICTED_AXIS
    return TRACKED_PEAK, TRACKED_AXIS


def _figure(
    summary: Summary, styles: dict[str, LabelStyle], points: Mapping[str, Sequence[Point]], against: Against
) -> Figure | None:
    from matplotlib.lines import Line2D

    models = shown_models(summary, (model for model, found in points.items() if any(point.peaks for point in found)))
    if not models:
        return None
    _, across = _memory(summary)
    figure, axes = panels(models, PANEL_HEIGHT)
    for axis, model in zip(axes, models, strict=True):
        found = points.get(model, [])
        for point in found:
            _draw_point(axis, styles[point.label], point)
        _draw_front(axis, found, against)
        drawn = {point.label for point in found}
        lacking = [row for row in summary.rows_of(model) if row.finished and row.label not in drawn]
        if against.lower_is_better:
            lacking = [row for row in lacking if row.trains]
        words = f"{against.lacking}, or no peak: {', '.join(row.label for row in lacking)}" if lacking else ""
        set_x_label(axis, across, summary.rows_of(model), extra=words)
        axis.set_ylabel(against.axis)
        axis.margins(x=0.18, y=0.12)
        if not any(point.peaks for point in found):
            axis.set_xticks([])  # nothing stands at any place across
    entries: list[tuple[Artist, str]] = [(Line2D([], [], color=GREY, linewidth=0.7), "Pareto front")]
    if any(not point.peaks for found in points.values() for point in found):
        entries.append((Line2D([], [], color=GREY, linestyle="--", linewidth=1.0), "no training"))
    finish(figure, against.title, entries)
    figure.draw_without_rendering()  # lays the figure out: a name is placed by where its point then lies
    for axis, model in zip(axes, models, strict=True):
        found = points.get(model, [])
        write_names(axis, [_named(point) for point in found], _front_segments(found, against))
    return figure


def _named(point: Point) -> Named:
    low, high = point.reach or (point.up, point.up)
    across = max(point.peaks) / GIB if point.peaks else None
    return Named(one_line(point.label) or NO_NAME, across, point.up, low, high)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of the points that no other beats, by rising memory.

    A point is beaten by one with no more memory and no lower score that is better in either; equal points all stay.

    Args:
        points: Memory and score of each.
    """
    front: list[int] = []
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[place][1] > points[front[-1]][1] or points[place] == points[front[-1]]:
            front.append(place)
    return front


def _front_line(points: Sequence[Point], against: Against) -> list[tuple[float, float]]:
    """Return the corners of the front, from its first point on; nothing where there is no point."""
    placed = [(max(point.peaks) / GIB, point.up) for point in points if point.peaks]
    if not placed:
        return []
    sign = -1 if against.lower_is_better else 1
    steps = [placed[i] for i in pareto_front([(memory, sign * up) for memory, up in placed])]
    return [*steps, (max(memory for memory, _ in placed), steps[-1][1])]


def _front_segments(points: Sequence[Point], against: Against) -> list[Segment]:
    corners = _front_line(points, against)
    found: list[Segment] = []
    for (x, y), (next_x, next_y) in pairwise(corners):
        found += [((x, y), (next_x, y)), ((next_x, y), (next_x, next_y))]
    return found


def _draw_front(axis: Axes, points: Sequence[Point], against: Against) -> None:
    corners = _front_line(points, against)
    if corners:
        x, y = zip(*corners, strict=True)
        axis.plot(x, y, color=GREY, linewidth=0.7, drawstyle="steps-post", zorder=1, gid="front")


def _draw_point(axis: Axes, style: LabelStyle, point: Point) -> None:
    if not point.peaks:  # no training: a level to compare with, at no memory of training
        axis.axhline(point.up, color=style.color, linestyle="--", linewidth=1.0, zorder=1)
        return
    y_errors, x_errors = None, None
    if point.reach is not None:
        low, high = point.reach
        y_errors = [[point.up - low], [high - point.up]]
    largest, smallest = max(point.peaks), min(point.peaks)
    if largest > smallest:
        x_errors = [[(largest - smallest) / GIB], [0.0]]
    axis.errorbar(
        largest / GIB,
        point.up,
        xerr=x_errors,
        yerr=y_errors,
        color=style.color,
        marker=style.marker,
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        capsize=2,
        elinewidth=0.9,
        linestyle="none",
        label=style.name,
    )
