"""The callback that takes a method through the steps of a Trainer.

What of the engine's step is done where (transformers 5.23.0, trainer.py, ``_run_epoch``)::

    on_train_begin          check; restore or probe; hooks
    on_step_begin           optimizer.begin_step, method.on_step_begin; the random stream of micro-batch 0
      forward, backward     in the last micro-batch's hooks norms are noted, and updates made where they are in backward
    on_substep_end          the random stream of the next micro-batch
      clipping
    on_pre_optimizer_step   method.on_gradients; the global generators go on as if nothing had been drawn
      optimizer.step
    on_optimizer_step       optimizer.zero_grad, which a Trainer does not call: state that is streamed goes to the host
      scheduler.step

Norms are noted in hooks because a Trainer clips before ``on_pre_optimizer_step``. Which micro-batch is the last one the
Trainer tells accelerate before each of them. A checkpoint holds the method's own state in ``trainer_state.json``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import MethodType
from typing import Any

import torch
from accelerate.state import GradientState
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from harness.data.batches import MicroBatch
from harness.engine.inference import inference_loss
from harness.engine.padding import needs_padding_mask
from harness.engine.stepping import Stepping, squared_norm
from harness.errors import Refused
from harness.integrations.trainer_checks import check_arguments, check_same
from harness.integrations.trainer_rows import TrainerRows
from harness.integrations.trainer_run import TrainerRun
from harness.tensors import seeding
from harness.tensors.optimizer_state import on_every_parameter
from harness.tensors.rotary import reset_rotation


class _Unwatched:
    """Nobody is told what goes on inside a step."""

    def moment(self, name: str) -> None:
        pass

    def using_up(self, parameter: torch.Tensor) -> AbstractContextManager[None]:
        return nullcontext()


class MethodCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Takes one prepared method through one training."""

    def __init__(self, run: TrainerRun) -> None:
        """Take what was prepared; from now on its optimizer refuses to step without this callback."""
        self._run = run
        self._begun = False
        self._step = 0
        self._number = 0
        """Of the micro-batch in its step."""
        self._inside = False
        self._stream: AbstractContextManager[None] | None = None
        self._norms: dict[torch.Tensor, torch.Tensor] = {}
        self._hooks: list[Any] = []
        self._gradients = GradientState()
        self._guard_optimizer()

    def on_init_end(
        self, args: Any, state: Any, control: Any, *, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Check what the Trainer was given, as soon as it has it.

        Raises:
            Refused: it does not fit.
        """
        check_arguments(args, self._run.method.config)
        self._run.check_model(model)
        self._run.check_optimizer(optimizer)

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        *,
        model: Any = None,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Check all again, restore what a checkpoint holds, or make the method's own passes before the first step.

        Raises:
            Refused: something does not fit.
        """
        run = self._run
        self.on_init_end(args, state, control, model=model, optimizer=optimizer)
        check_same(args, run.context.train, state.max_steps)
        if self._begun:
            raise Refused(
                "what was prepared was trained already, and its draws would go on from there: prepare it anew"
            )
        self._begun = True
        if state.global_step:
            self._restore(state, lr_scheduler)
        reset_rotation(run.model)
        self._lend_rows(train_dataloader)
        if not state.global_step:
            self._probe(args, lr_scheduler, train_dataloader)
        method = run.method
        if method.config.update_in_backward or method.observes_gradients:
            self._hooks = on_every_parameter(run.optimizer, self._take_gradient)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin an optimizer step: blocks are drawn, and the first micro-batch has its random stream."""
        self._step, self._number, self._norms = state.global_step, 0, {}
        self._run.optimizer.begin_step(self._step)
        self._run.method.on_step_begin(self._step, self._run.optimizer)
        self._enter_stream()
        self._inside = True

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the next micro-batch of the step its own random stream."""
        self._leave_stream()
        self._number += 1
        self._enter_stream()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the method the norms of the step's gradients, as they were before clipping."""
        self._leave_stream()
        self._inside = False
        if self._run.method.observes_gradients:
            self._run.method.on_gradients(self._step, self._norms)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Free the gradients through the optimizer: a step is over."""
        self._run.optimizer.zero_grad(set_to_none=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the hooks off the parameters."""
        self.close()

    def close(self) -> None:
        """Take everything off the model, and give the global generators back."""
        self._leave_stream()
        self._inside = False
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """Return what ``trainer_state.json`` keeps of the method."""
        method = self._run.method
        return {"args": {}, "attributes": {**self._identity(), "method": method.state_dict()}}

    def _identity(self) -> dict[str, Any]:
        run = self._run
        return {"label": run.label, "config": run.method.config.model_dump(mode="json"), "seed": run.context.seed}

    def _restore(self, state: Any, lr_scheduler: Any) -> None:
        run = self._run
        saved = state.stateful_callbacks.get(type(self).__name__)
        if not isinstance(saved, dict):
            raise Refused(
                f"the checkpoint of step {state.global_step} holds nothing of a method: it was written without this "
                "callback, so train from the beginning"
            )
        kept = saved["attributes"]
        for name, value in self._identity().items():
            if kept[name] != value:
                raise Refused(
                    f"the checkpoint of step {state.global_step} was written under {name} = {kept[name]}, and prepare "
                    f"was given {value}: prepare it as it was"
                )
        # A schedule that stands at its beginning was not restored; others than by steps say nothing of that.
        by_steps = isinstance(lr_scheduler, LambdaLR)
        if lr_scheduler.last_epoch == 0 if by_steps else not run.optimizer.state:
            raise Refused(
                f"the checkpoint of step {state.global_step} holds no optimizer state, as under save_only_model = "
                "True: training would go on with moments, draws and schedule at their beginning"
            )
        run.method.load_state_dict(kept["method"])
        run.method.on_resume(run.model, run.optimizer, state.global_step)

    # What a method does beside the steps

    def _lend_rows(self, dataloader: Any) -> None:
        """Let the method take losses of training rows in an order of its own, where it does."""
        run = self._run
        asked = run.method.inference_needed()
        if asked is None:
            return
        rows = TrainerRows(dataloader, run.context.seed)
        rows.refuse_more_at_once(asked.num_rows)
        stream_rows = lru_cache(maxsize=1)(rows.stream_batch)  # a method asks several times for the same rows

        def answer(stream: str, index: int, num_rows: int) -> float:
            batch = self._placed(stream_rows(stream, index, num_rows))
            return inference_loss(run.model, batch, run.context, _Unwatched())

        run.context.answer_inference = answer

    def _probe(self, args: Any, lr_scheduler: Any, dataloader: Any) -> None:
        """Show the method gradients of the rows with which training begins; nothing is updated."""
        run = self._run
        request = run.method.probe_needed()
        if request is None:
            return
        if request.consumes_rows:
            raise Refused(
                "probe_consumes_rows = true trains behind the rows of the probe, and a Trainer begins with the first "
                "row: set it to false"
            )
        size = args.gradient_accumulation_steps
        batches = [
            self._placed(batch) for batch in TrainerRows(dataloader, run.context.seed).first(size * request.num_batches)
        ]
        steps = [batches[start : start + size] for start in range(0, len(batches), size)]
        passes = [[batch] for batch in batches] if request.each_micro_batch else steps
        run.model.train()
        stepping = Stepping(run.model, run.method, run.optimizer, run.context, _Unwatched(), scheduler=lr_scheduler)
        with stepping.probing(_Unwatched()):
            for index, batch in enumerate(passes):
                stepping.probe(index, batch)
        stepping.close()

    def _placed(self, batch: MicroBatch) -> MicroBatch:
        return batch.to(self._run.device(), masked=needs_padding_mask(self._run.model))

    def _guard_optimizer(self) -> None:
        """Let the optimizer refuse a step of a Trainer without this callback, and the state of another optimizer."""
        label, guarded = self._run.label, self._run.optimizer

        def step(optimizer: Any, *args: Any) -> None:
            if not self._begun:
                raise Refused(
                    f"the Trainer steps the optimizer of label '{label}' without its callback, so nothing would be "
                    "drawn, begun or saved: give it callbacks=[prepared.callback]"
                )
            type(optimizer).step(optimizer, *args)

        def load_state_dict(optimizer: Any, state_dict: dict[str, Any]) -> None:
            try:
                type(optimizer).load_state_dict(optimizer, state_dict)
            except (KeyError, TypeError, ValueError) as error:
                raise Refused(
                    f"the optimizer state of the checkpoint is not that of label '{label}' under these settings: go on "
                    "with what wrote it, or train from the beginning"
                ) from error

        # On the instance, bound, as schedulers of torch cover the step of an optimizer.
        guarded.step = MethodType(step, guarded)  # type: ignore[method-assign]
        guarded.load_state_dict = MethodType(load_state_dict, guarded)  # type: ignore[method-assign]

    # Inside a step

    def _take_gradient(self, parameter: torch.Tensor) -> None:
        """Note the norm of a gradient that is complete, and use it up where updates are made in backward."""
        if not self._inside or not self._gradients.sync_gradients:
            return
        method = self._run.method
        assert parameter.grad is not None
        if method.observes_gradients:
            self._norms[parameter] = squared_norm(parameter.grad)
        if method.config.update_in_backward:
            self._run.optimizer.step_parameters([parameter])
            parameter.grad = None

    def _enter_stream(self) -> None:
        stream = f"forward/{self._step}"
        name = f"{stream}/{self._number}" if self._number else stream
        self._stream = seeding.seeded_globally(self._run.context.seed, name)
        self._stream.__enter__()

    def _leave_stream(self) -> None:
        if self._stream is not None:
            self._stream.__exit__(None, None, None)
            self._stream = None
