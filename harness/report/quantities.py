"""What a row says of memory, time and parameters, in one value over its seeds.

Over seeds a peak is the largest and a time or a loss is the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from statistics import fmean

from harness.devices import DeviceSpec, known_device, load_devices
from harness.record import Prediction, Record, TrackedPeak, TrainResult
from harness.report.proofs import has_failing_proof
from harness.report.statistics import Estimate
from harness.report.summary import Row
from harness.report.units import NOTHING, percent

NO_CUDA = "not measured (no CUDA)"
NO_TRAINING = "no training"
BUSY = "†"
"""Marks a label of which a run began on a device that was not idle."""
TUNED = "‡"
"""Marks a label whose learning rate harness tune chose."""
UNPROVEN = "§"
"""Marks a label of which the proof of a run fails."""
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


def marks(row: Row) -> str:
    """Return the marks behind a label: of a tuned learning rate, of a proof that fails."""
    return f" {TUNED}" * (row.choice is not None) + f" {UNPROVEN}" * has_failing_proof(row)


def label_text(row: Row) -> str:
    """Return the label, with the seeds counted where some have no result or there are several."""
    done, asked = len(row.finished), len(row.runs)
    label = row.label + marks(row)
    if done in (0, asked):
        return label
    return f"{label} ({done} of {asked} seeds; {row_status(row)})"


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
    return _largest(run_peak_bytes(record) for record in row.records)


def run_peak_bytes(record: Record) -> int | None:
    """Return the peak of allocated CUDA memory in a run's training; None where none was measured.

    The phase knows what its own process saw; of a resumed run the steps before are in the curve alone.
    """
    phase = record.phase("train")
    curve = () if record.train is None else record.train.curve.allocated_peak_bytes
    return _largest((None if phase is None else phase.allocated_peak_bytes, *curve))


def largest_tracked_peak(row: Row) -> TrackedPeak | None:
    """Return the largest tracked peak over the seeds."""
    peaks = [r.train.tracked_peak for r in row.records if r.train is not None and r.train.tracked_peak is not None]
    return max(peaks, key=lambda peak: peak.at_peak.total_bytes, default=None)


def best_prediction(row: Row) -> Prediction | None:
    """Return the prediction with the largest peak over the seeds, of runs without a result too."""
    found = [run.record.prediction for run in row.runs if run.record is not None and run.record.prediction is not None]
    return max(found, key=lambda prediction: prediction.peak_bytes, default=None)


def prediction_difference(record: Record) -> float | None:
    """Return by which fraction of the measured peak the predicted one is larger; None where either is missing.

    Measured is the allocated peak on CUDA and the tracked peak on a CPU; what was predicted for the other is not
    compared.
    """
    prediction = record.prediction
    if prediction is None or prediction.device != record.environment.device_type or record.train is None:
        return None
    tracked = record.train.tracked_peak
    on_cpu = None if tracked is None else tracked.at_peak.total_bytes
    measured = run_peak_bytes(record) if prediction.device == "cuda" else on_cpu
    return prediction.peak_bytes / measured - 1.0 if measured else None


def largest_difference(row: Row) -> float | None:
    """Return the difference of prediction and measurement that is farthest from zero over the seeds."""
    found = [difference for r in row.records if (difference := prediction_difference(r)) is not None]
    return max(found, key=abs, default=None)


def is_busy(row: Row) -> bool:
    """Return whether others used the device when a run of this row began."""
    return any(record.environment.device_busy for record in row.records)


def host_peak_bytes(row: Row) -> int | None:
    """Return the largest resident set of the process up to the end of training over the seeds."""
    return _largest(phase.host_peak_bytes for record in row.records if (phase := record.phase("train")) is not None)


def tokens_per_second(train: TrainResult) -> float | None:
    """Return a step's mean tokens, padding left out, over the mean step time; None where no step was timed."""
    return None if train.step_seconds_mean is None else fmean(train.curve.tokens) / train.step_seconds_mean


def step_flops(record: Record) -> float | None:
    """Return the operations that a mean step of a run needed; None without a prediction.

    What was predicted for rows of full length is scaled by the tokens that there were; of shorter rows that counts a
    little more for attention than there was.
    """
    prediction, settings, train = record.prediction, record.spec.train, record.train
    if prediction is None or settings is None or train is None or not train.curve.tokens:
        return None
    planned = settings.batch_size * settings.gradient_accumulation_steps * settings.sequence_length
    return prediction.flops_per_step * fmean(train.curve.tokens) / planned


def model_flops_utilization(record: Record) -> float | None:
    """Return the operations needed a second over the device's stated dense peak for the weights' dtype, 0 to 1.

    None where the step was not timed, nothing was predicted, or the device's peak is not known.
    """
    flops, train, settings = step_flops(record), record.train, record.spec.train
    if flops is None or train is None or train.step_seconds_mean is None or settings is None:
        return None
    device = _device(record.environment.device_name)
    peak = None if device is None else device.peak_flops(settings.dtype)
    return None if peak is None else flops / train.step_seconds_mean / peak


@cache
def _device(name: str) -> DeviceSpec | None:
    """Return a device of devices.toml, which is read once for all records."""
    return known_device(name, load_devices())


def mean_of_records(row: Row, value: Callable[[Record], float | None]) -> float | None:
    """Return the mean over seeds of something of a record; None unless every finished run has it."""
    found = [value(record) for record in row.records if record.train is not None]
    known = [one for one in found if one is not None]
    return fmean(known) if known and len(known) == len(found) else None


def has_held_out_loss(rows: Iterable[Row]) -> bool:
    """Return whether any run of the rows took the loss of a held-out batch."""
    results = (record.train for row in rows for record in row.records)
    return any(train is not None and train.validation_loss_after is not None for train in results)


def has_general_loss(rows: Iterable[Row]) -> bool:
    """Return whether any run of the rows took the loss of the general text."""
    results = (record.train for row in rows for record in row.records)
    return any(train is not None and train.general_loss_after is not None for train in results)


def held_out_losses(row: Row) -> str:
    """Return the held-out loss of a row before and after training; one sign where either is missing."""
    return _losses_text(row, lambda train: train.validation_loss_before, lambda train: train.validation_loss_after)


def general_losses(row: Row) -> str:
    """Return the loss of the general text before and after training; one sign where either is missing."""
    return _losses_text(row, lambda train: train.general_loss_before, lambda train: train.general_loss_after)


def _losses_text(
    row: Row, before: Callable[[TrainResult], float | None], after: Callable[[TrainResult], float | None]
) -> str:
    first, last = mean_of(row, before), mean_of(row, after)
    return NOTHING if first is None or last is None else f"{first:.3f} -> {last:.3f}"


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def mean_of(row: Row, value: Callable[[TrainResult], float | None]) -> float | None:
    """Return the mean over seeds of something measured in training; None unless every finished run has it."""
    return mean_of_records(row, lambda record: None if record.train is None else value(record.train))
