"""The plot of memory: what the peak of every label was made of, measured beside predicted.

Categories differ in lightness or in hatching, so that a grey print can be read; the colours are Okabe and Ito's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from harness.quantities import PEAK_MEMORY
from harness.readings import live_parts, own_prediction, predicted_parts, shows_predicted_step
from harness.record_training import MemoryBreakdown
from harness.report.plots.panels import CHAR_INCHES, finish
from harness.report.plots.style import COLORS, GREY, LABEL_LIMIT, PAGE_INCHES, LabelStyle
from harness.report.reading.estimates import over_seeds
from harness.report.reading.summary import Row, Summary
from harness.report.reading.words import row_status
from harness.report.table import one_line
from harness.report.units import GIB, gib

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, BLUE, ORANGE, GREEN, _, _, SKY = COLORS
BAR, GAP, GROUP = 0.36, 0.04, 1.0
"""Height of a bar, space between the two of a label, and from label to label."""
BAR_INCHES = 0.19
AXES_INCHES = 4.8
"""About what labels leave of the width."""


class Category(NamedTuple):
    """How one part of a breakdown is drawn."""

    field: str
    name: str
    color: str
    hatch: str


LOOKS = ((BLUE, ""), (ORANGE, "////"), (GREEN, "\\\\\\\\"), (SKY, "...."), ("#8C8C8C", "xxxx"))
"""Colour and hatching of the parts of a breakdown, in the order of the record."""
CATEGORIES = tuple(
    Category(field, field.removesuffix("_bytes").replace("_", " "), *look)
    for field, look in zip(MemoryBreakdown.model_fields, LOOKS, strict=True)
)
REST = Category("rest_bytes", "activations and other, not told apart", "#D0D0D0", "||||")
"""Of a run out of memory, where only the allocator counted."""
CAPTION = (
    "Two bars a label: what a tracker measured in the first steps, and what was predicted. A diamond is the allocated "
    "peak of the whole training. A run out of memory has a bar up to what was alive when it died, with a cross at its "
    "end: it needed more than that. Where the tracked steps are not the predicted one, or no row filled the sequence, "
    "the predicted bar says so, and the two are not to be held against each other."
)


@dataclass(frozen=True)
class _Bar:
    what: str
    parts: tuple[tuple[Category, int], ...]
    """Bytes by category; none where there is no data."""
    absent: str
    """What stands in the place of a bar without data."""
    marked_bytes: float = 0
    """Where a marker stands on it."""
    died: str = ""
    """Where memory ran out, of a bar that ends there."""
    apart: str = ""
    """Why its length is not to be held against the other bar's."""

    @property
    def total_bytes(self) -> int:
        """Return its length."""
        return sum(size for _, size in self.parts)


def memory_figure(summary: Summary, styles: dict[str, LabelStyle]) -> Figure | None:
    """Return the stacked bars of every model with a tracked or a predicted peak, or None."""
    from matplotlib.figure import Figure

    shown = {
        model: {row.label: (row, _bars(row)) for row in summary.rows_of(model) if row.trains is not False}
        for model in summary.models
    }
    shown = {
        model: rows for model, rows in shown.items() if any(bar.parts for _, bars in rows.values() for bar in bars)
    }
    if not shown:
        return None
    heights = [BAR_INCHES * 2 * len(rows) + 0.5 for rows in shown.values()]
    figure = Figure(figsize=(PAGE_INCHES, sum(heights) + 0.3), layout="constrained")
    axes = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (model, rows) in zip(axes, shown.items(), strict=True):
        axis.set_title(one_line(model, LABEL_LIMIT))
        _draw_rows(axis, [bars for _, bars in rows.values()], [styles[label].name for label in rows])
    axes[-1].set_xlabel("live at the peak of an optimizer step, GiB (2^30 bytes)")
    drawn = [bar for rows in shown.values() for _, bars in rows.values() for bar in bars]
    finish(figure, "What the memory peak is made of, measured (tracked first steps) and predicted", _entries(drawn))
    return figure


def _bars(row: Row) -> tuple[_Bar, _Bar]:
    """Return what was measured of a row, or was alive where it ran out of memory, and what was predicted."""
    allocated = over_seeds(row, PEAK_MEMORY)
    tracked = _largest(map(live_parts, row.records))
    predicted = _largest(predicted_parts(run.record) for run in row.runs if run.record is not None)
    status = "" if row.finished else f": {row_status(row)}"
    absent = f"not measured{status}" if allocated is None else "not broken down"
    measured = _Bar("measured", _parts(tracked), absent, allocated or 0)
    if not row.finished and (died := _died(row)) is not None:
        measured = died
    apart = _apart(row) if measured.parts and not measured.died else ""
    return measured, _Bar("predicted", _parts(predicted), "not predicted", apart=apart)


def _apart(row: Row) -> str:
    """Return why what was predicted of a row is not what was tracked; empty where some run's tracker saw it."""
    told = [record for record in row.records if record.prediction is not None]
    own = [(record, prediction) for record in told if (prediction := own_prediction(record)) is not None]
    if not told or any(shows_predicted_step(record, prediction, by_tracker=True) for record, prediction in own):
        return ""
    return "of other steps or rows than the tracked ones" if own else "for another kind of device"


def _largest(breakdowns: Iterable[MemoryBreakdown | None]) -> MemoryBreakdown | None:
    known = [breakdown for breakdown in breakdowns if breakdown is not None]
    return max(known, key=lambda breakdown: breakdown.total_bytes, default=None)


def _parts(breakdown: MemoryBreakdown | None) -> tuple[tuple[Category, int], ...]:
    if breakdown is None:
        return ()
    return tuple((category, getattr(breakdown, category.field)) for category in CATEGORIES)


def _died(row: Row) -> _Bar | None:
    """Return the bar up to where a row ran out of memory, the longest over its seeds; None where none could say."""
    found = []
    for run in row.runs:
        at = None if run.record is None else run.record.out_of_memory_at
        if at is None:
            continue
        if at.tracked is not None:
            parts = _parts(at.tracked)
        else:
            parts = tuple(
                (category, size) for category in (*CATEGORIES, REST) if (size := getattr(at, category.field, None))
            )
        where = at.phase if at.step is None else f"{at.moment or at.phase} of step {at.step}"
        found.append(_Bar("measured", parts, "", died=f"out of memory in {where}"))
    return max((bar for bar in found if bar.parts), key=lambda bar: bar.total_bytes, default=None)


def _draw_rows(axis: Axes, rows: Sequence[tuple[_Bar, _Bar]], labels: Sequence[str]) -> None:
    """Draw two bars a label, the first label on top."""
    longest = max(max(bar.total_bytes, bar.marked_bytes) for bars in rows for bar in bars)
    placed = [(i * GROUP + (k - 0.5) * (BAR + GAP), bar) for i, bars in enumerate(rows) for k, bar in enumerate(bars)]
    _draw_parts(axis, placed)
    most = 0.0
    for place, bar in placed:
        end = max(bar.total_bytes, bar.marked_bytes) / longest
        words = _end_text(bar) if bar.parts else bar.absent
        offset = 2 if not bar.parts else 7 if bar.died or bar.marked_bytes else 3
        axis.annotate(
            words,
            (end * longest / GIB if bar.parts else 0.0, place),
            (offset, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            color=BLACK if bar.parts else GREY,
        )
        if bar.marked_bytes:
            mark = bar.marked_bytes / GIB
            axis.plot([mark], [place], marker="D", color=BLACK, markersize=4.5, markeredgecolor="white")
        if bar.died:
            left = bar.total_bytes / GIB
            axis.plot([left], [place], marker="x", color=BLACK, markersize=6, markeredgewidth=1.5, linestyle="none")
        most = max(most, end / (1.0 - min(0.6, 0.85 * len(words) * CHAR_INCHES / AXES_INCHES)))
    names = [
        f"{label}  {bar.what}" if k == 0 else bar.what
        for label, bars in zip(labels, rows, strict=True)
        for k, bar in enumerate(bars)
    ]
    axis.set_yticks([place for place, _ in placed], names, parse_math=False)
    axis.set_ylim(len(rows) * GROUP - 0.5, -0.5)
    axis.set_xlim(0, 1.02 * most * longest / GIB)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)


def _draw_parts(axis: Axes, placed: Sequence[tuple[float, _Bar]]) -> None:
    """Draw the bars, a category of all of them at once."""
    lefts = [0.0] * len(placed)
    for category in (*CATEGORIES, REST):
        widths = [sum(size for part, size in bar.parts if part is category) / GIB for _, bar in placed]
        if any(widths):
            axis.barh(
                [place for place, _ in placed],
                widths,
                BAR,
                lefts,
                color=category.color,
                hatch=category.hatch,
                edgecolor="white",
                linewidth=0.4,
                label=category.name,
            )
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    filled = [(place, left) for (place, _), left in zip(placed, lefts, strict=True) if left]
    places, totals = zip(*filled, strict=True)
    axis.barh(places, totals, BAR, color="none", edgecolor=BLACK, linewidth=0.6, label="total")


def _end_text(bar: _Bar) -> str:
    """Return what stands behind a bar: its own length, and that of the peak which a marker shows."""
    said = bar.died or bar.apart
    if bar.marked_bytes:
        return f"{gib(bar.total_bytes)} tracked, {gib(bar.marked_bytes)} allocated"
    return f"{gib(bar.total_bytes)}: {said}" if said else gib(bar.total_bytes)


def _entries(bars: Sequence[_Bar]) -> list[tuple[Artist, str]]:
    """Return the legend: every category, and the marks that are there."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rest = any(category is REST for bar in bars for category, _ in bar.parts)
    entries: list[tuple[Artist, str]] = [
        (
            Patch(facecolor=category.color, hatch=category.hatch, edgecolor="white", linewidth=0.4),
            category.name,
        )
        for category in (*CATEGORIES, *((REST,) if rest else ()))
    ]
    if any(bar.marked_bytes for bar in bars):
        mark = Line2D([], [], color=BLACK, marker="D", linestyle="none", markersize=4.5)
        entries.append((mark, "allocated peak of the train phase (CUDA)"))
    if any(bar.died for bar in bars):
        mark = Line2D([], [], color=BLACK, marker="x", linestyle="none", markersize=6, markeredgewidth=1.5)
        entries.append((mark, "out of memory here"))
    return entries
