"""The plot of memory: what the peak of every label was made of, measured beside predicted.

Categories differ in lightness or in hatching, so that a grey print can be read; the colours are Okabe and Ito's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from harness.record import MemoryBreakdown
from harness.report.layout import one_line
from harness.report.quantities import (
    best_prediction,
    largest_tracked_peak,
    row_status,
    train_peak_bytes,
)
from harness.report.style import COLORS, GREY, LABEL_LIMIT, LabelStyle
from harness.report.summary import Row, Summary
from harness.report.units import GIB, gib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, BLUE, ORANGE, GREEN, _, _, SKY = COLORS
BAR, GAP, GROUP = 0.36, 0.04, 1.0
"""Height of a bar, space between the two of a label, and from label to label."""
BAR_INCHES = 0.42
WIDTH_INCHES = 8.6


class Category(NamedTuple):
    """How one part of a breakdown is drawn."""

    field: str
    name: str
    color: str
    hatch: str


CATEGORIES = (
    Category("weights_bytes", "weights", BLUE, ""),
    Category("gradients_bytes", "gradients", ORANGE, "////"),
    Category("optimizer_state_bytes", "optimizer state", GREEN, "\\\\\\\\"),
    Category("activations_bytes", "activations", SKY, "...."),
    Category("other_bytes", "other", "#8C8C8C", "xxxx"),
)


@dataclass(frozen=True)
class _Bar:
    what: str
    parts: MemoryBreakdown | None
    absent: str
    """What stands in the place of a bar without data."""
    marked_bytes: int = 0
    """Where a marker stands on it."""


def memory_figure(summary: Summary, styles: dict[str, LabelStyle]) -> Figure | None:
    """Return the stacked bars of every model with a tracked or a predicted peak, or None."""
    from matplotlib.figure import Figure

    shown = {model: [row for row in summary.rows_of(model) if row.trains] for model in summary.models}
    shown = {model: rows for model, rows in shown.items() if any(_has_data(row) for row in rows)}
    if not shown:
        return None
    heights = [BAR_INCHES * 2 * len(rows) + 0.9 for rows in shown.values()]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + 1.0), layout="constrained")
    axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    marked = False
    for axis, (model, rows) in zip(axes, shown.items(), strict=True):
        axis.set_title(one_line(model, LABEL_LIMIT))
        marked |= _draw_rows(axis, rows, styles)
    axes[-1].set_xlabel("live at the peak of an optimizer step, GiB (2^30 bytes)")
    _category_legend(figure, marked=marked)
    figure.suptitle(
        "What the memory peak is made of, measured (tracked first steps) and predicted",
        x=0.01,
        ha="left",
        fontweight="bold",
    )
    return figure


def _has_data(row: Row) -> bool:
    return largest_tracked_peak(row) is not None or best_prediction(row) is not None


def _draw_rows(axis: Axes, rows: Sequence[Row], styles: dict[str, LabelStyle]) -> bool:
    """Draw two bars a label, the first label on top; return whether an allocated peak was marked."""
    marked = False
    ticks, names = [], []
    longest = max(_total(row) for row in rows)
    for i, row in enumerate(rows):
        tracked, prediction = largest_tracked_peak(row), best_prediction(row)
        allocated = train_peak_bytes(row)
        status = "" if row.finished else f": {row_status(row)}"
        absent = f"not measured{status}" if allocated is None else "not broken down"
        bars = (
            _Bar("measured", None if tracked is None else tracked.at_peak, absent, allocated or 0),
            _Bar("predicted", None if prediction is None else prediction.at_peak, "not predicted"),
        )
        for k, bar in enumerate(bars):
            place = i * GROUP + (k - 0.5) * (BAR + GAP)
            ticks.append(place)
            name = one_line(styles[row.label].name, LABEL_LIMIT)
            names.append(f"{name}  {bar.what}" if k == 0 else bar.what)
            _draw_bar(axis, bar, place, longest)
        if allocated is not None:
            place = i * GROUP - 0.5 * (BAR + GAP)
            axis.plot([allocated / GIB], [place], marker="D", color=BLACK, markersize=5.5, markeredgecolor="white")
            marked = True
    axis.set_yticks(ticks, names, parse_math=False)
    axis.set_ylim(len(rows) * GROUP - 0.5, -0.5)
    axis.set_xlim(0, 1.14 * longest / GIB)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)
    return marked


def _total(row: Row) -> int:
    tracked, prediction = largest_tracked_peak(row), best_prediction(row)
    return max(
        0 if tracked is None else tracked.at_peak.total_bytes,
        0 if prediction is None else prediction.at_peak.total_bytes,
        train_peak_bytes(row) or 0,
    )


def _draw_bar(axis: Axes, bar: _Bar, place: float, longest: int) -> None:
    if bar.parts is None:
        axis.text(0.006 * longest / GIB, place, bar.absent, va="center", fontsize=8, fontstyle="italic", color=GREY)
        return
    left = 0.0
    for category in CATEGORIES:
        width = getattr(bar.parts, category.field) / GIB
        axis.barh(place, width, BAR, left, color=category.color, hatch=category.hatch, edgecolor="white", linewidth=0.5)
        left += width
    axis.barh(place, left, BAR, color="none", edgecolor=BLACK, linewidth=0.8)
    end = max(left + 0.012 * longest / GIB, (bar.marked_bytes + 0.02 * longest) / GIB)
    axis.text(end, place, gib(bar.parts.total_bytes), va="center", fontsize=8)


def _category_legend(figure: Figure, *, marked: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Artist] = [
        Patch(facecolor=category.color, hatch=category.hatch, edgecolor="white", linewidth=0.5)
        for category in CATEGORIES
    ]
    texts = [category.name for category in CATEGORIES]
    if marked:
        handles.append(Line2D([], [], color=BLACK, marker="D", linestyle="none", markersize=5.5))
        texts.append("allocated peak of the train phase (CUDA)")
    figure.legend(handles, texts, loc="outside lower center", ncols=3)
