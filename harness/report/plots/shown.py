"""The plots of a report: which there are, what each is called and says, and how they are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.report.plots import blocks as block_plots
from harness.report.plots import loss as loss_plots
from harness.report.plots import memory as memory_plots
from harness.report.plots import memory_against
from harness.report.plots import sweeps as sweep_plots
from harness.report.plots import tasks as task_plots
from harness.report.plots.style import LabelStyle, common_style, label_styles, save_figure
from harness.report.reading.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plot:
    """One plot of a report."""

    title: str
    caption: str
    """What a reader must know to take it for what it is."""
    draw: Callable[[Summary, dict[str, LabelStyle]], Figure | None]
    """Returns None where the records cannot fill it."""


def _loss(title: str, progress: loss_plots.Progress) -> Plot:
    return Plot(
        title,
        loss_plots.CAPTION,
        lambda summary, styles: loss_plots.loss_figure(summary, styles, progress),
    )


DRAWN: dict[str, Plot] = {
    "memory_score": Plot(
        "Memory against score", memory_against.MEMORY_SCORE_CAPTION, memory_against.memory_score_figure
    ),
    "memory_loss": Plot(
        "Memory against held-out loss", memory_against.MEMORY_LOSS_CAPTION, memory_against.memory_loss_figure
    ),
    "tasks": Plot("Scores by task", task_plots.CAPTION, task_plots.task_figure),
    "memory": Plot(
        "What the memory peak is made of, measured and predicted", memory_plots.CAPTION, memory_plots.memory_figure
    ),
    "loss": _loss("Loss in training", loss_plots.STEPS),
    "loss_tokens": _loss("Loss in training against tokens", loss_plots.TOKENS),
    "loss_seconds": _loss("Loss in training against seconds", loss_plots.SECONDS),
    "blocks": Plot("Decoder blocks trained at each step", block_plots.CAPTION, block_plots.block_figure),
    "sweeps": Plot("Sensitivity to one setting", sweep_plots.CAPTION, sweep_plots.sweep_figure),
    "tuning": Plot(
        "Held-out loss against the learning rate, in tuning", sweep_plots.TUNING_CAPTION, sweep_plots.tuning_figure
    ),
}
"""Every plot by the stem of its files, in the order of the page."""


def write_plots(summary: Summary, folder: Path) -> dict[str, list[Path]]:
    """Write every plot that the records can fill into a folder that exists, and return its files by name.

    Raises:
        HarnessError: a file cannot be written.
    """
    written = {}
    with common_style():
        styles = label_styles([row.label for row in summary.rows])
        for name, plot in DRAWN.items():
            figure = plot.draw(summary, styles)
            if figure is not None:
                written[name] = save_figure(figure, folder, name)
    return written
