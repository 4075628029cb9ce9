"""What ``harness compare``, ``history`` and tables of papers call quantities, and what they take beside them."""

from __future__ import annotations

from collections.abc import Mapping

from harness import quantities
from harness.quantity import Quantity

SCORE = "score"
TIME = "time"
SCALES = {"fraction": 1.0, "points": 10.0}
"""Of a score by its unit; a point of tolerance, ``1pt``, is a hundredth of it."""
ROUND_TIME = Quantity(
    name=TIME,
    title="time of a round",
    unit="seconds",
    read=lambda record: None,
    definition="seconds of a round of pytest-benchmark; no record has one.",
)


def quantities_by_metric() -> Mapping[str, Quantity]:
    """Return every quantity of records by the name that the commands take."""
    return {quantity.metric: quantity for quantity in quantities.ALL}


def measures() -> Mapping[str, Quantity]:
    """Return what ``harness compare`` can judge beside scores, by the name that ``--fail-on`` takes."""
    judged = {name: found for name, found in quantities_by_metric().items() if found.judged.better is not None}
    return {**judged, TIME: ROUND_TIME}
