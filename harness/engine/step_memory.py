"""Memory inside the optimizer step: what was alive at the peak, and in which moment the peak came.

The first steps of a run, which the step time leaves out anyway, are followed by a tracker of live storages. On CUDA the
allocator's own peaks are read at the end of every moment of every step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import nn

from harness.engine.peak_laps import PeakLaps, Peaks
from harness.method import StepOptimizer
from harness.record_training import MemoryBreakdown, OutOfMemoryAt, TrackedPeak
from harness.tensors.optimizer_state import on_every_parameter, storage_bytes
from harness.tensors.out_of_memory import is_out_of_memory
from harness.tensors.quantized import weight_tensors
from harness.tensors.storage_tracker import Category, Peak, StorageTracker

FIRST_MOMENT = "resample"


@dataclass(frozen=True)
class StepPeak:
    """The allocator's peaks over one step."""

    peaks: Peaks
    moment: str
    """In which the allocated peak came; the first of several that are equal."""


class StepMemory:
    """Watches the steps of one training loop."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: StepOptimizer,
        tracked_steps: int,
        laps: PeakLaps | None = None,
        *,
        phase: str = "train",
    ) -> None:
        """Take what is trained.

        Args:
            model: As it is trained, adapters included.
            optimizer: Over its parameters.
            tracked_steps: How many of the run's first steps are followed by the tracker.
            laps: Of the phase around the steps; None without CUDA.
            phase: Its name.
        """
        self._phase = phase
        self._model = model
        self._optimizer = optimizer
        self._tracked_steps = tracked_steps
        self._laps = laps
        self._device_type = optimizer.param_groups[0]["params"][0].device.type
        self._moment = FIRST_MOMENT
        self._tracker: StorageTracker | None = None
        self._peaks: list[StepPeak] = []
        self.step_peak: StepPeak | None = None
        """The allocator's peaks over the last step; None without CUDA."""
        self.out_of_memory: OutOfMemoryAt | None = None
        """Where memory ran out, once it has."""
        self.tracked_peak: TrackedPeak | None = None
        """The largest peak of the tracked steps, or None when none was tracked."""

    @contextmanager
    def step(self, step: int, inputs: Iterable[torch.Tensor] = ()) -> Iterator[None]:
        """Watch one optimizer step; ``inputs`` are the micro-batches that wait for it on the device."""
        if self._laps is not None:
            self._laps.lap()  # what came between the steps is no step's, but the phase keeps it
        self._moment, self._peaks = FIRST_MOMENT, []
        try:
            if step < self._tracked_steps:
                with self._tracked(step, inputs):
                    yield
            else:
                yield
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error) and self.out_of_memory is None:
                self.out_of_memory = self._what_is_alive(step)
            raise
        if self._laps is not None:
            self._end_moment()
            self.step_peak = largest_of(self._peaks)

    def moment(self, name: str) -> None:
        """Say what begins: resample, inference, forward, backward, observe, clip or optimizer."""
        if self._laps is not None:
            self._end_moment()
        self._moment = name
        if self._tracker is not None:
            self._tracker.moment = name

    def note_gradient(self, parameter: torch.Tensor) -> None:
        """Say that the gradient of a parameter is complete."""
        if self._tracker is not None and parameter.grad is not None:
            self._tracker.classify([parameter.grad], "gradients")

    @contextmanager
    def using_up(self, parameter: torch.Tensor) -> Iterator[None]:
        """Watch the update of one parameter inside the backward pass.

        The tracker counts it as the optimizer's; reading the allocator around each would cost too much.
        """
        with using_up(self._tracker, parameter):
            yield

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen, JSON only."""
        return {"tracked_peak": None if self.tracked_peak is None else self.tracked_peak.model_dump(mode="json")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        peak = state["tracked_peak"]
        self.tracked_peak = None if peak is None else TrackedPeak.model_validate(peak)

    def _end_moment(self) -> None:
        assert self._laps is not None
        self._peaks.append(StepPeak(self._laps.lap(), self._moment))

    @contextmanager
    def _tracked(self, step: int, inputs: Iterable[torch.Tensor]) -> Iterator[None]:
        self._tracker = tracker = StorageTracker(self._device_type)
        adopt_training(tracker, self._model, self._optimizer)
        tracker.adopt(inputs, "other")
        hooks = on_every_parameter(self._optimizer, self.note_gradient)
        try:
            with tracker:
                yield
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                self.out_of_memory = self._what_is_alive(step)
            raise
        finally:
            for hook in hooks:
                hook.remove()
            self._tracker = None
        tracker.classify(self._optimizer.device_tensors(), "optimizer_state")
        self._note_peak(step, tracker.take().peak)

    def _what_is_alive(self, step: int) -> OutOfMemoryAt:
        """Return what is on the device while the error's traceback still holds the tensors of the step.

        Only sizes are read and added on the host: nothing is allocated on the device.
        """
        weights = storage_bytes(weight_tensors(self._model))
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        states = self._optimizer.device_tensors()
        known = weights, storage_bytes(gradients), storage_bytes(states)
        tracked = None
        if self._tracker is not None:
            self._tracker.classify(gradients, "gradients")
            self._tracker.classify(states, "optimizer_state")
            tracked = breakdown(self._tracker.alive())
        rest: int | None
        if self._laps is not None:
            rest = max(0, self._laps.counters.allocated_bytes() - sum(known))
        else:
            rest = None if tracked is None else tracked.activations_bytes + tracked.other_bytes
        return OutOfMemoryAt(
            phase=self._phase,
            step=step,
            moment=self._moment,
            weights_bytes=known[0],
            gradients_bytes=known[1],
            optimizer_state_bytes=known[2],
            rest_bytes=rest,
            tracked=tracked,
        )

    def _note_peak(self, step: int, peak: Peak) -> None:
        before = self.tracked_peak
        steps = (*(before.steps if before else ()), step)
        if before is not None and before.at_peak.total_bytes >= peak.num_bytes:
            self.tracked_peak = before.model_copy(update={"steps": steps})
            return
        self.tracked_peak = TrackedPeak(steps=steps, step=step, moment=peak.moment, at_peak=breakdown(peak.by_category))


def largest_of(moments: Sequence[StepPeak]) -> StepPeak:
    """Return the peaks of a step from those of its moments."""
    top = max(moments, key=lambda moment: moment.peaks.allocated_bytes)
    return StepPeak(reduce(Peaks.largest, (moment.peaks for moment in moments)), top.moment)


@contextmanager
def using_up(tracker: StorageTracker | None, parameter: torch.Tensor) -> Iterator[None]:
    """Tell a tracker that a gradient is complete, and that what follows is the optimizer's, not the backward pass's."""
    if tracker is None:
        yield
        return
    if parameter.grad is not None:
        tracker.classify([parameter.grad], "gradients")
    before, tracker.moment = tracker.moment, "optimizer"
    try:
        yield
    finally:
        tracker.moment = before


def breakdown(by_category: dict[Category, int]) -> MemoryBreakdown:
    """Return the tracker's totals as a record holds them."""
    return MemoryBreakdown(**{f"{category}_bytes": size for category, size in by_category.items()})


def adopt_training(tracker: StorageTracker, model: nn.Module, optimizer: StepOptimizer) -> None:
    """Tell a tracker what exists before a step: weights, gradients, and the optimizer's state."""
    tracker.adopt(weight_tensors(model), "weights")
    tracker.adopt((p.grad for p in model.parameters() if p.grad is not None), "gradients")
    tracker.adopt(optimizer.device_tensors(), "optimizer_state")
