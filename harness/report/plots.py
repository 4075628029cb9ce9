"""The plots of a report: memory against score, loss over steps, which blocks were trained at which step, memory.

One panel a model; legends outside the data. Figures are built without pyplot, so that no window system is looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from harness.record import Record, TrainResult
from harness.report.layout import one_line
from harness.report.memory_plots import memory_figure
from harness.report.quantities import host_peak_bytes, train_peak_bytes
from harness.report.statistics import Estimate
from harness.report.style import GREY, LABEL_LIMIT, LabelStyle, common_style, label_styles, save_figure
from harness.report.summary import Row, Summary
from harness.report.tables import average_of_row, average_title
from harness.report.units import GIB

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PANEL_INCHES = (5.2, 3.6)
PANELS_ACROSS = 2
SMOOTHING_SHARE = 15
"""The running mean of a loss curve spans this part of its steps, and at least 3."""
CUDA_AXIS = "peak memory in training (CUDA, allocated), GiB"
HOST_AXIS = "host peak RSS up to the end of training, GiB\n(resident set of the process: not GPU memory)"


def write_plots(summary: Summary, folder: Path) -> dict[str, list[Path]]:
    """Write every plot that the records can fill into a folder that exists, and return its files by name.

    Raises:
        HarnessError: a file cannot be written.
    """
    written = {}
    with common_style():
        styles = label_styles([row.label for row in summary.rows])
        for name, draw in DRAWN.items():
            figure = draw(summary, styles)
            if figure is not None:
                written[name] = save_figure(figure, folder, name)
    return written


def _panels(models: Sequence[str]) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    across = min(PANELS_ACROSS, len(models))
    down = ceil(len(models) / across)
    figure = Figure(figsize=(PANEL_INCHES[0] * across + 1.6, PANEL_INCHES[1] * down), layout="constrained")
    axes = [figure.add_subplot(down, across, i + 1) for i in range(len(models))]
    for axis, model in zip(axes, models, strict=True):
        axis.set_title(one_line(model, LABEL_LIMIT))
    return figure, axes


def _memory_score(summary: Summary, styles: dict[str, LabelStyle]) -> Figure | None:
    averages = {
        (row.model, row.label): average
        for row in summary.rows
        if row.finished and (average := average_of_row(row, summary.columns)) is not None
    }
    cuda = summary.view.environment.device_type == "cuda"
    peak = train_peak_bytes if cuda else host_peak_bytes
    models = [
        model
        for model in summary.models
        if any((model, row.label) in averages and peak(row) is not None for row in summary.rows_of(model))
    ]
    if not models:
        return None
    unit = next(iter(averages.values()))[1]
    figure, axes = _panels(models)
    seen: list[str] = []
    for axis, model in zip(axes, models, strict=True):
        for row in summary.rows_of(model):
            average = averages.get((model, row.label))
            if average is None or average[1] != unit:
                continue
            memory = peak(row)
            if memory is None and row.trains is not False:
                continue
            _draw_point(axis, styles[row.label], average[0], memory, 100 if unit == "fraction" else 1)
            seen.append(row.label)
        axis.set_xlabel(CUDA_AXIS if cuda else HOST_AXIS)
        axis.set_ylabel(f"{average_title(summary)}, {'%' if unit == 'fraction' else unit}")
        axis.margins(x=0.12, y=0.1)
    flat = [styles[row.label] for row in summary.rows if row.trains is False]
    _point_legend(figure, [style for label, style in styles.items() if label in seen], flat)
    _title(figure, "Memory against score, with 95% intervals")
    return figure


def _draw_point(axis: Axes, style: LabelStyle, average: Estimate, memory: int | None, scale: int) -> None:
    if memory is None:  # no training: a level to compare with, at no memory of training
        axis.axhline(scale * average.mean, color=style.color, linestyle="--", linewidth=1.2, zorder=1)
        return
    errors = None
    if average.interval is not None:
        low, high = average.interval
        errors = [[scale * (average.mean - low)], [scale * (high - average.mean)]]
    axis.errorbar(
        memory / GIB,
        scale * average.mean,
        yerr=errors,
        color=style.color,
        marker=style.marker,
        markersize=7,
        markeredgecolor="white",
        markeredgewidth=0.8,
        capsize=3,
        elinewidth=1.2,
        linestyle="none",
    )


def _point_legend(figure: Figure, styles: Sequence[LabelStyle], flat: Sequence[LabelStyle]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=style.color, linestyle="--", linewidth=1.2)
        if style in flat
        else Line2D([], [], color=style.color, marker=style.marker, linestyle="none", markersize=7)
        for style in styles
    ]
    _legend(figure, handles, [f"{style.name}\n(no training)" if style in flat else style.name for style in styles])


def _legend(figure: Figure, handles: Sequence[Artist], texts: Sequence[str]) -> None:
    legend = figure.legend(handles, texts, loc="outside right upper")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontweight="bold")


def _trained(summary: Summary, model: str) -> list[tuple[Row, list[TrainResult]]]:
    rows = [(row, [record.train for record in row.records if record.train]) for row in summary.rows_of(model)]
    return [(row, results) for row, results in rows if any(result.curve.loss for result in results)]


def _loss(summary: Summary, styles: dict[str, LabelStyle]) -> Figure | None:
    from matplotlib.lines import Line2D

    models = [model for model in summary.models if _trained(summary, model)]
    if not models:
        return None
    figure, axes = _panels(models)
    seen: list[str] = []
    held_out = False
    for axis, model in zip(axes, models, strict=True):
        for row, results in _trained(summary, model):
            style = styles[row.label]
            steps, loss = _mean_curve(results)
            axis.plot(steps, loss, color=style.color, linewidth=0.6, alpha=0.3)
            axis.plot(steps, _running_mean(loss), color=style.color, linestyle=style.line)
            held_out |= _draw_held_out(axis, style, results)
            seen.append(row.label)
        axis.set_xlabel("optimizer step")
        axis.set_ylabel("cross-entropy, nats a token")
    shown = [style for label, style in styles.items() if label in seen]
    handles: list[Artist] = [Line2D([], [], color=style.color, linestyle=style.line) for style in shown]
    texts = [style.name for style in shown]
    if held_out:
        handles.append(Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linestyle="none"))
        texts.append("held-out batch")
    _legend(figure, handles, texts)
    _title(figure, "Loss in training: running mean, each step behind it")
    return figure


def _draw_held_out(axis: Axes, style: LabelStyle, results: Sequence[TrainResult]) -> bool:
    """Draw the mean held-out loss at the steps at which every run took it; return whether there was one."""
    curves = [curve for result in results if (curve := _held_out_curve(result))]
    if not curves:
        return False
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    axis.plot(
        steps,
        [sum(curve[step] for curve in curves) / len(curves) for step in steps],
        color=style.color,
        marker=style.marker,
        markerfacecolor="white",
        linestyle="none",
        markersize=6,
        zorder=3,
        clip_on=False,
    )
    return True


def _held_out_curve(result: TrainResult) -> dict[int, float]:
    """Return the held-out loss by steps done; of a record older than the curve its ends, empty where none was taken."""
    if result.validation_steps:
        return dict(zip(result.validation_steps, result.validation_losses, strict=True))
    before, after = result.validation_loss_before, result.validation_loss_after
    return {} if before is None or after is None else {0: before, len(result.curve.loss): after}


def _mean_curve(results: Sequence[TrainResult]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return step numbers from 1 and the loss meaned over seeds, as far as every seed went."""
    import numpy as np

    length = min(len(result.curve.loss) for result in results)
    losses = np.array([result.curve.loss[:length] for result in results], dtype=np.float64)
    return np.arange(1, length + 1, dtype=np.float64), losses.mean(axis=0)


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centred running mean; at the ends over what is there."""
    import numpy as np

    span = max(3, len(values) // SMOOTHING_SHARE) | 1
    kernel = np.ones(span)
    reach = span // 2
    sums = np.convolve(values, kernel)[reach : reach + len(values)]
    counts = np.convolve(np.ones(len(values)), kernel)[reach : reach + len(values)]
    return np.asarray(sums / counts)


def _blocks(summary: Summary, styles: dict[str, LabelStyle]) -> Figure | None:
    from matplotlib.figure import Figure

    shown = {
        (row.model, row.label): record
        for row in summary.rows
        if (record := next((r for r in row.records if r.train and r.train.block_activity), None)) is not None
    }
    if not shown:
        return None
    models = [model for model in summary.models if any(key[0] == model for key in shown)]
    labels = [label for label in styles if any(key[1] == label for key in shown)]
    across = len(models) if len(models) > 1 else min(PANELS_ACROSS, len(labels))
    down = len(labels) if len(models) > 1 else ceil(len(labels) / across)
    figure = Figure(figsize=(4.2 * across + 0.4, 1.9 * down + 0.5), layout="constrained")
    cells = [(label, model) for label in labels for model in models]
    for i, (label, model) in enumerate(cells):
        record = shown.get((model, label))
        axis = figure.add_subplot(down, across, i + 1)
        axis.set_title(styles[label].name if len(models) == 1 else f"{styles[label].name}, {one_line(model, 24)}")
        if record is None:
            axis.set_axis_off()
            axis.text(0.5, 0.5, "no result", ha="center", va="center", color=GREY, transform=axis.transAxes)
        else:
            _draw_blocks(axis, styles[label], record)
            axis.set_ylabel("block" if i % across == 0 else "")
            axis.set_xlabel("optimizer step" if i + across >= len(cells) else "")
    _title(figure, f"Decoder blocks trained at each optimizer step{_seed_words(list(shown.values()))}")
    return figure


def _draw_blocks(axis: Axes, style: LabelStyle, record: Record) -> None:
    assert record.train is not None
    train = record.train
    for block, spans in trained_spans(train).items():
        axis.broken_barh(spans, (block - 0.5, 1.0), facecolors=style.color, edgecolor="none", linewidth=0)
    axis.set_xlim(0, max(1, train.num_steps))
    axis.set_ylim(-0.5, max(1, train.num_blocks) - 0.5)
    axis.grid(visible=False)
    axis.locator_params(axis="both", integer=True, nbins=6)


def trained_spans(train: TrainResult) -> dict[int, list[tuple[int, int]]]:
    """Return for each block that was ever trained the spans (first step, number of steps) in which it was."""
    activity = sorted(train.block_activity, key=lambda entry: entry.step)
    ends = [entry.step for entry in activity[1:]] + [train.num_steps]
    spans: dict[int, list[tuple[int, int]]] = {}
    for entry, end in zip(activity, ends, strict=True):
        if end <= entry.step:
            continue
        for block in entry.blocks:
            known = spans.setdefault(block, [])
            if known and sum(known[-1]) == entry.step:
                known[-1] = (known[-1][0], end - known[-1][0])
            else:
                known.append((entry.step, end - entry.step))
    return dict(sorted(spans.items()))


def _seed_words(records: Sequence[Record]) -> str:
    seeds = [seed for seed, _ in groupby(sorted(record.spec.seed for record in records))]
    return f" (seed {seeds[0]})" if len(seeds) == 1 else " (first seed with a result)"


DRAWN: dict[str, Callable[[Summary, dict[str, LabelStyle]], Figure | None]] = {
    "memory_score": _memory_score,
    "memory": memory_figure,
    "loss": _loss,
    "blocks": _blocks,
}
"""Every plot by the stem of its files, in the order of the page."""
