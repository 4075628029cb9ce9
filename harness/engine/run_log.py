"""What is observed of a run's steps, independently of the method: the curve, what was trainable, and what it cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from harness.data.batches import MicroBatch, RowCounts
from harness.engine.step_memory import StepPeak
from harness.engine.stepping import Taken
from harness.method import Decoder, StepOptimizer
from harness.record_training import (
    NO_NUMBERS,
    BlockActivity,
    ProbeResult,
    QuantizedWeights,
    StepCurve,
    TrackedPeak,
    TrainResult,
)
from harness.tensors.decoder import active_blocks, active_others
from harness.tensors.quantized import held_packed, parameter_sizes

WARMUP_STEPS = 3
"""Steps left out of the step time."""


@dataclass
class _Curve:
    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    group_learning_rates: list[tuple[float, ...]] = field(default_factory=list)
    grad_norm: list[float | None] = field(default_factory=list)
    trained_tokens: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    truncated_rows: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    optimizer_seconds: list[float] = field(default_factory=list)
    trainable_params: list[int] = field(default_factory=list)
    optimizer_state_bytes: list[int] = field(default_factory=list)
    optimizer_state_host_bytes: list[int] = field(default_factory=list)
    allocated_peak_bytes: list[int] = field(default_factory=list)
    reserved_peak_bytes: list[int] = field(default_factory=list)
    peak_moments: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class StepCost:
    """What one optimizer step took."""

    seconds: float
    """Synchronised wall-clock time, data loading left out."""
    optimizer_seconds: float
    """Of these, those of the updates."""
    peak: StepPeak | None
    """The allocator's peaks; None without CUDA."""


class RunLog:
    """Keeps what was observed, over interruptions too."""

    def __init__(self, model: nn.Module, optimizer: StepOptimizer, decoder: Decoder) -> None:
        """Take what is trained."""
        self._optimizer = optimizer
        self._decoder = decoder
        self._parameters = list(model.named_parameters())
        packed, held = parameter_sizes(model), held_packed(model)
        self._quantized = None if held is None else QuantizedWeights(**held)
        self._total_params = sum(packed.get(id(p), p.numel()) for _, p in self._parameters)
        self._trainable: list[bool] = []
        self._curve = _Curve()
        self._activity: list[BlockActivity] = []
        self._ever_blocks: set[int] = set()
        self._ever_others: set[str] = set()
        self._ever_params: dict[str, int] = {}
        self._data_seconds = 0.0
        self._checkpoint_seconds: float | None = None
        self._resumed_at: list[int] = []
        self._other_ranks_before = 0
        self._validation: list[tuple[int, float]] = []
        self._probe: ProbeResult | None = None
        self.told = RowCounts()
        """Of the rows trained on."""

    @property
    def activity(self) -> tuple[BlockActivity, ...]:
        """Return which blocks were trainable from which step on."""
        return tuple(self._activity)

    @property
    def ever_trainable_blocks(self) -> tuple[int, ...]:
        """Return the blocks that required grad at some step."""
        return tuple(sorted(self._ever_blocks))

    @property
    def ever_trainable_others(self) -> tuple[str, ...]:
        """Return which of embedding, final_norm and head required grad at some step."""
        return tuple(sorted(self._ever_others))

    def note_active(self, step: int) -> None:
        """Look at what requires grad now that a step has begun."""
        trainable = [p.requires_grad for _, p in self._parameters]
        if trainable == self._trainable:  # walking the modules at every step would cost more than the rest of the loop
            self._curve.trainable_params.append(self._curve.trainable_params[-1])
            return
        self._trainable = trainable
        blocks = active_blocks(self._decoder)
        if not self._activity or self._activity[-1].blocks != blocks:
            self._activity.append(BlockActivity(step=step, blocks=blocks))
        self._ever_blocks.update(blocks)
        self._ever_others.update(active_others(self._decoder))
        counts = {name: p.numel() for name, p in self._parameters if p.requires_grad}
        self._ever_params.update(counts)
        self._curve.trainable_params.append(sum(counts.values()))

    def note_step(self, batches: Sequence[MicroBatch], taken: Taken, cost: StepCost) -> None:
        """Keep what a step that is done says of itself, and what it took."""
        curve = self._curve
        curve.loss.append(taken.loss)
        curve.learning_rate.append(taken.learning_rate)
        curve.group_learning_rates += [taken.group_rates] if taken.group_rates else []
        curve.grad_norm.append(taken.grad_norm)
        curve.trained_tokens.append(sum(batch.num_trained_tokens for batch in batches))
        curve.tokens.append(sum(batch.num_tokens for batch in batches))
        curve.truncated_rows.append(sum(batch.num_truncated for batch in batches))
        self.told = sum((batch.told for batch in batches), self.told)
        curve.seconds.append(cost.seconds)
        curve.optimizer_seconds.append(cost.optimizer_seconds)
        held = self._optimizer.state_bytes()
        curve.optimizer_state_bytes.append(held["device"])
        curve.optimizer_state_host_bytes.append(held["host"])
        if cost.peak is not None:
            curve.allocated_peak_bytes.append(cost.peak.peaks.allocated_bytes)
            curve.reserved_peak_bytes.append(cost.peak.peaks.reserved_bytes)
            curve.peak_moments.append(cost.peak.moment)

    def newest(self) -> dict[str, float | None]:
        """Return what the last step that is done says of itself, one number each, by the names of the curve."""
        columns = {name: values for name, values in vars(self._curve).items() if name not in NO_NUMBERS}
        return {name: values[-1] for name, values in columns.items() if values}

    def note_data(self, seconds: float) -> None:
        """Keep the time that loading the data of a step took."""
        self._data_seconds += seconds

    def note_checkpoint(self, seconds: float) -> None:
        """Keep the time that writing a checkpoint took."""
        self._checkpoint_seconds = (self._checkpoint_seconds or 0.0) + seconds

    def note_validation(self, step: int, loss: float) -> None:
        """Keep the held-out loss after so many steps."""
        self._validation.append((step, loss))

    def note_probe(self, probe: ProbeResult) -> None:
        """Keep what the probe before the first step was."""
        self._probe = probe

    def result(
        self, num_steps: int, cycle_steps: int | None, tracked_peak: TrackedPeak | None, offloaded: int | None
    ) -> TrainResult:
        """Return what the steps so far did and cost.

        Args:
            num_steps: Those that are done.
            cycle_steps: The method's.
            tracked_peak: Of the tracked steps.
            offloaded: The most that inputs of checkpointed blocks took on the host, in bytes.
        """
        curve, own = self._curve, self._other_ranks_before
        timed, updates = curve.seconds[own + WARMUP_STEPS :], curve.optimizer_seconds[own + WARMUP_STEPS :]
        return TrainResult(
            num_steps=num_steps,
            checkpoint_seconds=self._checkpoint_seconds,
            resumed_at_steps=tuple(self._resumed_at),
            other_ranks_before_step=own,
            curve=StepCurve(**{name: tuple(values) for name, values in vars(curve).items()}),
            block_activity=self.activity,
            num_blocks=len(self._decoder.blocks),
            step_seconds_mean=statistics.fmean(timed) if timed else None,
            step_seconds_median=statistics.median(timed) if timed else None,
            optimizer_seconds_mean=statistics.fmean(updates) if updates else None,
            num_timed_steps=len(timed),
            covers_refresh_cycle=None if cycle_steps is None else len(timed) >= cycle_steps,
            refresh_seconds=self._optimizer.refresh_seconds,
            data_seconds=self._data_seconds,
            trainable_params_mean=statistics.fmean(curve.trainable_params) if curve.trainable_params else 0.0,
            trainable_params_ever=sum(self._ever_params.values()),
            total_params=self._total_params,
            quantized=self._quantized,
            peak_optimizer_state_bytes=max(curve.optimizer_state_bytes[own:], default=self._held_now(own)),
            tracked_peak=tracked_peak,
            offloaded_checkpoint_bytes=offloaded,
            probe=self._probe,
            validation_steps=tuple(step for step, _ in self._validation),
            validation_losses=tuple(loss for _, loss in self._validation),
        )

    def _held_now(self, own: int) -> int:
        """Return the bytes of the optimizer's state, where no step was taken since it was restored; 0 at the start."""
        return self._optimizer.state_bytes()["device"] if own else 0

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, JSON only."""
        return {
            "curve": vars(self._curve),
            "activity": [entry.model_dump(mode="json") for entry in self._activity],
            "ever_blocks": sorted(self._ever_blocks),
            "ever_others": sorted(self._ever_others),
            "ever_params": self._ever_params,
            "data_seconds": self._data_seconds,
            "checkpoint_seconds": self._checkpoint_seconds,
            "resumed_at": self._resumed_at,
            "other_ranks_before": self._other_ranks_before,
            "validation": self._validation,
            "told": vars(self.told),
            "probe": None if self._probe is None else self._probe.model_dump(mode="json"),
        }

    def load_state_dict(self, state: dict[str, Any], step: int, *, of_other_ranks: bool = False) -> None:
        """Restore what :meth:`state_dict` returned; the run counts as resumed at ``step``.

        Args:
            state: What was returned.
            step: The present one.
            of_other_ranks: Whether another number of processes observed it.
        """
        self._curve = _Curve(**state["curve"])
        self._activity = [BlockActivity.model_validate(entry) for entry in state["activity"]]
        self._ever_blocks, self._ever_others = set(state["ever_blocks"]), set(state["ever_others"])
        self._ever_params = dict(state["ever_params"])
        self._data_seconds, self._checkpoint_seconds = state["data_seconds"], state["checkpoint_seconds"]
        self._resumed_at = [*state["resumed_at"], step]
        self._other_ranks_before = step if of_other_ranks else state.get("other_ranks_before", 0)
        self._validation = [(at, loss) for at, loss in state["validation"]]
        self.told = RowCounts(**state.get("told", {}))  # a checkpoint of an older version holds none
        self._probe = None if state["probe"] is None else ProbeResult.model_validate(state["probe"])
