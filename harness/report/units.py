"""How numbers are written in a report. Bytes become GiB (2^30 bytes) and fractions per cent here and nowhere else."""

from __future__ import annotations

from math import isfinite

GIB = 2**30
NOTHING = "–"
"""Stands for what was not measured."""


def percent(value: float) -> str:
    """Return a fraction in per cent with one decimal, without the sign."""
    return f"{100 * value:.1f}"


def significant(value: float, digits: int = 3) -> str:
    """Return a number with this many significant digits, never in exponential form."""
    if not isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded number: 0.00999 becomes 0.0100
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def signed_percent(value: float | None) -> str:
    """Return a fraction in per cent with its sign and one decimal, without the unit."""
    return NOTHING if value is None else f"{100 * value:+.1f}"


def gib(value: float | None) -> str:
    """Return bytes in GiB, without the unit."""
    return NOTHING if value is None else significant(value / GIB)
