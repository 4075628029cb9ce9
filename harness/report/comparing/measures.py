"""What ``harness compare``, ``history`` and tables of papers call quantities, and what they take beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from harness import quantities
from harness.quantity import Quantity
from harness.record import Score

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


def scored_tasks(scores: Iterable[Score]) -> list[str]:
    """Return the tasks of some scores, which may be named like a measure."""
    return sorted({score.task for score in scores})


def metric_of(score: Score, known: Collection[str]) -> str:
    """Return the name that stands for a score among some: its task's own, else ``score``."""
    return score.task if score.task in known else SCORE
