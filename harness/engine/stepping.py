"""One optimizer step: short, because it is what is being measured, and what planning runs on fake tensors.

Loss is the cross-entropy summed over the trained tokens of all micro-batches of an optimizer step, divided by their
number: k micro-batches equal one batch, whatever the lengths of the answers. The number is known before the first
forward pass, so nothing is rescaled afterwards. Logits are cast to fp32 before the cross-entropy, as in transformers.

With ``update_in_backward`` the optimizer steps each parameter in a post-accumulate hook of the last micro-batch and its
gradient is freed at once; the hooks are registered on every parameter of the optimizer while it briefly requires grad,
because a hook cannot be registered on a frozen one but survives freezing.

With ``two_pass_clipping`` the step is made twice from the same random streams: the first pass only measures, its hooks
note each complete gradient's norm and free it; the second scales each gradient and updates.

Each micro-batch goes forward and backward from a random stream of its own, named by the step and its number in it, so
that dropout draws the same for it whoever computes it, in whatever order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from harness.data.batches import MicroBatch
from harness.engine.activation_checkpointing import CheckpointOffload
from harness.engine.loss import loss_function
from harness.engine.optimizer_clock import OptimizerClock
from harness.engine.ranks import ALONE, Ranks
from harness.engine.stepwise import refuse_other_optimizers
from harness.method import Method, RunContext, StepOptimizer
from harness.tensors import seeding
from harness.tensors.optimizer_state import on_every_parameter
from harness.tensors.placement import computed_on_cpu
from harness.tensors.sharded import local

SCHEDULER_STATE = ("base_lrs", "last_epoch", "_step_count", "_last_lr")
"""What of a scheduler's state moves; the rest is made anew from the settings."""


OnGradient = Callable[[torch.Tensor], None]
Norms = dict[torch.Tensor, torch.Tensor]
Numbered = Sequence[tuple[int, MicroBatch]]
"""Micro-batches, each with its number in the whole step, from 0."""


class Diverged(Exception):
    """The loss is not finite; the message says at which step."""


class StepWatch(Protocol):
    """Who is told what goes on inside a step, and when: on a real device as in planning."""

    def moment(self, name: str) -> None:
        """Hear what begins: resample, inference, forward, backward, observe, clip or optimizer."""

    def using_up(self, parameter: torch.Tensor) -> AbstractContextManager[None]:
        """Watch the inside of the ``with``: the complete gradient of a parameter is used within the backward pass."""


@dataclass(frozen=True)
class Taken:
    """What one optimizer step says of itself."""

    loss: float
    """Mean over the trained tokens of all its micro-batches, nats."""
    grad_norm: float | None
    """Global norm before clipping; None where it was not taken."""
    learning_rate: float
    """Of the optimizer's first group."""
    group_rates: tuple[float, ...] = ()
    """Of every group, in order, where their rates differ before the schedule; else empty."""


class Stepping:
    """Makes the optimizer steps of a run. Keeps no count of them: who calls it says which step it is."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optimizer: StepOptimizer,
        context: RunContext,
        watch: StepWatch,
        *,
        ranks: Ranks = ALONE,
        scheduler: Any = None,
    ) -> None:
        """Take what is trained, who watches, which processes share the micro-batches of a step out, and the schedule.

        A schedule of the optimizer's rates that there is already is taken as it is; else it is that of the settings.

        Raises:
            HarnessError: the optimizer is not what the contract asks for.
        """
        from transformers import get_scheduler

        refuse_other_optimizers(method, optimizer)
        self.model = model
        self.method = method
        self.optimizer = optimizer
        self.context = context
        self.device = next(model.parameters()).device
        self.clock = OptimizerClock(self.device)
        """Of the updates."""
        self._watch = watch
        self._ranks = ranks
        self._scheduler = scheduler or get_scheduler(
            context.train.lr_scheduler,
            optimizer,
            num_warmup_steps=context.train.warmup_steps,
            num_training_steps=context.num_steps,
        )
        self._on_gradient: OnGradient | None = None
        self._summed_loss = loss_function(model, context)
        keeps = context.train.gradient_checkpointing and context.train.offload_checkpoints
        self._offload = CheckpointOffload(context.decoder.blocks) if keeps else None
        self._hooks = self._register_hooks() if method.config.update_in_backward else []

    @property
    def offloaded_bytes(self) -> int | None:
        """Return the most that inputs of checkpointed blocks took on the host; None where they stay on the device."""
        return None if self._offload is None else self._offload.peak_bytes

    def begin_step(self, step: int) -> None:
        """Let optimizer and method begin an optimizer step: blocks are drawn, states move, nothing is computed yet."""
        self._watch.moment("resample")
        self.optimizer.begin_step(step)
        self.method.on_step_begin(step, self.optimizer)

    def take_step(self, step: int, micro_batches: Sequence[MicroBatch]) -> Taken:
        """Make the optimizer step that was begun, with the blocks that are active.

        Args:
            step: Its number.
            micro_batches: All of the step, of which this process takes its share; only that has to be on the device.

        Raises:
            Diverged: the loss is NaN or infinite; raised before the update where updates are not made in backward,
                and with ``two_pass_clipping``.
        """
        rates = tuple(float(group["lr"]) for group in self.optimizer.param_groups)
        differ = len({group["initial_lr"] for group in self.optimizer.param_groups}) > 1
        numbered = self._ranks.share(micro_batches)
        num_trained = sum(batch.num_trained_tokens for batch in micro_batches)
        grad_norm = None
        norms: Norms | None = {} if self.method.observes_gradients else None
        if self._hooks and self.method.config.two_pass_clipping:
            loss, grad_norm = self._two_passes(step, numbered, num_trained, norms)
        else:
            loss = self._pass(step, numbered, num_trained, _noting(norms, self._update))
        if norms is not None:
            if not self._hooks:
                self._watch.moment("observe")
                norms |= {p: squared_norm(p.grad) for p in self._parameters() if p.grad is not None}
            self.method.on_gradients(step, self._over_ranks(norms))
        if not self._hooks:
            max_norm = self.context.train.max_grad_norm
            if max_norm is not None:
                self._watch.moment("clip")
                grad_norm = self._clip(max_norm)
            self._watch.moment("optimizer")
            with self.clock.running():
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._scheduler.step()
        return Taken(loss, grad_norm, rates[0], rates if differ else ())

    @contextmanager
    def probing(self, watch: StepWatch) -> Iterator[None]:
        """Let every parameter of the optimizer require gradients inside the ``with``, under another watch."""
        parameters, watch_before = self._parameters(), self._watch
        trainable = [p.requires_grad for p in parameters]
        for p in parameters:
            p.requires_grad_(True)
        self._watch = watch
        hooks = [] if self._hooks else self._register_hooks()
        try:
            yield
        finally:
            self._watch = watch_before
            for hook in hooks:
                hook.remove()
            for p, before in zip(parameters, trainable, strict=True):
                p.grad = None
                p.requires_grad_(before)

    def probe(self, index: int, micro_batches: Sequence[MicroBatch]) -> None:
        """Go forward and backward once and show the method the gradients, each freed as it completes; no update.

        Raises:
            Diverged: the loss is NaN or infinite.
        """
        norms: Norms = {}
        num_trained = sum(batch.num_trained_tokens for batch in micro_batches)
        numbered = self._ranks.share(micro_batches)
        if len(micro_batches) < self._ranks.size:  # one by itself, which every process takes
            numbered, num_trained = list(enumerate(micro_batches)), num_trained * self._ranks.size
        loss = self._backward(f"probe/{index}", numbered, num_trained, _noting(norms, lambda parameter: None))
        value = self.context.read_scalar(loss)
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value} in pass {index} of the probe")
        self.method.on_probe(index, self._over_ranks(norms))

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self._hooks:
            hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the schedule, JSON only."""
        return {key: value for key, value in self._scheduler.state_dict().items() if key in SCHEDULER_STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        functions = [None] * len(self._scheduler.base_lrs)  # the schedule's own are made anew
        self._scheduler.load_state_dict({**state, "lr_lambdas": functions})

    def _pass(self, step: int, micro_batches: Numbered, num_trained: int, on_gradient: OnGradient) -> float:
        """Go forward and backward over the step's micro-batches from their random streams; return the finite loss."""
        loss = self._backward(f"forward/{step}", micro_batches, num_trained, on_gradient)
        value = self.context.read_scalar(loss)
        if not math.isfinite(value):
            raise Diverged(f"the loss is {value} at step {step}")
        return value

    def _two_passes(
        self, step: int, micro_batches: Numbered, num_trained: int, observed: Norms | None
    ) -> tuple[float, float]:
        """Measure the global norm in a first pass, update with clipped gradients in a second; return loss and norm."""
        max_norm = self.context.train.max_grad_norm
        assert max_norm is not None
        norms: Norms = {}

        def measure(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            norms[parameter] = _norm(parameter.grad)

        value = self._pass(step, micro_batches, num_trained, _noting(observed, measure))
        self._watch.moment("clip")
        norm = self._total_norm([norms[p] for p in self._parameters() if p in norms])
        scale = _clip_scale(norm, max_norm)

        def update(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            local(parameter.grad).mul_(scale.to(parameter.device))
            self._update(parameter)

        self._pass(step, micro_batches, num_trained, update)
        return value, self.context.read_scalar(norm)

    def _update(self, parameter: torch.Tensor) -> None:
        with self.clock.running():
            self.optimizer.step_parameters([parameter])

    def _backward(
        self, stream: str, micro_batches: Numbered, num_trained: int, on_gradient: OnGradient | None = None
    ) -> torch.Tensor:
        """Add up gradients and return the loss; where hooks are on, ``on_gradient`` takes each one when complete.

        Micro-batch 0 draws from ``stream``, micro-batch i from ``stream/i``.
        """
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        losses: list[torch.Tensor] = []
        for index, (number, batch) in enumerate(micro_batches):
            self._on_gradient = on_gradient if index == len(micro_batches) - 1 else None
            with seeding.seeded_globally(self.context.seed, f"{stream}/{number}" if number else stream):
                self._watch.moment("forward")
                with self._offload.forward_pass() if self._offload else nullcontext():
                    loss = self._summed_loss(self.model, batch) / num_trained
                self._watch.moment("backward")
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            if not self._ranks.several:
                total += losses.pop()
        self._on_gradient = None
        if self._ranks.several:
            for loss in self._ranks.dealt(torch.stack(losses)):
                total += loss
        return total

    def _clip(self, max_norm: float) -> float:
        gradients = [local(p.grad) for p in self._parameters() if p.grad is not None]
        norm = self._total_norm([_norm(gradient) for gradient in gradients])
        scale = _clip_scale(norm, max_norm)
        if computed_on_cpu(scale) and self.context.read_scalar(scale) == 1.0:
            return self.context.read_scalar(norm)  # a pass over every gradient would change none
        for gradient in gradients:
            gradient.mul_(scale.to(gradient.device))
        return self.context.read_scalar(norm)

    def _total_norm(self, norms: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the global norm of gradients, given those of what this process holds of each: (), fp32."""
        if norms and self._ranks.several:
            norms = list(self._ranks.sum(torch.stack(list(norms)).square()).sqrt())
        return torch.nn.utils.get_total_norm(norms, foreach=False)  # a number's norm is itself

    def _over_ranks(self, squares: Norms) -> Norms:
        """Return the squared norms of whole gradients, given those of what this process holds of each."""
        if not squares or not self._ranks.several:
            return squares
        in_order = [p for p in self._parameters() if p in squares]  # hooks may come in another order
        return dict(zip(in_order, self._ranks.sum(torch.stack([squares[p] for p in in_order])), strict=True))

    def _parameters(self) -> list[torch.Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _register_hooks(self) -> list[Any]:
        def use_up(parameter: torch.Tensor) -> None:
            if self._on_gradient is not None:
                with self._watch.using_up(parameter):
                    self._on_gradient(parameter)
                parameter.grad = None

        return on_every_parameter(self.optimizer, use_up)


def squared_norm(gradient: torch.Tensor) -> torch.Tensor:
    """Return the squared l2 norm of what this process holds of a gradient, any float dtype: (), fp32, on its device."""
    return _norm(gradient).square()


def _norm(gradient: torch.Tensor) -> torch.Tensor:
    """Return the l2 norm of what this process holds of a gradient, fp32 or narrower: (), fp32, on its device."""
    norm: torch.Tensor = torch.linalg.vector_norm(local(gradient), dtype=torch.float32)
    return norm


def _noting(norms: Norms | None, then: OnGradient) -> OnGradient:
    """Return what notes the norm of a gradient before it is used; where none is asked for, ``then`` itself."""
    if norms is None:
        return then

    def both(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        norms[parameter] = squared_norm(parameter.grad)
        then(parameter)

    return both


def _clip_scale(norm: torch.Tensor, max_norm: float) -> torch.Tensor:
    """Return the factor that brings gradients of a global norm to at most ``max_norm``: (), as clip_grad_norm_."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)
