"""How numbers are written in a report. Bytes become GiB (2^30 bytes) and fractions per cent here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from harness.quantity import Unit
from harness.record_environment import Environment

GIB = 2**30
NOTHING = "–"
"""Stands for what was not measured."""
UNITS: Mapping[Unit, tuple[float, str]] = {
    "bytes": (GIB, "GiB"),
    "seconds": (1.0, "s"),
    "nats": (1.0, "nats"),
    "tokens/s": (1.0, "tokens/s"),
    "parameters": (1e6, "M"),
    "FLOP": (1e12, "TFLOP"),
    "fraction": (0.01, "%"),
    "difference": (0.01, "%"),
}
"""By what a value of each unit is divided, and what is written behind it then."""


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


def memory_text(environment: Environment) -> str | None:
    """Return the memory of a device with its unit; None where it is not known."""
    return None if (memory := environment.device_memory_bytes) is None else f"{gib(memory)} GiB"


def scaled(value: float, unit: Unit) -> float:
    """Return a value as it is drawn and written: in GiB, millions, per cent and so on."""
    return value / UNITS[unit][0]


def bare(value: float, unit: Unit) -> str:
    """Return a value under a heading that says its unit."""
    if unit == "fraction":
        return percent(value)
    if unit == "difference":
        return signed_percent(value)
    return f"{value:.3f}" if unit == "nats" else significant(scaled(value, unit))


def with_unit(value: float, unit: Unit) -> str:
    """Return a value that stands alone, with its unit and a digit more."""
    number, sign = scaled(value, unit), UNITS[unit][1]
    if sign == "%":
        return f"{number:+.2f}%" if unit == "difference" else f"{number:.2f}%"
    return f"{number:.4g} {sign}" if unit == "bytes" else f"{significant(number, 4)} {sign}"
