"""The cells of a table for a paper: a figure, what stands beside it, and the word where there is none."""

from __future__ import annotations

from dataclasses import dataclass

from harness.readings import is_short
from harness.report.reading.estimates import average_of_row, normalised_average_of_row, over_seeds, score_of_row
from harness.report.reading.summary import ABSENT, Row, Summary
from harness.report.reading.words import row_status
from harness.report.statistics.intervals import Estimate
from harness.report.tables.choice import Style
from harness.report.tables.columns import Chosen
from harness.report.units import bare, percent

MISSING = "--"
"""Stands for a figure that there is none of."""
SHORT_RUN = "*"
NO_ROW = "not in the suite"


@dataclass(frozen=True)
class Figure:
    """One cell."""

    text: str
    """The figure, or ``MISSING``."""
    beside: str = ""
    """``±1.2`` or ``[30.0, 47.9]``."""
    above: str = ""
    """What stands raised behind it: letters of groups, a mark."""
    bold: bool = False
    why: str = ""
    """Why there is none, of a row without a result."""

    @property
    def is_missing(self) -> bool:
        """Return whether there is no figure."""
        return self.text == MISSING


def estimate_of(row: Row, column: Chosen, summary: Summary) -> tuple[Estimate, str] | None:
    """Return a row's estimate in a column of scores with its unit; None where there is none."""
    if not row.finished or not column.is_score:
        return None
    if column.score is not None:
        return score_of_row(row, column.score)
    average = average_of_row if column.average == "avg" else normalised_average_of_row
    return average(row, summary.columns)


def figure_of(row: Row, column: Chosen, summary: Summary, style: Style) -> Figure:
    """Return the cell of a row in a column, without marks of its scores."""
    why = "" if row.finished else row_status(row) or ABSENT
    if column.quantity is not None:
        value = over_seeds(row, column.quantity)
        if value is None or not (row.finished or column.quantity.of_any_run):
            return Figure(MISSING, why=why)
        short = column.quantity.shown.of_cycle and any(is_short(record) for record in row.records)
        return Figure(bare(value, column.quantity.unit), above=SHORT_RUN if short else "")
    found = estimate_of(row, column, summary)
    if found is None:
        return Figure(MISSING, why=why)
    estimate, unit = found
    write = percent if unit == "fraction" else "{:.2f}".format
    return Figure(write(estimate.mean), _beside(estimate, unit, style))


def _beside(estimate: Estimate, unit: str, style: Style) -> str:
    """Return half the interval's width, or its ends; nothing where there is no interval, or none is asked for."""
    if estimate.interval is None or style == "mean":
        return ""
    write = percent if unit == "fraction" else "{:.2f}".format
    low, high = estimate.interval
    return f"±{write((high - low) / 2)}" if style == "mean±half-width" else f"[{write(low)}, {write(high)}]"
