"""The tolerances of ``harness compare``: what ``--fail-on`` says, and what is judged when it says nothing."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from harness.errors import HarnessError, near_miss
from harness.report.comparing.measures import SCORE, TIME, measures

BENCHMARK_TOLERANCES = f"{TIME}:5%"
SCORE_TOLERANCE = "1pt"


@dataclass(frozen=True)
class Tolerance:
    """How much worse a metric may become."""

    amount: float
    """A fraction of the baseline, or hundredths of a score's scale."""
    unit: Literal["%", "pt"]
    only_on: Literal["cpu", "cuda"] | None = None
    """The kind of device whose runs are judged with it; None: any."""

    def __str__(self) -> str:
        return f"{self.amount * 100:g}%" if self.unit == "%" else f"{self.amount:g}pt"

    @property
    def log_ratio(self) -> float:
        """Return the largest tolerated logarithm of worse over better."""
        return math.log1p(self.amount)


def usual_tolerances() -> dict[str, Tolerance]:
    """Return what is judged of records when nobody says what."""
    found = {
        name: _tolerance(name, measure.judged.tolerance, "%", measure.judged.only_on)
        for name, measure in measures().items()
        if measure.judged.tolerance is not None
    }
    return {**found, SCORE: _tolerance(SCORE, SCORE_TOLERANCE, "pt")}


def usual_text(device_type: Literal["cpu", "cuda"]) -> str:
    """Return the same for runs on one kind of device, as ``--fail-on`` takes it."""
    usual = usual_tolerances().items()
    return ",".join(f"{name}:{one}" for name, one in usual if one.only_on in (None, device_type))


def parse_tolerances(text: str, tasks: Collection[str] = ()) -> dict[str, Tolerance]:
    """Return the tolerances of ``peak_memory:3%,step_time:2%,score:1pt`` by name, in the order given.

    Args:
        text: Names with a tolerance each; a task's own name counts before ``score``.
        tasks: What else may be named: tasks with a score in what is compared.

    Raises:
        HarnessError: a name is unknown or given twice, or a tolerance is not of the metric's kind.
    """
    found: dict[str, Tolerance] = {}
    relative = measures()
    for part in text.split(","):
        name, colon, amount = (piece.strip() for piece in part.partition(":"))
        known = [*relative, SCORE, *tasks]
        if not colon:
            raise HarnessError(f"--fail-on '{part.strip()}': expected NAME:TOLERANCE, such as {usual_text('cuda')}")
        if name not in known:
            raise HarnessError(f"--fail-on: there is no metric '{name}'{near_miss(name, known)}")
        if name in found:
            raise HarnessError(f"--fail-on: '{name}' is there twice; leave one of them out")
        found[name] = _tolerance(name, amount, "%" if name in relative else "pt")
    return found


def _tolerance(
    name: str, amount: str, unit: Literal["%", "pt"], only_on: Literal["cpu", "cuda"] | None = None
) -> Tolerance:
    number = -1.0
    if amount.endswith(unit):
        try:
            number = float(amount.removesuffix(unit))
        except ValueError:
            number = -1.0
    if not 0 <= number < math.inf:
        expected = "a percentage, such as 2%" if unit == "%" else "points, such as 1pt"
        raise HarnessError(f"--fail-on {name}:{amount}: expected {expected}, of at least 0")
    return Tolerance(number / 100 if unit == "%" else number, unit, only_on)
