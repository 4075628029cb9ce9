"""How every plot of a report looks, and how it is saved: the same bytes for the same records.

Colours: the qualitative palette of Okabe and Ito (Color Universal Design, 2008), without its yellow, which vanishes on
white paper. A label also has a marker and a line of its own, so that a plot survives a grey print.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.report.files import replace_file
from harness.report.layout import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
GREY = "#6B6B6B"
GRID = "#DDDDDD"
FORMATS: dict[str, dict[str, str | None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
}
"""Endings of a plot's file, and the metadata that would make its bytes differ from day to day."""
LABEL_LIMIT = 40
DPI = 160
SETTINGS: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelsize": 9.0,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.0,
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "figure.titlesize": 11.0,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "finetune-harness",
    "text.parse_math": False,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
}


@dataclass(frozen=True)
class LabelStyle:
    """Colour, marker and line of one label, the same in every plot of a report."""

    name: str
    color: str
    marker: str
    line: Literal["-", "--", "-.", ":"]


def label_styles(labels: Sequence[str]) -> dict[str, LabelStyle]:
    """Return a style for each label, by its place; colour and line together repeat after 28 labels."""
    return {
        label: LabelStyle(
            name=one_line(label, LABEL_LIMIT) or "(no name)",
            color=COLORS[i % len(COLORS)],
            marker=MARKERS[(i + i // len(COLORS)) % len(MARKERS)],
            line=LINES[(i // len(COLORS)) % len(LINES)],
        )
        for i, label in enumerate(dict.fromkeys(labels))
    }


@contextmanager
def common_style() -> Iterator[None]:
    """Draw and save with the settings above inside the ``with``, whatever the user's own matplotlibrc says."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        yield


def save_figure(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Save a figure as ``stem.svg`` and ``stem.png``, without dates or versions in them, and return the files.

    Raises:
        HarnessError: a file cannot be written.
    """
    figure.draw_without_rendering()  # lays the figure out, once for both files
    figure.set_layout_engine("none")
    return [save_as(figure, folder / f"{stem}{ending}") for ending in (".svg", ".png")]


def save_as(figure: Figure, file: Path) -> Path:
    """Save a figure, PNG or SVG by the file's ending, and return the file.

    Raises:
        HarnessError: the file cannot be written.
    """
    ending = file.suffix.lower()
    data = io.BytesIO()
    figure.savefig(data, format=ending.removeprefix("."), dpi=DPI, metadata=FORMATS[ending])
    return replace_file(file, data.getvalue())
