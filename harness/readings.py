"""What more than one reader takes out of a record: the way to a figure, and figures that follow from several.

A reader that asks here needs no knowledge of where a record keeps things; what is missing is None.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import cache
from statistics import fmean
from typing import Any, NamedTuple

from harness.catalogue.devices import DeviceSpec, known_device, load_devices
from harness.record import Record, Score
from harness.record_training import MemoryBreakdown, Prediction, StepCurve, TrackedPeak, TrainResult
from harness.spec import RunSpec


class PeakPlace(NamedTuple):
    """A peak of memory and where in training it came."""

    size: int
    """Bytes."""
    at_step: int
    during: str
    """Moment of the step: resample, inference, forward, backward, observe, clip or optimizer."""


def how_it_ended(record: Record) -> str:
    """Return how a run ended and why, in words."""
    status, reason = record.ending
    return status + (f": {reason}" if reason else "")


def seconds_taken(record: Record) -> float:
    """Return the seconds from its start to its end."""
    return (record.finished_at - record.started_at).total_seconds()


def source_of(record: Record, role: str) -> str | None:
    """Return what identifies the data that a run used in a role, as ``train``; None where it used none."""
    return record.spec.sources.get(role)


def ran_on_cuda(record: Record) -> bool:
    """Return whether the run had a CUDA device."""
    return record.environment.on_cuda


def began_busy(record: Record) -> bool:
    """Return whether others used the device when the run began."""
    return record.environment.not_idle() is not None


def spec_of(record: Record) -> RunSpec:
    """Return what was to be run."""
    return record.spec


def all_scores(record: Record) -> tuple[Score, ...]:
    """Return every score that stands in a record, its own tasks' and groups'."""
    return record.scores


def scored_run(record: Record) -> str:
    """Return the name of the run whose scores a record has: its own, or that to which they were added."""
    return record.of or record.uuid


def recorded_as(records: Iterable[Record], uuid: str) -> Record | None:
    """Return the record of a name, or None."""
    return next((record for record in records if record.uuid == uuid), None)


def each_once(records: Sequence[Record]) -> tuple[Record, ...]:
    """Return records without those that stand there again: the first of each name, in their order."""
    return tuple(reversed({record.uuid: record for record in reversed(records)}.values()))


def newest_runs(records: Iterable[Record], run_ids: Container[str] | None = None) -> frozenset[str]:
    """Return the names of the newest records of runs.

    Args:
        records: In the order of time.
        run_ids: Of the runs that count, wherever they ran; None: all, of each environment the newest.
    """
    newest = {
        (record.run_id, record.environment_id if run_ids is None else ""): record.uuid
        for record in records
        if record.is_run and (run_ids is None or record.run_id in run_ids)
    }
    return frozenset(newest.values())


def headline_scores(record: Record) -> list[Score]:
    """Return the scores that enter an average."""
    return [score for score in record.scores if score.headline]


def values_of(scores: Iterable[Score], task: str, metric: str) -> list[float]:
    """Return the values of one metric of a task."""
    return [score.value for score in scores if score.is_of(task, metric)]


def question(record: Record) -> dict[str, Any]:
    """Return what was asked, but for the seed."""
    return record.spec.asked() | {"seed": None}


def trained(read: Callable[[TrainResult], float | None]) -> Callable[[Record], float | None]:
    """Return the reading of a record that is one of its training; None where nothing was trained."""
    return lambda record: None if record.train is None else read(record.train)


def steps_done(record: Record) -> int:
    """Return the optimizer steps that were done."""
    return 0 if record.train is None else record.train.num_steps


def step_curve(record: Record) -> StepCurve | None:
    """Return what was recorded of each step; None where nothing was trained."""
    return None if record.train is None else record.train.curve


def own_steps(train: TrainResult | None, num_steps: int) -> range:
    """Return the steps that were taken by as many devices as ended the run."""
    return range(0 if train is None else train.other_ranks_before_step, num_steps)


def step_peak(record: Record) -> PeakPlace | None:
    """Return the largest peak of allocated CUDA memory over the steps; None without CUDA."""
    if (curve := step_curve(record)) is None:
        return None
    peaks = curve.allocated_peak_bytes
    at = max(own_steps(record.train, len(peaks)), key=peaks.__getitem__, default=None)
    if at is None:
        return None
    return PeakPlace(peaks[at], at, curve.peak_moments[at])


def run_peak_bytes(record: Record) -> int | None:
    """Return the peak of allocated CUDA memory in a run's training; None where none was measured.

    The phase knows what its own process saw; of a resumed run the steps before are in the curve alone.
    """
    phase, step = record.phase("train"), step_peak(record)
    known = (None if phase is None else phase.allocated_peak_bytes, None if step is None else step.size)
    return max((peak for peak in known if peak is not None), default=None)


def live_peak(record: Record) -> TrackedPeak | None:
    """Return what the tracker saw in the first steps, on any device; None where no step was tracked."""
    return None if record.train is None else record.train.tracked_peak


def live_parts(record: Record) -> MemoryBreakdown | None:
    """Return what the largest sum of live storages was made of."""
    peak = live_peak(record)
    return None if peak is None else peak.at_peak


def live_peak_bytes(record: Record) -> int | None:
    """Return the largest sum of live storages that the tracker saw."""
    parts = live_parts(record)
    return None if parts is None else parts.total_bytes


def live_peak_place(record: Record) -> PeakPlace | None:
    """Return that peak with where it came."""
    peak = live_peak(record)
    return None if peak is None else PeakPlace(peak.at_peak.total_bytes, peak.step, peak.moment)


def tracked_steps(train: TrainResult) -> tuple[int, ...]:
    """Return the steps that a tracker slowed down: their times are no part of the step time."""
    return () if train.tracked_peak is None else train.tracked_peak.steps


def predicted_parts(record: Record) -> MemoryBreakdown | None:
    """Return what the predicted peak is made of."""
    return None if record.prediction is None else record.prediction.at_peak


def predictable_peak_bytes(record: Record) -> int | None:
    """Return the measured peak that planning predicts: the allocated one on CUDA, the tracked one on a CPU."""
    if record.train is None:
        return None
    return run_peak_bytes(record) if ran_on_cuda(record) else live_peak_bytes(record)


def own_prediction(record: Record) -> Prediction | None:
    """Return what was predicted for the kind of device that the run had; what was for another does not compare."""
    prediction = record.prediction
    return prediction if prediction is not None and prediction.device == record.environment.device_type else None


def prediction_difference(record: Record) -> float | None:
    """Return by which fraction of the measured peak the predicted one is larger.

    None where either is missing, and where what was measured is not what was predicted.
    """
    prediction, measured = own_prediction(record), predictable_peak_bytes(record)
    if prediction is None or not measured or not shows_predicted_step(record, prediction):
        return None
    return prediction.peak_bytes / measured - 1.0


def shows_predicted_step(record: Record, prediction: Prediction, *, by_tracker: bool = False) -> bool:
    """Return whether the measured peak is of steps like the predicted one: that step, and rows of full length.

    A tracker sees a run's first steps, and a method may need most later. Rows are padded to the longest of their
    batch: as long as predicted are those that fill the sequence, or were cut to it.

    Args:
        record: What was measured.
        prediction: What it is held against.
        by_tracker: Whether what a tracker saw is meant on CUDA too, where every step's allocated peak is known.
    """
    train, settings, tracked = record.train, record.train_settings, live_peak(record)
    if train is None or settings is None:
        return False
    steps: Sequence[int] = own_steps(train, len(train.curve.tokens))
    if by_tracker or not ran_on_cuda(record):
        if tracked is None or prediction.peak_step > max(tracked.steps, default=-1):
            return False
        steps = [step for step in tracked.steps if step < len(train.curve.tokens)]
    full = settings.batch_size * settings.gradient_accumulation_steps * settings.sequence_length
    cut = train.curve.truncated_rows
    return any(train.curve.tokens[step] >= full or (step < len(cut) and cut[step] > 0) for step in steps)


def predicted_peak_bytes(record: Record) -> int | None:
    """Return the predicted peak, for whatever kind of device it was; None without a prediction."""
    return None if record.prediction is None else record.prediction.peak_bytes


def step_seconds(record: Record) -> float | None:
    """Return the mean seconds of a step after the warm-up; None where no step was timed."""
    return None if record.train is None else record.train.step_seconds_mean


def held_out_curve(train: TrainResult) -> dict[int, float]:
    """Return the held-out loss by steps done; of a record older than the curve its ends, empty where none was taken."""
    if train.validation_steps:
        return dict(zip(train.validation_steps, train.validation_losses, strict=False))
    before, after = train.validation_loss_before, train.validation_loss_after
    return {} if before is None or after is None else {0: before, len(train.curve.loss): after}


def is_short(record: Record) -> bool:
    """Return whether a run is too short to hold one whole refresh cycle of its method, so that its times say less."""
    return record.train is not None and record.train.covers_refresh_cycle is False


def step_tokens(record: Record) -> float | None:
    """Return the mean tokens of a step, padding left out; None without a step."""
    return None if (curve := step_curve(record)) is None or not curve.tokens else fmean(curve.tokens)


def timed_step_tokens(record: Record) -> float | None:
    """Return the mean tokens of the steps that were timed, those behind the warm-up; None where none was."""
    train = record.train
    if train is None or not train.num_timed_steps or not train.curve.tokens:
        return None
    return fmean(train.curve.tokens[-train.num_timed_steps :])


def tokens_per_second(record: Record) -> float | None:
    """Return the mean tokens of the timed steps over their mean time; None where no step was timed, or in no time."""
    tokens, seconds = timed_step_tokens(record), step_seconds(record)
    return None if tokens is None or not seconds else tokens / seconds


def step_flops(record: Record) -> float | None:
    """Return the operations that a mean step of a run needed; None without a prediction.

    What was predicted for rows of full length is scaled by the tokens that there were; of shorter rows that counts a
    little more for attention than there was.
    """
    prediction, settings = record.prediction, record.train_settings
    if prediction is None or settings is None or (tokens := step_tokens(record)) is None:
        return None
    planned = settings.batch_size * settings.gradient_accumulation_steps * settings.sequence_length
    return prediction.flops_per_step * tokens / planned


def model_flops_utilization(record: Record) -> float | None:
    """Return the operations needed a second over the device's stated dense peak for the weights' dtype, 0 to 1.

    None where the step was not timed, nothing was predicted, or the device's peak is not known.
    """
    flops, seconds, settings = step_flops(record), step_seconds(record), record.train_settings
    if flops is None or not seconds or settings is None:
        return None
    tokens, timed = step_tokens(record), timed_step_tokens(record)
    if not tokens or timed is None:
        return None
    device = _device(record.environment.device_name)
    peak = None if device is None else device.peak_flops(settings.dtype)
    return None if peak is None else flops * (timed / tokens) / seconds / peak


@cache
def _device(name: str) -> DeviceSpec | None:
    """Return a device of devices.toml, which is read once for all records."""
    return known_device(name, load_devices())


def _packages(record: Record) -> str:
    return "; ".join(f"{name}=={version}" for name, version in sorted(record.environment.packages.items()))


IDENTITY: Mapping[str, Callable[[Record], Any]] = {
    "suite": lambda record: record.suite,
    "suite_version": lambda record: record.spec.suite_version,
    "protocol": lambda record: record.spec.protocol,
    "method": lambda record: record.spec.method,
    "run_id": lambda record: record.run_id,
    "environment_id": lambda record: record.environment_id,
    "uuid": lambda record: record.uuid,
}
"""What tells a record from others, by the column of a table of runs or scores."""
FACTS: Mapping[str, Callable[[Record], Any]] = {
    "status": lambda record: record.status,
    "reason": lambda record: record.reason,
    "started_at": lambda record: record.started_at.isoformat(),
    "finished_at": lambda record: record.finished_at.isoformat(),
    "max_steps": lambda record: record.spec.max_steps,
    "limit": lambda record: record.evaluation_settings.limit,
    "device_type": lambda record: record.environment.device_type,
    "device_name": lambda record: record.environment.device_name,
    "num_threads": lambda record: record.environment.num_threads,
    "num_ranks": lambda record: record.environment.num_ranks,
    "python": lambda record: record.environment.python,
    "packages": _packages,
    "commit": lambda record: record.environment.commit,
    "dirty": lambda record: record.environment.dirty,
    "device_busy": lambda record: record.environment.device_busy,
    "prediction_error": lambda record: record.prediction_error,
}
"""What happened to a run and where, by the column of a table of runs."""
