"""The plot of ``harness show``: one run's memory, trainable parameters and active blocks over its steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.readings import live_parts, live_peak_place, run_peak_bytes, step_curve, step_peak
from harness.record import Record
from harness.record_training import MemoryBreakdown, StepCurve
from harness.report.plots.blocks import draw_spans, trains_all_blocks
from harness.report.plots.memory import CATEGORIES
from harness.report.plots.style import COLORS, GREY, common_style, save_as
from harness.report.table import one_line
from harness.report.units import GIB, gib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, BLUE, _, GREEN, VERMILION, _, SKY = COLORS


def write_timeline(record: Record, file: Path) -> Path:
    """Draw one run over its steps into ``file``, PNG, SVG or PDF by its ending, and return it.

    Raises:
        HarnessError: the run has no step to draw, or the file cannot be written.
    """
    curve = step_curve(record)
    if curve is None or not curve.optimizer_state_bytes:
        raise HarnessError(
            f"{record.called} ended {record.status} and has no optimizer step on record: there is "
            "nothing to draw over steps"
        )
    with common_style():
        return save_as(timeline_figure(record, curve), file)


def timeline_figure(record: Record, curve: StepCurve) -> Figure:
    """Return memory, trainable parameters and active blocks over the steps of a run."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = range(len(curve.optimizer_state_bytes))
    parts = None if curve.allocated_peak_bytes else live_parts(record)
    heights = [3.0, 1.2, 1.6] if parts is None else [0.6, 1.8, 1.2, 1.6]
    figure = Figure(figsize=(7.6, 6.4), layout="constrained")
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    blocks = figure.add_subplot(grid[-1])
    memory, params = (figure.add_subplot(grid[place], sharex=blocks) for place in (-3, -2))
    for axis in (memory, params):
        axis.tick_params(labelbottom=False)
    if parts is not None:
        _draw_parts(figure.add_subplot(grid[0]), record, parts)
    _draw_memory(memory, record, curve, steps)
    marker = "o" if len(steps) == 1 else None  # a line of one step has no length
    in_millions = [count / 1e6 for count in curve.trainable_params]
    params.plot(steps, in_millions, color=BLUE, drawstyle="steps-mid", marker=marker)
    params.set_ylabel("trainable\nparameters, M")
    params.set_ylim(bottom=0)
    draw_spans(blocks, record, BLACK, shift=-0.5)
    if trains_all_blocks(record):
        blocks.collections[0].remove()
        _say(blocks, "every block at every step")
    blocks.set_ylabel("decoder\nblocks trained")
    blocks.set_xlabel("optimizer step, the first is 0")
    blocks.set_xlim(-0.5, len(steps) - 0.5)
    for ruler in (blocks.xaxis, blocks.yaxis):
        ruler.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    figure.suptitle(one_line(record.called, 90), x=0.01, ha="left", fontweight="bold")
    return figure


def _say(axis: Axes, words: str) -> None:
    axis.text(0.5, 0.5, words, ha="center", va="center", color=GREY, transform=axis.transAxes)


def _draw_parts(axis: Axes, record: Record, parts: MemoryBreakdown) -> None:
    """Draw what the tracked peak was made of, the one memory that is measured without CUDA: steps have no peaks."""
    left = 0.0
    for category in CATEGORIES:
        width = getattr(parts, category.field) / GIB
        look: dict[str, Any] = {
            "color": category.color,
            "hatch": category.hatch,
            "edgecolor": "white",
            "linewidth": 0.4,
        }
        axis.barh([0], [width], 0.8, [left], label=category.name, **look)
        left += width
    axis.set_yticks([])
    axis.set_xlim(0, 1.02 * left)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("alive at the tracked peak, GiB (2^30 bytes)")
    peak = _peak(record)
    axis.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=len(CATEGORIES),
        title=None if peak is None else peak[2],
        title_fontsize=7.0,
        alignment="left",
    )


def _draw_memory(axis: Axes, record: Record, curve: StepCurve, steps: range) -> None:
    """Draw what was measured of memory; the largest step is marked with the moment of its peak."""
    curves = (
        ("reserved peak of the step", curve.reserved_peak_bytes, VERMILION, ":"),
        ("allocated peak of the step", curve.allocated_peak_bytes, BLACK, "-"),
        ("optimizer state on the device", curve.optimizer_state_bytes, GREEN, "--"),
        ("optimizer state on the host", curve.optimizer_state_host_bytes, SKY, "-."),
    )
    for name, values, color, line in curves:
        if any(values) and len(values) == len(steps):
            in_gib = [value / GIB for value in values]
            marker = "o" if len(steps) == 1 else None
            axis.plot(steps, in_gib, color=color, linestyle=line, drawstyle="steps-mid", label=name, marker=marker)
    peak = _peak(record)
    if peak is not None and curve.allocated_peak_bytes:
        step, size, text = peak
        axis.plot([step], [size / GIB], marker="D", color=BLACK, markersize=6, linestyle="none", label=text)
    axis.set_ylabel("memory, GiB (2^30 bytes)")
    axis.set_ylim(bottom=0)
    axis.margins(y=0.12)
    if not axis.lines:
        _say(axis, "no memory of single steps was measured")
        return
    axis.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)


def _peak(record: Record) -> tuple[int, int, str] | None:
    """Return step, bytes and words of the run's peak: the allocator's, else the tracker's."""
    if (peak := step_peak(record)) is not None:
        where = f"in step {peak.at_step}, {peak.during}"
        return peak.at_step, peak.size, f"largest allocated peak: {gib(peak.size)} GiB {where}"
    tracked = live_peak_place(record)
    if tracked is None or run_peak_bytes(record) is not None:
        return None
    where = f"in step {tracked.at_step}, {tracked.during}"
    return tracked.at_step, tracked.size, f"tracked peak: {gib(tracked.size)} GiB {where}"
