"""What the processes of one run measured, put together: the most memory that any took, and the slowest's time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from pydantic import TypeAdapter
from torch import nn

from harness.engine.memory import host_peak_bytes
from harness.engine.ranks import Ranks
from harness.record_training import Phase, ProbeResult, RankFigures, StepCurve, TrackedPeak, TrainResult
from harness.tensors.optimizer_state import storage_bytes
from harness.tensors.quantized import weight_tensors

T = TypeVar("T", int, float)

OF_A_STEP = ("seconds", "optimizer_seconds", "optimizer_state_bytes", "optimizer_state_host_bytes")
"""What of a curve each process measures for itself, beside the allocator's peaks; the rest is equal in all."""
OF_A_RUN = (
    "step_seconds_mean",
    "step_seconds_median",
    "optimizer_seconds_mean",
    "refresh_seconds",
    "peak_optimizer_state_bytes",
    "offloaded_checkpoint_bytes",
)
OF_A_PHASE = (
    "seconds",
    "allocated_peak_bytes",
    "reserved_peak_bytes",
    "allocator_retries",
    "device_peak_bytes",
    "host_peak_bytes",
)

_PHASES = TypeAdapter(tuple[Phase, ...])


def trained_together(ranks: Ranks, result: TrainResult, model: nn.Module) -> TrainResult:
    """Return what training did and cost on all processes of a run, each of which has to ask.

    Args:
        ranks: The processes.
        result: Of this one.
        model: As it was trained.
    """
    if not ranks.several:
        return result
    own = result.model_copy(update={"ranks": (_figures(ranks.rank, result, model),)})
    every = [TrainResult.model_validate_json(words) for words in ranks.exchange(own.model_dump_json())]
    probes = [one.probe for one in every if one.probe is not None]
    changes = {
        "ranks": tuple(figures for one in every for figures in one.ranks or ()),
        "curve": curve_together([one.curve for one in every]),
        "tracked_peak": _largest_peak([one.tracked_peak for one in every]),
        "probe": None if not probes else _probe(probes),
    }
    return result.model_copy(update=changes | {name: _most(getattr(one, name) for one in every) for name in OF_A_RUN})


def phases_together(ranks: Ranks, phases: Sequence[Phase]) -> list[Phase]:
    """Return the phases of a run's first process, each with the most that any took in it; every process has to ask."""
    if not ranks.several:
        return list(phases)
    every = [_PHASES.validate_json(words) for words in ranks.exchange(_PHASES.dump_json(tuple(phases)).decode())]
    found = []
    for phase in every[0]:
        alike = [one for others in every for one in others if one.name == phase.name]
        found.append(phase.model_copy(update={name: _most(getattr(one, name) for one in alike) for name in OF_A_PHASE}))
    return found


def _probe(probes: Sequence[ProbeResult]) -> ProbeResult:
    peak, seconds = _largest_peak([one.tracked_peak for one in probes]), max(one.seconds for one in probes)
    return probes[0].model_copy(update={"tracked_peak": peak, "seconds": seconds})


def _largest_peak(peaks: Sequence[TrackedPeak | None]) -> TrackedPeak | None:
    known = [peak for peak in peaks if peak is not None]
    return max(known, key=lambda peak: peak.at_peak.total_bytes, default=None)


def _figures(rank: int, result: TrainResult, model: nn.Module) -> RankFigures:
    curve, own = result.curve, result.other_ranks_before_step
    return RankFigures(
        rank=rank,
        weights_bytes=storage_bytes(weight_tensors(model)),
        peak_optimizer_state_bytes=result.peak_optimizer_state_bytes,
        peak_optimizer_state_host_bytes=max(curve.optimizer_state_host_bytes[own:], default=0),
        tracked_peak=result.tracked_peak,
        allocated_peak_bytes=max(curve.allocated_peak_bytes[own:], default=None),
        reserved_peak_bytes=max(curve.reserved_peak_bytes[own:], default=None),
        host_peak_bytes=host_peak_bytes(),
    )


def curve_together(curves: Sequence[StepCurve]) -> StepCurve:
    """Return the curve of a run from those of its processes: of each step the most that any took."""
    first = curves[0]
    changes = {name: _largest([getattr(one, name) for one in curves]) for name in OF_A_STEP}
    if first.allocated_peak_bytes:
        peaks = [zip(one.allocated_peak_bytes, one.peak_moments, strict=True) for one in curves]
        most = [max(of_step, key=lambda peak: peak[0]) for of_step in zip(*peaks, strict=True)]
        changes |= {
            "allocated_peak_bytes": tuple(size for size, _ in most),
            "reserved_peak_bytes": _largest([one.reserved_peak_bytes for one in curves]),
            "peak_moments": tuple(moment for _, moment in most),
        }
    return first.model_copy(update=changes)


def _largest(columns: Sequence[Sequence[T]]) -> tuple[T, ...]:
    return tuple(max(values) for values in zip(*columns, strict=True))


def _most(values: Iterable[T | None]) -> T | None:
    return max((value for value in values if value is not None), default=None)
