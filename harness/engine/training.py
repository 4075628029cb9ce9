"""The training loop: one for every method, short, because it is what is being measured.

Loss is the cross-entropy summed over the trained tokens of all micro-batches of an optimizer step, divided by their
number: k micro-batches equal one batch, whatever the lengths of the answers. The number is known before the first
forward pass, so nothing is rescaled afterwards. Logits are cast to fp32 before the cross-entropy, as in transformers.

With ``update_in_backward`` the optimizer steps each parameter in a post-accumulate hook of the last micro-batch and its
gradient is freed at once; the hooks are registered on every parameter of the optimizer while it briefly requires grad,
because a hook cannot be registered on a frozen one but survives freezing.

With ``two_pass_clipping`` the step is made twice from the same random stream: the first pass only measures, its hooks
note each complete gradient's norm and free it; the second scales each gradient and updates.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from harness.engine.activation_checkpointing import CheckpointOffload
from harness.engine.data import MicroBatch
from harness.engine.loss import loss_function
from harness.engine.optimizer_clock import OptimizerClock
from harness.engine.padding import needs_padding_mask
from harness.engine.peak_laps import PeakLaps
from harness.engine.step_memory import StepMemory
from harness.method import Method, RunContext, StepOptimizer
from harness.record import BlockActivity, StepCurve, TrainResult
from harness.tensors import seeding
from harness.tensors.decoder import active_blocks, active_others
from harness.tensors.optimizer_state import on_every_parameter, optimizer_state_bytes

WARMUP_STEPS = 3
"""Steps left out of the step time."""
SCHEDULER_STATE = ("base_lrs", "last_epoch", "_step_count", "_last_lr")
"""What of a scheduler's state moves; the rest is made anew from the settings."""


class Diverged(Exception):
    """The loss is not finite; the message says at which step."""


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[MicroBatch], context: RunContext) -> tuple[float, int]:
    """Return the mean cross-entropy over the trained tokens of fixed batches, in nats, and the number of tokens."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    summed, masked = loss_function(model, context), needs_padding_mask(model)
    total = sum(context.read_scalar(summed(model, batch.to(device, masked=masked))) for batch in batches)
    model.train(was_training)
    tokens = sum(batch.num_trained_tokens for batch in batches)
    return total / tokens, tokens


@dataclass
class _Curve:
    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
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


class TrainingLoop:
    """Runs optimizer steps and observes, independently of the method, what was trainable and what it cost."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optimizer: StepOptimizer,
        context: RunContext,
        laps: PeakLaps | None = None,
    ) -> None:
        """Take what is trained; ``laps`` are those of the phase around :meth:`run`, None without CUDA."""
        from transformers import get_scheduler

        self.model = model
        self.method = method
        self.optimizer = optimizer
        self.context = context
        self.device = next(model.parameters()).device
        self._masked = needs_padding_mask(model)
        self.scheduler = get_scheduler(
            context.train.lr_scheduler,
            optimizer,
            num_warmup_steps=context.train.warmup_steps,
            num_training_steps=context.num_steps,
        )
        self.step = 0
        self._curve = _Curve()
        self._activity: list[BlockActivity] = []
        self._ever_blocks: set[int] = set()
        self._ever_others: set[str] = set()
        self._ever_params: dict[str, int] = {}
        self._parameters = list(model.named_parameters())
        self._trainable: list[bool] = []
        self._data_seconds = 0.0
        self._checkpoint_seconds: float | None = None
        self._resumed_at: list[int] = []
        self._validation: list[tuple[int, float]] = []
        self._on_gradient: Callable[[torch.Tensor], None] | None = None
        self._summed_loss = loss_function(model, context)
        self._optimizer_clock = OptimizerClock(self.device)
        keeps = context.train.gradient_checkpointing and context.train.offload_checkpoints
        self._offload = CheckpointOffload(context.decoder.blocks) if keeps else None
        self.memory = StepMemory(model, optimizer, tracked_steps=WARMUP_STEPS, laps=laps)
        self._hooks = self._register_hooks() if method.config.update_in_backward else []

    def run(
        self,
        batches: Iterator[list[MicroBatch]],
        on_step: Callable[[int, float], None],
        save: Callable[[], None] | None = None,
        save_every: int | None = None,
        validate: Callable[[], float] | None = None,
    ) -> None:
        """Train to the run's last step.

        Args:
            batches: The micro-batches of each step, from the present step on.
            on_step: Called after each step with the number of steps done and the loss.
            save: Writes a checkpoint; called every ``save_every`` steps, but not after the last.
            save_every: Optimizer steps between checkpoints.
            validate: Returns the held-out loss; called every ``validation_every_steps`` steps, but not after the last,
                and before a checkpoint of the same step.

        Raises:
            Diverged: the loss is NaN or infinite; raised before the update where updates are not made in backward,
                and with ``two_pass_clipping``.
        """
        self.model.train()
        gc.collect()
        while self.step < self.context.num_steps:
            start = time.perf_counter()
            micro_batches = [self.placed(batch) for batch in next(batches)]
            self._synchronize()
            begin = time.perf_counter()
            self._data_seconds += begin - start
            with self.memory.step(self.step, (tensor for batch in micro_batches for tensor in batch.tensors)):
                loss, grad_norm, rate = self.train_step(micro_batches)
                self._synchronize()
            self._observe(micro_batches, loss, grad_norm, rate, time.perf_counter() - begin)
            self.step += 1
            on_step(self.step, loss)
            if validate is not None and self._is_due(self.context.train.validation_every_steps):
                self.note_validation(validate())
            if save is not None and self._is_due(save_every):
                start = time.perf_counter()
                save()
                self._checkpoint_seconds = (self._checkpoint_seconds or 0.0) + time.perf_counter() - start
        for hook in self._hooks:
            hook.remove()

    def placed(self, batch: MicroBatch) -> MicroBatch:
        """Return a batch on the device of the model, with its mask only where the model needs one."""
        return batch.to(self.device, masked=self._masked)

    def train_step(self, micro_batches: Sequence[MicroBatch]) -> tuple[float, float | None, float]:
        """Make one optimizer step; return its loss, the gradient norm where it was taken, and the learning rate."""
        step, context = self.step, self.context
        self.memory.moment("resample")
        self.method.on_step_begin(step, self.optimizer)
        self._note_active(step)
        rate = float(self.optimizer.param_groups[0]["lr"])
        num_trained = sum(batch.num_trained_tokens for batch in micro_batches)
        grad_norm = None
        if self._hooks and self.method.config.two_pass_clipping:
            value, grad_norm = self._two_passes(micro_batches, num_trained)
        else:
            value = self._pass(micro_batches, num_trained, self._update)
        if not self._hooks:
            if context.train.max_grad_norm is not None:
                self.memory.moment("clip")
                grad_norm = self._clip(context.train.max_grad_norm)
            self.memory.moment("optimizer")
            with self._optimizer_clock.running():
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        return value, grad_norm, rate

    def note_validation(self, loss: float) -> None:
        """Keep the held-out loss at the present step."""
        self._validation.append((self.step, loss))

    def result(self) -> TrainResult:
        """Return what the steps so far did and cost."""
        curve = self._curve
        timed, updates = curve.seconds[WARMUP_STEPS:], curve.optimizer_seconds[WARMUP_STEPS:]
        cycle = self.method.cycle_steps()
        return TrainResult(
            num_steps=self.step,
            checkpoint_seconds=self._checkpoint_seconds,
            resumed_at_steps=tuple(self._resumed_at),
            curve=StepCurve(**{name: tuple(values) for name, values in vars(curve).items()}),
            block_activity=tuple(self._activity),
            num_blocks=len(self.context.decoder.blocks),
            step_seconds_mean=statistics.fmean(timed) if timed else None,
            step_seconds_median=statistics.median(timed) if timed else None,
            optimizer_seconds_mean=statistics.fmean(updates) if updates else None,
            num_timed_steps=len(timed),
            covers_refresh_cycle=None if cycle is None else len(timed) >= cycle,
            refresh_seconds=getattr(self.optimizer, "refresh_seconds", None),
            data_seconds=self._data_seconds,
            trainable_params_mean=statistics.fmean(curve.trainable_params) if curve.trainable_params else 0.0,
            trainable_params_ever=sum(self._ever_params.values()),
            total_params=sum(p.numel() for p in self.model.parameters()),
            peak_optimizer_state_bytes=max(curve.optimizer_state_bytes, default=0),
            tracked_peak=self.memory.tracked_peak,
            offloaded_checkpoint_bytes=self._offload.peak_bytes if self._offload else None,
            validation_steps=tuple(step for step, _ in self._validation),
            validation_losses=tuple(loss for _, loss in self._validation),
        )

    @property
    def ever_trainable_blocks(self) -> tuple[int, ...]:
        """Return the blocks that required grad at some step."""
        return tuple(sorted(self._ever_blocks))

    @property
    def ever_trainable_others(self) -> tuple[str, ...]:
        """Return which of embedding, final_norm and head required grad at some step."""
        return tuple(sorted(self._ever_others))

    def state_dict(self) -> dict[str, Any]:
        """Return the loop's own state, JSON only: step, schedule, and what was observed so far."""
        return {
            "step": self.step,
            "scheduler": {k: v for k, v in self.scheduler.state_dict().items() if k in SCHEDULER_STATE},
            "curve": vars(self._curve),
            "activity": [entry.model_dump(mode="json") for entry in self._activity],
            "ever_blocks": sorted(self._ever_blocks),
            "ever_others": sorted(self._ever_others),
            "ever_params": self._ever_params,
            "data_seconds": self._data_seconds,
            "checkpoint_seconds": self._checkpoint_seconds,
            "resumed_at": self._resumed_at,
            "validation": self._validation,
            "memory": self.memory.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; the run counts as resumed at that step."""
        self.step = state["step"]
        functions = [None] * len(self.scheduler.base_lrs)  # the schedule's own are made anew
        self.scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": functions})
        self._curve = _Curve(**state["curve"])
        self._activity = [BlockActivity.model_validate(entry) for entry in state["activity"]]
        self._ever_blocks, self._ever_others = set(state["ever_blocks"]), set(state["ever_others"])
        self._ever_params = dict(state["ever_params"])
        self._data_seconds, self._checkpoint_seconds = state["data_seconds"], state["checkpoint_seconds"]
        self._resumed_at = [*state["resumed_at"], self.step]
        self._validation = [(step, loss) for step, loss in state["validation"]]
        self.memory.load_state_dict(state["memory"])

    def _is_due(self, every: int | None) -> bool:
        """Return whether something is to be done after the present step that is never done after the last."""
        return every is not None and self.step % every == 0 and self.step < self.context.num_steps

    def _pass(
        self, micro_batches: Sequence[MicroBatch], num_trained: int, on_gradient: Callable[[torch.Tensor], None]
    ) -> float:
        """Go forward and backward over the step's micro-batches from its random stream; return the finite loss."""
        with seeding.seeded_globally(self.context.seed, f"forward/{self.step}"):
            loss = self._backward(micro_batches, num_trained, on_gradient)
        value = self.context.read_scalar(loss)
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value} at step {self.step}")
        return value

    def _two_passes(self, micro_batches: Sequence[MicroBatch], num_trained: int) -> tuple[float, float]:
        """Measure the global norm in a first pass, update with clipped gradients in a second; return loss and norm."""
        max_norm = self.context.train.max_grad_norm
        assert max_norm is not None
        norms: dict[torch.Tensor, torch.Tensor] = {}

        def measure(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            norms[parameter] = torch.linalg.vector_norm(parameter.grad)

        value = self._pass(micro_batches, num_trained, measure)
        self.memory.moment("clip")
        in_order = [norms[p] for group in self.optimizer.param_groups for p in group["params"] if p in norms]
        norm = torch.nn.utils.get_total_norm(in_order, foreach=False)  # each is its own norm
        scale = _clip_scale(norm, max_norm)

        def update(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            parameter.grad.mul_(scale.to(parameter.device))
            self._update(parameter)

        self._pass(micro_batches, num_trained, update)
        return value, self.context.read_scalar(norm)

    def _update(self, parameter: torch.Tensor) -> None:
        with self._optimizer_clock.running():
            self.optimizer.step_parameters([parameter])

    def _backward(
        self,
        micro_batches: Sequence[MicroBatch],
        num_trained: int,
        on_gradient: Callable[[torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Add up gradients and return the loss; where hooks are on, ``on_gradient`` takes each one when complete."""
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        for index, batch in enumerate(micro_batches):
            self._on_gradient = on_gradient if index == len(micro_batches) - 1 else None
            self.memory.moment("forward")
            with self._offload.forward_pass() if self._offload else nullcontext():
                loss = self._summed_loss(self.model, batch) / num_trained
            self.memory.moment("backward")
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self._on_gradient = None
        return total

    def _clip(self, max_norm: float) -> float:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=False)
        scale = _clip_scale(norm, max_norm)
        for gradient in gradients:
            gradient.mul_(scale.to(gradient.device))
        return self.context.read_scalar(norm)

    def _register_hooks(self) -> list[Any]:
        def use_up(parameter: torch.Tensor) -> None:
            if self._on_gradient is not None:
                with self.memory.using_up(parameter):
                    self._on_gradient(parameter)
                parameter.grad = None

        return on_every_parameter(self.optimizer, use_up)

    def _note_active(self, step: int) -> None:
        trainable = [p.requires_grad for _, p in self._parameters]
        if trainable == self._trainable:  # walking the modules at every step would cost more than the rest of the loop
            self._curve.trainable_params.append(self._curve.trainable_params[-1])
            return
        self._trainable = trainable
        blocks = active_blocks(self.context.decoder)
        if not self._activity or self._activity[-1].blocks != blocks:
            self._activity.append(BlockActivity(step=step, blocks=blocks))
        self._ever_blocks.update(blocks)
        self._ever_others.update(active_others(self.context.decoder))
        counts = {name: p.numel() for name, p in self._parameters if p.requires_grad}
        self._ever_params.update(counts)
        self._curve.trainable_params.append(sum(counts.values()))

    def _observe(
        self, batches: Sequence[MicroBatch], loss: float, grad_norm: float | None, rate: float, seconds: float
    ) -> None:
        curve = self._curve
        curve.loss.append(loss)
        curve.learning_rate.append(rate)
        curve.grad_norm.append(grad_norm)
        curve.trained_tokens.append(sum(batch.num_trained_tokens for batch in batches))
        curve.tokens.append(sum(batch.num_tokens for batch in batches))
        curve.truncated_rows.append(sum(batch.num_truncated for batch in batches))
        curve.seconds.append(seconds)
        curve.optimizer_seconds.append(self._optimizer_clock.take())
        on_device, on_host = optimizer_state_bytes(self.optimizer)
        curve.optimizer_state_bytes.append(on_device)
        curve.optimizer_state_host_bytes.append(on_host)
        if (peak := self.memory.step_peak) is not None:
            curve.allocated_peak_bytes.append(peak.peaks.allocated_bytes)
            curve.reserved_peak_bytes.append(peak.peaks.reserved_bytes)
            curve.peak_moments.append(peak.moment)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _clip_scale(norm: torch.Tensor, max_norm: float) -> torch.Tensor:
    """Return the factor that brings gradients of a global norm to at most ``max_norm``: (), as clip_grad_norm_."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)
