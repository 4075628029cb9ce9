"""The plots of the loss in training against steps, against tokens and against seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.readings import held_out_curve, tracked_steps
from harness.record_training import TrainResult
from harness.report.plots.panels import finish, line_entry, panels, set_x_label, shown_models
from harness.report.plots.style import GREY, LabelStyle
from harness.report.reading.summary import Row, Summary

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

PANEL_HEIGHT = 2.4
SMOOTHING_SHARE = 15
"""The running mean of a loss curve spans this part of its steps."""
LEAST_SMOOTHED = 45
"""Steps of the shortest curve that is smoothed: of fewer, a mean over three moves its ends and its bends."""
MARKERS_A_LINE = 5
"""About how often a line shows its marker."""
GRID_POINTS = 400
"""Most points of the grid on which seeds of unequal progress are meaned."""
CAPTION = (
    f"From {LEAST_SMOOTHED} steps on the line is a running mean over a fifteenth of them, and thin behind it the loss "
    "of each step; a shorter curve is not smoothed. Against seconds a curve begins, at 0, behind the steps that a "
    "tracker slowed down. Seeds are meaned as far as every seed went. Open markers: the held-out batch, where every "
    "seed read it, at the mean of the seeds' places."
)


@dataclass(frozen=True)
class Progress:
    """What a loss is drawn against."""

    title: str
    axis: str
    so_far: Callable[[TrainResult], Floats]
    """Returns what there was before the first step and after each: one number more than steps."""
    first_step: Callable[[TrainResult], int] = lambda result: 0
    """The first step whose loss has a place."""


def _steps(result: TrainResult) -> Floats:
    import numpy as np

    return np.arange(len(result.curve.loss) + 1, dtype=np.float64)


def _tokens(result: TrainResult) -> Floats:
    import numpy as np

    return np.concatenate(([0.0], np.cumsum(result.curve.tokens, dtype=np.float64)))


def _seconds(result: TrainResult) -> Floats:
    import numpy as np

    seconds = np.array(result.curve.seconds, dtype=np.float64)
    seconds[: untracked_from(result)] = 0.0
    return np.concatenate(([0.0], np.cumsum(seconds)))


def untracked_from(result: TrainResult) -> int:
    """Return the first step after those that a tracker slowed down."""
    tracked = tracked_steps(result)
    return min(max(tracked) + 1, len(result.curve.loss)) if tracked else 0


STEPS = Progress("steps", "optimizer step", _steps)
TOKENS = Progress("tokens", "tokens through the model, padding left out", _tokens)
SECONDS = Progress(
    "seconds",
    "seconds in optimizer steps, synchronised\n(no data loading, evaluation, tracked first steps)",
    _seconds,
    untracked_from,
)


def loss_figure(summary: Summary, styles: Mapping[str, LabelStyle], progress: Progress) -> Figure | None:
    """Return the loss against one measure of progress, a panel a model, or None where no step has a loss."""
    from matplotlib.lines import Line2D

    trained = {(row.model, row.label): _results(row, progress) for row in summary.rows}
    models = shown_models(summary, (model for (model, _), results in trained.items() if results))
    if not models:
        return None
    figure, axes = panels(models, PANEL_HEIGHT)
    seen: set[str] = set()
    held_out = False
    for axis, model in zip(axes, models, strict=True):
        rows = summary.rows_of(model)
        for row in rows:
            results = trained[model, row.label]
            if not results:
                continue
            style = styles[row.label]
            x, loss = mean_curve(results, progress)
            axis.plot(x, loss, color=style.color, linewidth=0.4, alpha=0.3, gid="steps")
            axis.plot(
                x,
                running_mean(loss),
                color=style.color,
                linestyle=style.line,
                marker=style.marker,
                markersize=3.0,
                markevery=_marked(len(x), len(seen)),
                label=style.name,
            )
            held_out |= _draw_held_out(axis, style, results, progress)
            seen.add(row.label)
        short = [row.label for row in rows if row.trains and row.finished and not trained[model, row.label]]
        set_x_label(axis, progress.axis, rows, extra=f"too few steps: {', '.join(short)}" if short else "")
        axis.set_ylabel("cross-entropy, nats a token")
        axis.locator_params(axis="x", nbins=6, integer=progress is STEPS)
    entries: list[tuple[Artist, str]] = [
        line_entry(style, line=True, marker=True) for label, style in styles.items() if label in seen
    ]
    for handle, _ in entries:
        handle.set(markersize=3.0)
    if held_out:
        handle = Line2D([], [], color=GREY, marker="o", markerfacecolor="white", markersize=4.5, linestyle="none")
        entries.append((handle, "held-out batch"))
    finish(figure, f"Loss in training against {progress.title}", entries)
    return figure


def _marked(num_places: int, place: int) -> list[int]:
    """Return where a line carries its marker, so that it is known without colour; the next line has other places."""
    step = max(1, num_places // MARKERS_A_LINE)
    return list(range((place * step // 3) % step, num_places, step))


def _results(row: Row, progress: Progress) -> list[TrainResult]:
    """Return the training of every finished run; nothing where a run has no step to place."""
    results = [record.train for record in row.records if record.train is not None]
    return results if all(progress.first_step(result) < len(result.curve.loss) for result in results) else []


def mean_curve(results: Sequence[TrainResult], progress: Progress) -> tuple[Floats, Floats]:
    """Return progress after each step and the loss meaned over seeds, as far as every seed went.

    Where the seeds' steps do not lie at the same places, each is read between its steps on a common grid.
    """
    import numpy as np

    length = min(len(result.curve.loss) for result in results)
    first = max(progress.first_step(result) for result in results)
    places = [progress.so_far(result)[1:][first:] for result in results]
    losses = [np.array(result.curve.loss[first:], dtype=np.float64) for result in results]
    length -= first
    if all(np.array_equal(place[:length], places[0][:length]) for place in places):
        return places[0][:length], np.mean([loss[:length] for loss in losses], axis=0)
    low, high = max(place[0] for place in places), min(place[-1] for place in places)
    grid = np.linspace(low, max(low, high), min(length, GRID_POINTS))
    return grid, np.mean([np.interp(grid, x, loss) for x, loss in zip(places, losses, strict=True)], axis=0)


def _draw_held_out(axis: Axes, style: LabelStyle, results: Sequence[TrainResult], progress: Progress) -> bool:
    """Draw the mean held-out loss at the steps at which every run took it; return whether there was one."""
    import numpy as np

    found = [(progress.so_far(result), curve) for result in results if (curve := held_out_curve(result))]
    if not found:
        return False
    first = max(progress.first_step(result) for result in results)
    common = set.intersection(*(set(curve) for _, curve in found))
    steps = sorted(step for step in common if step >= first)  # what was read before has no place on this axis
    if not steps:
        return False
    axis.plot(
        [float(np.mean([so_far[step] for so_far, _ in found])) for step in steps],
        [float(np.mean([curve[step] for _, curve in found])) for step in steps],
        color=style.color,
        marker=style.marker,
        markerfacecolor="white",
        linestyle="none",
        markersize=4.5,
        zorder=3,
        clip_on=False,
        gid="held-out",
    )
    return True


def running_mean(values: Floats) -> Floats:
    """Return the centred running mean, at the ends over what is there; of a short curve the curve itself."""
    import numpy as np

    if len(values) < LEAST_SMOOTHED:
        return values
    span = (len(values) // SMOOTHING_SHARE) | 1
    kernel = np.ones(span)
    reach = span // 2
    sums = np.convolve(values, kernel)[reach : reach + len(values)]
    counts = np.convolve(np.ones(len(values)), kernel)[reach : reach + len(values)]
    return np.asarray(sums / counts)
