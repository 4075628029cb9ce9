"""What a row cost, as cells: of each quantity one value over the row's seeds, for tables and for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import wrap

from harness import quantities
from harness.quantity import Place, Quantity
from harness.readings import is_short
from harness.report.reading.estimates import over_seeds
from harness.report.reading.summary import Row, Summary
from harness.report.reading.words import NO_CUDA, SHORT_RUN
from harness.report.table import Cell, Entry
from harness.report.units import NOTHING, UNITS, bare, significant

HEADING_WIDTH = 10
"""Characters of a line of a heading on a terminal."""


def shown_quantities(rows: Iterable[Row], place: Place) -> tuple[Quantity, ...]:
    """Return what has a column in some place: what some row has a value of, of what is optional one that is not zero.

    Where no row has any value there is a column for all that is not optional: rows then say why there is none.
    """
    rows = tuple(rows)
    here = [quantity for quantity in quantities.ALL if place in quantity.shown.places]
    found = [[over_seeds(row, quantity) for row in rows] for quantity in here]
    shown = tuple(
        quantity
        for quantity, values in zip(here, found, strict=True)
        if (any(values) if quantity.shown.optional else any(value is not None for value in values))
    )
    return shown or tuple(quantity for quantity in here if not quantity.shown.optional)


def heading(quantity: Quantity) -> str:
    """Return the heading of a table's column."""
    return quantity.shown.column or f"{quantity.title} ({UNITS[quantity.unit][1]})"


def short_heading(quantity: Quantity) -> str:
    """Return the heading of a terminal's column, in its lines."""
    return quantity.shown.short or "\n".join(wrap(heading(quantity), HEADING_WIDTH))


def definition(quantity: Quantity) -> tuple[str, str]:
    """Return what a report calls a quantity in its tables, and what it says it is."""
    return quantity.title, quantity.definition


def cost_cell(row: Row, quantity: Quantity, summary: Summary) -> Entry:
    """Return a finished row's value as a table has it, or why there is none."""
    value = over_seeds(row, quantity)
    if value is None:
        return _why_none(row, quantity, summary)
    rest: tuple[str, ...] = ()
    text = _text(row, quantity, value)
    if quantity.unit == "parameters":
        text += f" {UNITS['parameters'][1]}"
    if quantity.shown.whole is not None:
        whole = next((whole for record in row.records if (whole := quantity.shown.whole(record))), None)
        rest = () if whole is None else (f"({significant(100 * value / whole)}%)",)
    return NOTHING if text == NOTHING else Cell(text, value, rest)


def short_cell(row: Row, quantity: Quantity, summary: Summary) -> str:
    """Return a finished row's value as a terminal has it, without marks and shares."""
    if quantity.shown.needs_cuda and not summary.view.environment.on_cuda:
        return "no CUDA"
    value = over_seeds(row, quantity)
    return NOTHING if value is None else _text(row, quantity, value, marked=False)


def _text(row: Row, quantity: Quantity, value: float, *, marked: bool = True) -> str:
    """Return a value under its heading; one sign of a change where the value before it is missing."""
    text = bare(value, quantity.unit)
    if quantity.before is not None:
        before = over_seeds(row, quantity.before)
        text = NOTHING if before is None else f"{bare(before, quantity.unit)} -> {text}"
    short = marked and quantity.shown.of_cycle and any(is_short(record) for record in row.records)
    return text + SHORT_RUN if short else text


def _why_none(row: Row, quantity: Quantity, summary: Summary) -> Entry:
    if not row.trains:
        return NOTHING
    if quantity.shown.needs_cuda and not summary.view.environment.on_cuda:
        return NO_CUDA
    return quantity.shown.absent or NOTHING
