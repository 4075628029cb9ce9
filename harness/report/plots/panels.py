"""What the plots of a report share: panels, legends and titles that fit the width of print, and the names of failures.

Figures are built without pyplot, so that no window system is looked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from textwrap import fill
from typing import TYPE_CHECKING

from harness.report.plots.style import COLUMN_INCHES, LABEL_LIMIT, NO_NAME, PAGE_INCHES, LabelStyle
from harness.report.reading.summary import Row, Summary
from harness.report.reading.words import row_status
from harness.report.table import one_line

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_ACROSS = 2
CHAR_INCHES = 0.062
"""Mean width of a character of a legend or of a note, a little too wide rather than too narrow."""
TITLE_INCHES = 0.074
"""The same of a figure's title."""
HANDLE_INCHES = 0.55
LINE_INCHES = 0.145


def width_of(across: int) -> float:
    """Return the width of a figure with so many panels beside each other, in inches."""
    return PAGE_INCHES if across > 1 else COLUMN_INCHES


def panels(models: Sequence[str], height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel a model, at most two beside each other; ``height`` is a panel's, in inches."""
    from matplotlib.figure import Figure

    across = min(PANELS_ACROSS, len(models))
    down = ceil(len(models) / across)
    figure = Figure(figsize=(width_of(across), height * down), layout="constrained")
    axes = [figure.add_subplot(down, across, i + 1) for i in range(len(models))]
    for axis, model in zip(axes, models, strict=True):
        axis.set_title(one_line(model, LABEL_LIMIT))
    return figure, axes


def finish(figure: Figure, title: str, entries: Iterable[tuple[Artist, str]]) -> None:
    """Give a figure its title and below it its legend, and the height that both take."""
    width, height = figure.get_size_inches()
    wrapped = fill(title, int(width / TITLE_INCHES))
    figure.suptitle(wrapped, x=0.01, ha="left")
    height += LINE_INCHES * wrapped.count("\n")
    notes = sum(axis.get_xlabel().count("\n") for axis in figure.axes)
    height += LINE_INCHES * notes / (PANELS_ACROSS if width > COLUMN_INCHES else 1)
    known = list(entries)
    if known:
        longest = max(len(line) for _, text in known for line in text.split("\n"))
        across = max(1, min(len(known), int(width / (longest * CHAR_INCHES + HANDLE_INCHES))))
        lines = max(text.count("\n") + 1 for _, text in known)
        height += LINE_INCHES * lines * ceil(len(known) / across) + 0.1
        handles, texts = zip(*known, strict=True)
        legend = figure.legend(handles, texts, loc="outside lower center", ncols=across)
        for text in legend.get_texts():
            text.set_parse_math(False)
    figure.set_size_inches(width, height)


def set_x_label(axis: Axes, text: str, rows: Sequence[Row] = (), width: float = COLUMN_INCHES, extra: str = "") -> None:
    """Set the label of an x axis, and below it the labels of ``rows`` without a result, by status."""
    notes = [one_line(extra)] if extra else []
    notes += failures(rows)
    lines = [text, *(fill(note, int((width - 0.4) / CHAR_INCHES), break_on_hyphens=False) for note in notes)]
    axis.set_xlabel("\n".join(lines))


def failures(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each status of rows without a result: who they are."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if not row.finished:
            found.setdefault(row_status(row), []).append(one_line(row.label, LABEL_LIMIT) or NO_NAME)
    return [f"{status}: {', '.join(labels)}" for status, labels in found.items()]


def shown_models(summary: Summary, with_data: Iterable[str]) -> list[str]:
    """Return the models that have a record, failed ones too; none where no model has data to draw."""
    drawn = set(with_data)
    return [model for model in summary.models if summary.has_records(model)] if drawn else []


def line_entry(style: LabelStyle, *, line: bool = False, marker: bool = False) -> tuple[Artist, str]:
    """Return a legend's entry of a label: its line, its marker, or both."""
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=style.color, linestyle=style.line if line else "none", marker=style.marker if marker else "none"
    ), style.name
