"""What ``harness compare`` can judge, and the tolerances of ``--fail-on``."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from harness.errors import HarnessError, near_miss
from harness.record import Record
from harness.report.quantities import run_peak_bytes
from harness.report.units import GIB, significant

SCORE = "score"
TIME = "time"
RECORD_TOLERANCES = "peak_memory:3%,step_time:2%,score:1pt"
BENCHMARK_TOLERANCES = "time:5%"
SCALES = {"fraction": 1.0, "points": 10.0}
"""Of a score by its unit; a point of tolerance, ``1pt``, is a hundredth of it."""


@dataclass(frozen=True)
class Measure:
    """Something of a run that is better when it is smaller, compared as a ratio."""

    title: str
    unit: Literal["bytes", "seconds", "nats"]
    read: Callable[[Record], float | None]

    @property
    def follows_seed(self) -> bool:
        """Return whether a seed alone says most of a value: bytes and losses repeat with it, times do not."""
        return self.unit != "seconds"

    def text(self, value: float) -> str:
        """Return a value with its unit."""
        if self.unit == "bytes":
            return f"{value / GIB:.4g} GiB"
        return f"{significant(value, 4)} {'s' if self.unit == 'seconds' else 'nats'}"


def peak_bytes(record: Record) -> float | None:
    """Return the headline peak of training: allocated on CUDA, on a CPU what the tracker saw."""
    allocated = run_peak_bytes(record)
    if allocated is not None or record.train is None or record.environment.device_type == "cuda":
        return allocated
    tracked = record.train.tracked_peak
    return None if tracked is None else tracked.at_peak.total_bytes


def _reserved_bytes(record: Record) -> float | None:
    phase = record.phase("train")
    return None if phase is None else phase.reserved_peak_bytes


def _host_bytes(record: Record) -> float | None:
    phase = record.phase("train")
    return None if phase is None else phase.host_peak_bytes


def _evaluate_seconds(record: Record) -> float | None:
    phase = record.phase("evaluate")
    return None if phase is None else phase.seconds


MEASURES: Mapping[str, Measure] = {
    "peak_memory": Measure("peak memory", "bytes", peak_bytes),
    "reserved_memory": Measure("reserved memory", "bytes", _reserved_bytes),
    "host_memory": Measure("host peak RSS", "bytes", _host_bytes),
    "predicted_memory": Measure(
        "predicted peak", "bytes", lambda record: None if record.prediction is None else record.prediction.peak_bytes
    ),
    "optimizer_state": Measure(
        "optimizer state, peak",
        "bytes",
        lambda record: None if record.train is None else record.train.peak_optimizer_state_bytes,
    ),
    "step_time": Measure(
        "step time", "seconds", lambda record: None if record.train is None else record.train.step_seconds_mean
    ),
    "evaluation_time": Measure("evaluation time", "seconds", _evaluate_seconds),
    "loss": Measure(
        "held-out loss", "nats", lambda record: None if record.train is None else record.train.validation_loss_after
    ),
    "general_loss": Measure(
        "general text loss", "nats", lambda record: None if record.train is None else record.train.general_loss_after
    ),
    TIME: Measure("time of a round", "seconds", lambda record: None),
}
"""By the name that ``--fail-on`` takes; ``time`` is of pytest-benchmark's files alone."""


@dataclass(frozen=True)
class Tolerance:
    """How much worse a metric may become."""

    amount: float
    """A fraction of the baseline, or hundredths of a score's scale."""
    unit: Literal["%", "pt"]

    def __str__(self) -> str:
        return f"{self.amount * 100:g}%" if self.unit == "%" else f"{self.amount:g}pt"

    @property
    def log_ratio(self) -> float:
        """Return the largest tolerated logarithm of candidate over baseline."""
        return math.log1p(self.amount)


def parse_tolerances(text: str, tasks: Collection[str] = ()) -> dict[str, Tolerance]:
    """Return the tolerances of ``peak_memory:3%,step_time:2%,score:1pt`` by name, in the order given.

    Args:
        text: Names with a tolerance each; a task's own name counts before ``score``.
        tasks: What else may be named: tasks with a score in what is compared.

    Raises:
        HarnessError: a name is unknown or given twice, or a tolerance is not of the metric's kind.
    """
    found: dict[str, Tolerance] = {}
    for part in text.split(","):
        name, colon, amount = (piece.strip() for piece in part.partition(":"))
        known = [*MEASURES, SCORE, *tasks]
        if not colon:
            raise HarnessError(f"--fail-on '{part.strip()}': expected NAME:TOLERANCE, such as {RECORD_TOLERANCES}")
        if name not in known:
            raise HarnessError(f"--fail-on: there is no metric '{name}'{near_miss(name, known)}")
        if name in found:
            raise HarnessError(f"--fail-on: '{name}' is there twice; leave one of them out")
        found[name] = _tolerance(name, amount, "%" if name in MEASURES else "pt")
    return found


def _tolerance(name: str, amount: str, unit: Literal["%", "pt"]) -> Tolerance:
    number = -1.0
    if amount.endswith(unit):
        try:
            number = float(amount.removesuffix(unit))
        except ValueError:
            number = -1.0
    if not 0 <= number < math.inf:
        expected = "a percentage, such as 2%" if unit == "%" else "points, such as 1pt"
        raise HarnessError(f"--fail-on {name}:{amount}: expected {expected}, of at least 0")
    return Tolerance(number / 100 if unit == "%" else number, unit)
