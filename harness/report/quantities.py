"""What a row says of memory, time and parameters, in one value over its seeds.

Over seeds a peak is the largest and a time or a loss is the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import fmean

from harness.record import TrainResult
from harness.report.statistics import Estimate
from harness.report.summary import Row
from harness.report.units import percent

NO_CUDA = "not measured (no CUDA)"
NO_TRAINING = "no training"
STATUS_WORDS = {
    "absent": "not run",
    "out_of_memory": "out of memory",
    "timed_out": "timed out",
}


def status_words(status: str) -> str:
    """Return how a status is called in a table."""
    return STATUS_WORDS.get(status, status)


def row_status(row: Row) -> str:
    """Return the statuses of a row's runs without a result, in words."""
    return ", ".join(dict.fromkeys(status_words(run.status) for run in row.runs if run.status != "ok"))


def label_text(row: Row) -> str:
    """Return the label, with the seeds counted where some have no result or there are several."""
    done, asked = len(row.finished), len(row.runs)
    if done in (0, asked):
        return row.label
    return f"{row.label} ({done} of {asked} seeds; {row_status(row)})"


def estimate_text(estimate: Estimate, unit: str) -> str:
    """Return mean, interval and n of an estimate; fractions in per cent."""
    write = percent if unit == "fraction" else "{:.2f}".format
    interval = "" if estimate.interval is None else f" [{write(estimate.interval[0])}, {write(estimate.interval[1])}]"
    low, high = estimate.num_items
    n = f"n={low}" if low == high else f"n={low} to {high}"
    seeds = f", {estimate.num_seeds} seeds" if estimate.num_seeds > 1 else ""
    return f"{write(estimate.mean)}{interval} ({n}{seeds})"


def train_peak_bytes(row: Row) -> int | None:
    """Return the largest peak of allocated CUDA memory in training over the seeds; None where none was measured."""
    return _largest(
        phase.allocated_peak_bytes for record in row.records if (phase := record.phase("train")) is not None
    )


def host_peak_bytes(row: Row) -> int | None:
    """Return the largest resident set of the process up to the end of training over the seeds."""
    return _largest(phase.host_peak_bytes for record in row.records if (phase := record.phase("train")) is not None)


def tracked_peak_bytes(row: Row) -> int | None:
    """Return the largest peak of live storages in the tracked steps over the seeds; None where none was tracked."""
    return _largest(
        record.train.tracked_peak.at_peak.total_bytes
        for record in row.records
        if record.train is not None and record.train.tracked_peak is not None
    )


def tokens_per_second(train: TrainResult) -> float | None:
    """Return a step's mean tokens, padding left out, over the mean step time; None where no step was timed."""
    return None if train.step_seconds_mean is None else fmean(train.curve.tokens) / train.step_seconds_mean


def has_held_out_loss(rows: Iterable[Row]) -> bool:
    """Return whether any run of the rows took the loss of a held-out batch."""
    results = (record.train for row in rows for record in row.records)
    return any(train is not None and train.validation_loss_after is not None for train in results)


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def mean_of(row: Row, value: Callable[[TrainResult], float | None]) -> float | None:
    """Return the mean over seeds of something measured in training; None unless every finished run has it."""
    found = [value(record.train) for record in row.records if record.train is not None]
    known = [one for one in found if one is not None]
    return fmean(known) if known and len(known) == len(found) else None
