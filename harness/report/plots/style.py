"""How every plot of a report looks, and how it is saved: the same bytes for the same records.

Colours: the qualitative palette of Okabe and Ito (Color Universal Design, 2008), without its yellow, which vanishes on
white paper. A label also has a marker, a line and a hatch of its own, so that a plot survives a grey print.

Sizes are those of print: a panel is as wide as a column of a two-column paper, two beside each other as wide as its
page, and no letter is smaller than 5.5 points when a figure is set at its own size.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.catalogue.labels import load_labels
from harness.report.files import replace_file
from harness.report.table import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
SLOTS = len(COLORS) * len(LINES)
"""Styles that differ in colour or line."""
HATCHES = ("", "/////", "\\\\\\\\\\", ".....", "xxxxx", "-----", "+++++")
GREY = "#6B6B6B"
GRID = "#DDDDDD"
COLUMN_INCHES = 3.3
"""Width of a column of a two-column paper: of one panel with its axis."""
PAGE_INCHES = 6.8
"""Width of such a paper's page."""
FORMATS: dict[str, dict[str, str | None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""Endings of a plot's file, and the metadata that would make its bytes differ from day to day."""
LABEL_LIMIT = 40
NO_NAME = "(no name)"
DPI = 220
SETTINGS: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelsize": 7.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 7.5,
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "figure.titlesize": 9.5,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.5,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "hatch.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "finetune-harness",
    "text.parse_math": False,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
}


@dataclass(frozen=True)
class LabelStyle:
    """Colour, marker, line and hatch of one label, the same in every plot."""

    name: str
    color: str
    marker: str
    line: Literal["-", "--", "-.", ":"]
    hatch: str


def label_styles(labels: Sequence[str]) -> dict[str, LabelStyle]:
    """Return a style for each label, in every report the same one for a label of the catalogue.

    Those come in the catalogue's order, first the ones that are called like their method. Any other label takes a
    colour by its name, or the next that no label before it has. Colour and line together repeat after 28 labels.
    """
    order = _catalogue_order()
    different = list(dict.fromkeys(labels))
    places = {label: order[label] % SLOTS for label in different if label in order}
    for label in different:
        if label not in places:
            places[label] = _free_place(label, list(places.values()))
    return {label: _style(label, places[label]) for label in different}


def _style(label: str, i: int) -> LabelStyle:
    return LabelStyle(
        name=one_line(label, LABEL_LIMIT) or NO_NAME,
        color=COLORS[i % len(COLORS)],
        marker=MARKERS[(i + i // len(COLORS)) % len(MARKERS)],
        line=LINES[(i % len(COLORS) + i // len(COLORS)) % len(LINES)],
        hatch=HATCHES[(i + i // len(COLORS)) % len(HATCHES)],
    )


def _free_place(label: str, taken: Sequence[int]) -> int:
    """Return the place of a label that the catalogue does not have: of a colour that is free, else of a free place."""
    start = int.from_bytes(hashlib.sha256(label.encode("utf-8", errors="replace")).digest()[:4], "big")
    colors = {place % len(COLORS) for place in taken}
    free = [place for k in range(len(COLORS)) if (place := (start + k) % len(COLORS)) not in colors]
    free += [place for k in range(SLOTS) if (place := (start + k) % SLOTS) not in taken]
    return free[0] if free else start % SLOTS


@cache
def _catalogue_order() -> dict[str, int]:
    """Return the place of each packaged label."""
    labels = load_labels()
    ordered = sorted(labels, key=lambda label: labels[label].method != label)
    return {label: place for place, label in enumerate(ordered)}


@contextmanager
def common_style() -> Iterator[None]:
    """Draw and save with the settings above inside the ``with``, whatever the user's own matplotlibrc says."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        yield


def save_figure(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Save a figure as SVG, PNG and PDF named ``stem``, without dates or versions in them, and return the files.

    Raises:
        HarnessError: a file cannot be written.
    """
    figure.draw_without_rendering()  # lays the figure out, once for all files
    figure.set_layout_engine("none")
    return [save_as(figure, folder / f"{stem}{ending}") for ending in (".svg", ".png", ".pdf")]


def save_as(figure: Figure, file: Path) -> Path:
    """Save a figure, PNG, SVG or PDF by the file's ending, and return the file.

    Raises:
        HarnessError: the file cannot be written.
    """
    ending = file.suffix.lower()
    data = io.BytesIO()
    figure.savefig(data, format=ending.removeprefix("."), dpi=DPI, metadata=FORMATS[ending])
    return replace_file(file, data.getvalue())
