"""The plots of sensitivity: score, held-out loss and memory against one setting; loss against tuned learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from harness.quantities import HELD_OUT_LOSS, PEAK_MEMORY
from harness.report.plots.panels import finish, line_entry, panels, set_x_label
from harness.report.plots.style import LABEL_LIMIT, PAGE_INCHES, LabelStyle, label_styles
from harness.report.reading.estimates import average_of_row, average_title
from harness.report.reading.summary import Row, Summary
from harness.report.reading.sweeps import Sweep, find_sweeps
from harness.report.statistics.intervals import t_interval
from harness.report.table import one_line
from harness.report.units import UNITS, scaled

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW_INCHES = 2.1
DECADE = 10.0
"""From this ratio of the largest value to the smallest the axis is logarithmic."""
MOST_TICKS = 6
CAPTION = (
    "Labels of one method that differ in one numeric setting alone, at three values or more. Bars: 95% intervals of "
    "score and loss; of memory, the largest peak with a line down to the smallest of the seeds. A cross at the bottom: "
    "no result at that value, for the reason named below."
)
TUNING_CAPTION = (
    "Held-out loss of the trials of harness tune, meaned over their seeds with 95% intervals where there are several; "
    "a ring marks the chosen rate, a cross at the bottom a rate with a trial that has no result."
)


@dataclass(frozen=True)
class Reading:
    """A value with its lowest and highest bound."""

    value: float
    low: float
    high: float


def sweep_figure(summary: Summary, styles: Mapping[str, LabelStyle]) -> Figure | None:
    """Return a row of panels for every model and setting that labels sweep over, or None where none does."""
    from matplotlib.figure import Figure

    groups: dict[tuple[str, str], list[tuple[Sweep, list[dict[str, Reading]]]]] = {}
    for sweep in find_sweeps(summary):
        readings = [_readings(row, summary) for row in sweep.rows]
        groups.setdefault((sweep.model, sweep.setting), []).append((sweep, readings))
    swept = [pair for pairs in groups.values() for pair in pairs]
    names = [title for title in _titles(summary) if any(title in known for _, rows in swept for known in rows)]
    if not names:
        return None
    figure = Figure(figsize=(PAGE_INCHES, ROW_INCHES * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), len(names), squeeze=False)
    looks = label_styles([sweep.name for sweep, _ in swept])
    for row_axes, ((model, setting), sweeps) in zip(axes, groups.items(), strict=True):
        for k, (axis, title) in enumerate(zip(row_axes, names, strict=True)):
            for sweep, readings in sweeps:
                _draw_line(axis, sweep.values, [known.get(title) for known in readings], looks[sweep.name])
            _set_scale(axis, sorted({value for sweep, _ in sweeps for value in sweep.values}))
            axis.set_ylabel(title)
            failed = [row for sweep, _ in sweeps for row in sweep.rows] if k == 0 else []
            set_x_label(axis, one_line(setting, LABEL_LIMIT), failed, PAGE_INCHES / len(names))
        row_axes[0].set_title(one_line(model, LABEL_LIMIT))
    finish(figure, "Sensitivity to one setting", [line_entry(look, line=True, marker=True) for look in looks.values()])
    return figure


def _titles(summary: Summary) -> tuple[str, str, str]:
    units = {score.unit for row in summary.rows for run in row.finished for score in run.scores if score.headline}
    unit = "%" if units == {"fraction"} else "/".join(sorted(units))
    loss, memory = (UNITS[quantity.unit][1] for quantity in (HELD_OUT_LOSS, PEAK_MEMORY))
    average = f"{average_title(summary)}, {unit}"
    return average, f"{HELD_OUT_LOSS.title}, {loss}", f"{PEAK_MEMORY.title} (CUDA), {memory}"


def _readings(row: Row, summary: Summary) -> dict[str, Reading]:
    """Return what is known of a label, by the title of its axis."""
    score, loss, memory = _titles(summary)
    found = {}
    average = average_of_row(row, summary.columns) if row.finished else None
    if average is not None:
        estimate, unit = average
        scale = 100 if unit == "fraction" else 1
        low, high = estimate.interval or (estimate.mean, estimate.mean)
        found[score] = Reading(scale * estimate.mean, scale * low, scale * high)
    losses = [HELD_OUT_LOSS.read(record) for record in row.records]
    known = [value for value in losses if value is not None]
    if known and len(known) == len(losses):
        found[loss] = _mean_reading(known)
    peaks = [scaled(peak, PEAK_MEMORY.unit) for record in row.records if (peak := PEAK_MEMORY.read(record)) is not None]
    if peaks:
        found[memory] = Reading(max(peaks), min(peaks), max(peaks))
    return found


def _mean_reading(values: Sequence[float]) -> Reading:
    mean = fmean(values)
    return Reading(mean, *(t_interval(values) if len(values) > 1 else (mean, mean)))


def _draw_line(axis: Axes, values: Sequence[float], readings: Sequence[Reading | None], style: LabelStyle) -> None:
    known = [(value, reading) for value, reading in zip(values, readings, strict=True) if reading is not None]
    if known:
        y = [reading.value for _, reading in known]
        errors = [
            [max(0.0, reading.value - reading.low) for _, reading in known],
            [max(0.0, reading.high - reading.value) for _, reading in known],
        ]
        axis.errorbar(
            [value for value, _ in known], y, yerr=errors, color=style.color, marker=style.marker, markersize=4.5,
            linestyle=style.line, linewidth=1.1, elinewidth=0.8, capsize=2, label=style.name,
        )  # fmt: skip
    lacking = [value for value, reading in zip(values, readings, strict=True) if reading is None]
    if lacking:
        axis.plot(
            lacking, [0.04] * len(lacking), color=style.color, marker="x", markersize=5, linestyle="none",
            transform=axis.get_xaxis_transform(), gid="no result",
        )  # fmt: skip


def _set_scale(axis: Axes, values: Sequence[float]) -> None:
    if values[0] > 0 and values[-1] / values[0] >= DECADE:
        axis.set_xscale("log")
        axis.minorticks_off()
    if len(values) <= MOST_TICKS:
        axis.set_xticks(values, [f"{value:g}".replace("-", "−") for value in values])
    axis.margins(x=0.08, y=0.12)


def tuning_figure(summary: Summary, styles: Mapping[str, LabelStyle]) -> Figure | None:
    """Return the held-out loss of tuning's trials against the learning rate, or None where nothing was tuned."""
    tuned = [(row, row.choice) for row in summary.rows if row.choice is not None]
    if not tuned:
        return None
    models = list(dict.fromkeys(row.model for row, _ in tuned))
    figure, axes = panels(models, 2.4)
    for axis, model in zip(axes, models, strict=True):
        rates: set[float] = set()
        for row, choice in tuned:
            if row.model != model:
                continue
            losses: dict[float, list[float | None]] = {}
            for trial in choice.trials:
                losses.setdefault(trial.learning_rate, []).append(trial.validation_loss)
            ordered = sorted(losses)
            whole = {
                rate: _mean_reading([loss for loss in losses[rate] if loss is not None])
                for rate in ordered
                if None not in losses[rate]
            }
            _draw_line(axis, ordered, [whole.get(rate) for rate in ordered], styles[row.label])
            axis.plot(
                [choice.learning_rate], [whole[choice.learning_rate].value], marker="o", markersize=10,
                markerfacecolor="none", markeredgecolor=styles[row.label].color, linestyle="none", gid="chosen",
            )  # fmt: skip
            rates |= losses.keys()
        _set_scale(axis, sorted(rates))
        axis.set_xlabel("learning rate")
        axis.set_ylabel("held-out loss of the trials, nats")
    entries: list[tuple[Artist, str]] = [
        line_entry(styles[label], line=True, marker=True) for label in dict.fromkeys(row.label for row, _ in tuned)
    ]
    finish(figure, "Held-out loss against the learning rate, in tuning", entries)
    return figure
