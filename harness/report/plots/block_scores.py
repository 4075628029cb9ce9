"""The plot of ``harness layers``: block scores above, the probabilities that follow from them below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.report.plots.style import COLORS, common_style, save_as
from harness.report.table import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE_LIMIT = 90
BLACK, BLUE, ORANGE = COLORS[:3]


@dataclass(frozen=True)
class LayerScores:
    """What is drawn: one number a block in each list."""

    title: str
    score_name: str
    scores: Sequence[float]
    probabilities: Sequence[float]
    inclusion: Sequence[float]
    inclusion_name: str


def write_layer_plot(layers: LayerScores, file: Path) -> Path:
    """Draw the plot into ``file``, PNG or SVG by its ending, and return it.

    Raises:
        HarnessError: the file cannot be written.
    """
    with common_style():
        return save_as(_figure(layers), file)


def _figure(layers: LayerScores) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    blocks = range(len(layers.scores))
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.bar(blocks, layers.scores, color=BLUE, width=0.8)
    above.set_ylabel(layers.score_name)
    below.plot(blocks, layers.inclusion, color=ORANGE, marker="s", markersize=4, linestyle="--")
    below.plot(blocks, layers.probabilities, color=BLACK, marker="o", markersize=4)
    below.set_ylabel("probability")
    below.set_xlabel("decoder block")
    below.set_ylim(bottom=0.0)
    below.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    for axis in (above, below):
        axis.grid(visible=False, axis="x")
    figure.legend(below.get_lines(), [layers.inclusion_name, "of one draw"], loc="outside lower center", ncols=2)
    figure.suptitle(one_line(layers.title, TITLE_LIMIT), x=0.01, ha="left", fontweight="bold")
    return figure
