"""The training loop: one for every method. It takes the steps of a run in order; what they say is kept by the log."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from harness.data.batches import MicroBatch
from harness.engine.context import EngineContext
from harness.engine.inference import inference_loss
from harness.engine.loss import loss_function
from harness.engine.padding import check_padded_rotation, needs_padding_mask
from harness.engine.peak_laps import PeakLaps
from harness.engine.ranks import ALONE, Ranks
from harness.engine.run_log import WARMUP_STEPS, RunLog, StepCost
from harness.engine.step_memory import StepMemory
from harness.engine.stepping import Stepping, Taken
from harness.method import Method, ProbeRequest, RunContext, StepOptimizer
from harness.record_training import OutOfMemoryAt, ProbeResult, TrainResult
from harness.tensors.rotary import reset_rotation


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[MicroBatch], context: RunContext) -> tuple[float, int]:
    """Return the mean cross-entropy over the trained tokens of fixed batches, in nats, and the number of tokens."""
    was_training = model.training
    model.eval()
    reset_rotation(model)
    device = next(model.parameters()).device
    summed, masked = loss_function(model, context), needs_padding_mask(model)
    total = sum(context.read_scalar(summed(model, batch.to(device, masked=masked))) for batch in batches)
    model.train(was_training)
    tokens = sum(batch.num_trained_tokens for batch in batches)
    return total / tokens, tokens


class TrainingLoop:
    """Takes the optimizer steps of one run."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optimizer: StepOptimizer,
        context: RunContext,
        laps: PeakLaps | None = None,
        *,
        memory: StepMemory | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Take what is trained.

        Args:
            model: As ``prepare`` returned it.
            method: Whose hooks are called.
            optimizer: As ``build_optimizer`` returned it.
            context: Of the run.
            laps: Those of the phase around :meth:`run`, None without CUDA.
            memory: Watches the steps; None: one that tracks the warm-up.
            ranks: The processes that share the micro-batches of a step out.

        Raises:
            Refused: as :func:`check_padded_rotation`.
        """
        self.model = model
        self.method = method
        self.optimizer = optimizer
        self.context = context
        self.device = next(model.parameters()).device
        self.memory = memory or StepMemory(model, optimizer, tracked_steps=WARMUP_STEPS, laps=laps)
        self.ranks = ranks
        self.stepping = Stepping(model, method, optimizer, context, self.memory, ranks=ranks)
        self.log = RunLog(model, optimizer, context.decoder)
        self._laps = laps
        self._probe_memory: StepMemory | None = None
        self.step = 0
        """Optimizer steps done."""
        self._masked = needs_padding_mask(model)
        check_padded_rotation(model, context.train)
        if isinstance(context, EngineContext) and context.stream_rows is not None:
            context.answer_inference = self._inference_loss
            self._stream_rows = context.stream_rows

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
            Diverged: as :meth:`Stepping.take_step`.
        """
        self.model.train()
        reset_rotation(self.model)
        gc.collect()
        while self.step < self.context.num_steps:
            start = time.perf_counter()
            micro_batches = next(batches)
            placed = {number: self.placed(batch) for number, batch in self.ranks.share(micro_batches)}
            micro_batches = [placed.get(number, batch) for number, batch in enumerate(micro_batches)]
            self._synchronize()
            begin = time.perf_counter()
            self.log.note_data(begin - start)
            with self.memory.step(self.step, (tensor for batch in placed.values() for tensor in batch.tensors)):
                taken = self.train_step(micro_batches)
                self._synchronize()
            seconds = time.perf_counter() - begin
            cost = StepCost(seconds, self.stepping.clock.take(), self.memory.step_peak)
            self.log.note_step(micro_batches, taken, cost)
            self.step += 1
            on_step(self.step, taken.loss)
            if validate is not None and self._is_due(self.context.train.validation_every_steps):
                self.note_validation(validate())
            if save is not None and self._is_due(save_every):
                start = time.perf_counter()
                save()
                self.log.note_checkpoint(time.perf_counter() - start)
        self.stepping.close()

    def probe(self, batches: Iterator[list[MicroBatch]], request: ProbeRequest) -> None:
        """Show the method gradients before the first step; weights, optimizer and schedule stay as they are.

        Raises:
            Diverged: as :meth:`Stepping.probe`.
        """
        assert self.step == 0
        self.model.train()
        start, tokens, num_passes = time.perf_counter(), 0, 0
        watch = self._probe_memory = StepMemory(self.model, self.optimizer, 1, self._laps, phase="probe")
        with self.stepping.probing(watch):
            for _, batch in zip(range(request.num_batches), batches, strict=False):
                placed = [self.placed(micro_batch) for micro_batch in batch]
                tokens += sum(micro_batch.num_trained_tokens for micro_batch in placed)
                for one in [[micro_batch] for micro_batch in placed] if request.each_micro_batch else [placed]:
                    with watch.step(num_passes, (tensor for micro_batch in placed for tensor in micro_batch.tensors)):
                        self.stepping.probe(num_passes, one)
                    num_passes += 1
        self._synchronize()
        probe = ProbeResult(
            num_batches=request.num_batches,
            num_passes=num_passes,
            each_micro_batch=request.each_micro_batch,
            consumed_rows=request.consumes_rows,
            trained_tokens=tokens,
            seconds=time.perf_counter() - start,
            tracked_peak=watch.tracked_peak,
        )
        self.log.note_probe(probe)

    @property
    def out_of_memory(self) -> OutOfMemoryAt | None:
        """Return where memory ran out, once it has."""
        watches = (self._probe_memory, self.memory)
        return next((watch.out_of_memory for watch in watches if watch is not None and watch.out_of_memory), None)

    def placed(self, batch: MicroBatch) -> MicroBatch:
        """Return a batch on the device of the model, with its mask only where the model needs one."""
        return batch.to(self.device, masked=self._masked)

    def train_step(self, micro_batches: Sequence[MicroBatch]) -> Taken:
        """Make the present optimizer step, draw and all; the count stays."""
        self.stepping.begin_step(self.step)
        self.log.note_active(self.step)
        return self.stepping.take_step(self.step, micro_batches)

    def note_validation(self, loss: float) -> None:
        """Keep the held-out loss at the present step."""
        self.log.note_validation(self.step, loss)

    def result(self) -> TrainResult:
        """Return what the steps so far did and cost."""
        tracked, offloaded = self.memory.tracked_peak, self.stepping.offloaded_bytes
        return self.log.result(self.step, self.method.cycle_steps(), tracked, offloaded)

    def state_dict(self) -> dict[str, Any]:
        """Return the loop's own state, JSON only: step, schedule, and what was observed so far."""
        return {
            "step": self.step,
            "scheduler": self.stepping.state_dict(),
            "log": self.log.state_dict(),
            "memory": self.memory.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], *, of_other_ranks: bool = False) -> None:
        """Restore what :meth:`state_dict` returned; the run counts as resumed at that step.

        Args:
            state: What was returned.
            of_other_ranks: Whether another number of processes returned it: none of their memory is this one's.
        """
        self.step = state["step"]
        self.stepping.load_state_dict(state["scheduler"])
        self.log.load_state_dict(state["log"], self.step, of_other_ranks=of_other_ranks)
        if not of_other_ranks:
            self.memory.load_state_dict(state["memory"])

    def _inference_loss(self, stream: str, index: int, num_rows: int) -> float:
        batch = self.placed(self._stream_rows(stream, index, num_rows))
        loss = inference_loss(self.model, batch, self.context, self.memory)
        return self.ranks.number_of_first(loss, self.device)

    def _is_due(self, every: int | None) -> bool:
        """Return whether something is to be done after the present step that is never done after the last."""
        return every is not None and self.step % every == 0 and self.step < self.context.num_steps

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
