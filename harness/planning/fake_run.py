"""One run on fake tensors: the real model class, the real method, optimizer and training step, and no memory at all.

The model is built and prepared on the ``meta`` device, because peft cannot wrap a model under FakeTensorMode; then
every parameter and buffer is replaced by a fake CPU tensor of the same shape and dtype, ties kept. So a method may keep
modules that it saw in ``prepare``, not parameters.

A run on several devices is planned as its first process has it, which holds the largest parts: the fake tensors are
shared out by what shares real ones out, over a group in which nothing is sent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import flop_registry

from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.models import BaseModelSpec
from harness.data.batches import MicroBatch, collate
from harness.data.drawn import rows_may_be_padded
from harness.data.examples import Example
from harness.device_profile import DeviceProfile
from harness.engine.activation_checkpointing import enable_checkpointing
from harness.engine.context import EngineContext
from harness.engine.inference import inference_loss
from harness.engine.padding import check_padded_rotation, needs_padding_mask
from harness.engine.ranks import ALONE, Ranks
from harness.engine.step_memory import using_up
from harness.engine.stepping import Stepping
from harness.method import METHODS, BlockScoreRequest, Decoder, Method, check_run
from harness.planning.attention import Device, register_attention
from harness.planning.cuda import solver_workspace
from harness.planning.eight_bit import update_temporaries
from harness.planning.kernels import attention_flops, listening_to_flops
from harness.planning.quantized import plan_quantized
from harness.planning.sizes import NeedsFakeTensors, SizesMode, sizes_are_fake
from harness.spec import RunSpec
from harness.tensors.causality import is_known_causal
from harness.tensors.decoder import active_blocks, find_decoder
from harness.tensors.fakes import replace_by_fakes
from harness.tensors.loading import build_model
from harness.tensors.optimizer_state import on_every_parameter
from harness.tensors.placement import planned_for
from harness.tensors.rotary import hold_rotation
from harness.tensors.sharded import shard
from harness.tensors.storage_tracker import LOSS_MOMENTS, Span, StorageTracker

SIMULATED_MICRO_BATCHES = 2
"""The second micro-batch already runs beside the gradients of the first; further ones are like it."""


class PlanTracker(StorageTracker):  # type: ignore[no-untyped-call]
    """A tracker that also counts operations and adds what libraries allocate inside theirs."""

    def __init__(self, device: Device, profile: DeviceProfile | None = None, sizes: SizesMode | None = None) -> None:
        super().__init__("cpu" if sizes is None else "meta")
        self._sizes = sizes
        self._flops_known: dict[Any, int] = {}
        self._solver = None if profile is None else profile.solver
        self.flops = 0
        self.recomputed_flops = 0
        self.flops_factor = 1.0
        """Micro-batches of a step for each one that is taken."""
        self.recomputing = False
        self._cuda = device == "cuda"

    def perform(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Return what an operation makes, of sizes alone where there are no fake tensors."""
        if self._sizes is None:
            return super().perform(func, types, args, kwargs)
        return self._sizes.__torch_dispatch__(func, types, args, kwargs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; note its results, its operations and its hidden temporaries."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.count(self._flops_of(packet, args, kwargs, result))
        elif packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            self.count(attention_flops(args[0], args[1]))
        elif packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
            self.count(2 * attention_flops(args[1], args[2]))
        elif self._cuda or self._solver is not None:
            for size in solver_workspace(func, args, self._solver):
                self.note_hidden(size)
        else:
            for size in update_temporaries(func, args):
                self.note_hidden(size)
        return result

    def _flops_of(self, packet: Any, args: Any, kwargs: Any, result: Any) -> int:
        """Return the operations of a call; those of equal shapes are counted once."""
        if kwargs:
            return int(flop_registry[packet](*args, **kwargs, out_val=result))
        key = packet, *(arg.shape if isinstance(arg, torch.Tensor) else str(arg) for arg in args)
        if key not in self._flops_known:
            self._flops_known[key] = int(flop_registry[packet](*args, out_val=result))
        return self._flops_known[key]

    def count(self, flops: int) -> None:
        """Add operations, to what is needed or to what checkpointing computes again."""
        if self.moment in LOSS_MOMENTS:
            flops = round(flops * self.flops_factor)
        if self.recomputing:
            self.recomputed_flops += flops
        else:
            self.flops += flops

    def recompute_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the two contexts that torch's checkpointing enters: forward pass, recomputation."""
        return nullcontext(), self._recompute()

    @contextmanager
    def _recompute(self) -> Iterator[None]:
        before, self.recomputing = self.recomputing, True
        try:
            yield
        finally:
            self.recomputing = before


class _Watch:
    """Tells the one tracker that follows all of the run."""

    def __init__(self, tracker: PlanTracker) -> None:
        self._tracker = tracker

    def moment(self, name: str) -> None:
        self._tracker.moment = name

    def note_gradient(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self._tracker.classify([parameter.grad], "gradients")

    def using_up(self, parameter: torch.Tensor) -> AbstractContextManager[None]:
        return using_up(self._tracker, parameter)


def _method_of(spec: RunSpec, num_ranks: int) -> Method:
    method_class = METHODS.get(spec.method)
    config = method_class.Config.model_validate(spec.config)
    check_run(method_class, config, spec.train, num_ranks)
    return method_class(config)


class FakeRun:
    """A run whose optimizer steps can be taken one by one, and whose active blocks can be chosen."""

    def __init__(
        self,
        spec: RunSpec,
        model_spec: BaseModelSpec,
        *,
        device: Device,
        num_steps: int,
        profile: DeviceProfile | None = None,
        dataset: DatasetSpec | None = None,
        block_scores: Callable[[BlockScoreRequest, int], Sequence[float]],
        fake: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        """Build it.

        Args:
            spec: What is asked; trains.
            model_spec: Its base model, with a shape or a folder.
            device: Whose attention and workspaces to assume.
            num_steps: Optimizer steps of the run.
            profile: What was measured of the device, in place of what is assumed of it.
            dataset: What is trained on; None: not known.
            block_scores: Scores for a request and a number of blocks.
            fake: Take fake tensors, where sizes alone would do as well.
            ranks: Of whose processes this one is the first; tensors that are shared out are always fake.

        Raises:
            Refused: the method cannot take this model, these settings, or so many devices.
            NeedsFakeTensors: sizes alone do not do.
        """
        assert spec.train is not None
        self.spec, self.train, self.device, self.ranks = spec, spec.train, device, ranks
        self.method = _method_of(spec, ranks.size)
        attention = register_attention(device, profile)
        model = build_model(model_spec, spec.train.dtype, torch.device("meta"), attention=attention)
        self.quantized = (
            None if spec.train.quantized is None else plan_quantized(model, spec.train.quantized, spec.train.dtype)
        )
        """What was assumed of packed layers."""
        decoder = find_decoder(model, model_spec)
        simple = (
            device == "cuda" and spec.train.dtype == "bf16" and is_known_causal(model, other_attention=(attention,))
        )
        self.by_sizes = simple and not fake and not ranks.several
        """Whether tensors are sizes alone: attention is planned here, and no other operation depends on the device."""
        self._fake = SizesMode() if self.by_sizes else FakeTensorMode()
        self.tracker = PlanTracker(device, profile, self._fake if isinstance(self._fake, SizesMode) else None)
        context = EngineContext(
            seed=spec.seed,
            num_steps=num_steps,
            train=spec.train,
            decoder=decoder,
            block_scores=_scores_needed(self.method, len(decoder.blocks), block_scores),
            scalar_reader=lambda tensor: 1.0,
            ranks=ranks,
        )
        enable_checkpointing(model, decoder, spec.train, self.tracker.recompute_contexts)
        with torch.device("meta") if self.by_sizes else nullcontext():  # what is added needs no values either
            self.model = self.method.prepare(model, context)
        self.masked = rows_may_be_padded(spec.train, dataset) and needs_padding_mask(
            self.model, other_attention=(attention,)
        )
        """Whether the batch brings a mask."""
        check_padded_rotation(self.model, spec.train)
        hold_rotation(self.model)
        replace_by_fakes(self.model, self._fake, "meta" if self.by_sizes else "cpu")
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.decoder: Decoder = dataclasses.replace(decoder, names=names)
        context = self._context = self._shared_out(context.with_decoder(self.decoder))
        with self._fake:
            declared = self.method.declare(self.model, context)
            self.full_rank = () if declared is None else declared.full_rank
            """Matrices that the rank does not reduce."""
            self.unprojected = () if declared is None else declared.unprojected
            """Tensors of the blocks that a projection leaves out."""
            self.tracker.adopt([*self.model.parameters(), *self.model.buffers()], "weights")
            self.optimizer = self.method.build_optimizer(self.model, context)
            if self.by_sizes and hasattr(self.optimizer, "reads_answered"):
                raise NeedsFakeTensors("an optimizer of somebody else's, which may read values")
            self._watch = _Watch(self.tracker)
            self._stepping = Stepping(self.model, self.method, self.optimizer, context, self._watch, ranks=ranks)
        self.at_step = 0
        """The step that is taken next."""
        self.model.train()
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._batch = self._fake_batch(spec.train.batch_size, masked=self.masked)
        self._dataset, self._attention = dataset, attention
        on_every_parameter(self.optimizer, self._watch.note_gradient)
        self._initial = (self.method.state_dict(), self.optimizer.state_dict())

    def _shared_out(self, context: EngineContext) -> EngineContext:
        """Share the model out over its processes, where there are several; return the context of its new decoder."""
        if not self.ranks.several:
            return context
        with self._fake:
            columns = self.method.cut_by_columns(self.model, context)
            self.decoder = shard(self.model, self.decoder, self.ranks.mesh, columns)
        return context.with_decoder(self.decoder)

    def step(self) -> Span:
        """Take one optimizer step with the blocks that are active; return what was made and freed meanwhile."""
        number = self.train.gradient_accumulation_steps // self.ranks.size
        count = min(number, SIMULATED_MICRO_BATCHES)
        self.tracker.flops_factor = number / count
        with self._watched(), listening_to_flops(self.tracker.count):
            self._stepping.take_step(self.at_step, [self._batch] * (count * self.ranks.size))
        self.tracker.classify(self.optimizer.device_tensors(), "optimizer_state")
        return self.tracker.take()

    def probe(self) -> Span | None:
        """Make a pass of the probe, before anything is drawn; None for a method without one."""
        request = self.method.probe_needed()
        if request is None:
            return None
        accumulation = self.train.gradient_accumulation_steps
        most = SIMULATED_MICRO_BATCHES * self.ranks.size
        batch = [self._batch] * (1 if request.each_micro_batch else min(accumulation, most))
        with self._watched(), listening_to_flops(self.tracker.count), self._stepping.probing(self._watch):
            self._stepping.probe(0, batch)
        return self.tracker.take()

    def infer(self) -> Span | None:
        """Make one of the method's own passes without gradients, as a step begins with; None where it makes none."""
        request = self.method.inference_needed()
        if request is None:
            return None
        rows = self.train.model_copy(update={"batch_size": request.num_rows})
        masked = rows_may_be_padded(rows, self._dataset) and needs_padding_mask(
            self.model, other_attention=(self._attention,)
        )
        batch = self._fake_batch(request.num_rows, masked=masked)
        self.tracker.flops_factor = 1.0
        with self._watched(), listening_to_flops(self.tracker.count):
            inference_loss(self.model, batch, self._context, self._watch)
        del batch
        return self.tracker.take()

    def draw(self, step: int) -> None:
        """Let the method begin a step, and nothing else."""
        with self._watched():
            self._stepping.begin_step(step)
        self.at_step = step

    def stand_at(self, step: int) -> None:
        """Go to a step to which nothing is drawn."""
        self.at_step = step

    def visit(self, blocks: Sequence[int]) -> bool:
        """Make these blocks the active ones; False for a method that does not sample blocks."""
        with self._watched():
            self.tracker.moment = "resample"
            return self.method.visit(blocks, self.optimizer)

    def give_state(self, parameters: Sequence[torch.Tensor]) -> None:
        """Let the optimizer update parameters once with gradients from nowhere, so that they have a state."""
        with self._watched():
            self.tracker.moment = "optimizer"
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
                self.optimizer.step_parameters([parameter])
                parameter.grad = None
            self.optimizer.zero_grad()  # as at the end of a step: what comes over for updates is gone
        self.tracker.classify(self.optimizer.device_tensors(), "optimizer_state")

    def forget_state(self, parameters: Iterable[torch.Tensor]) -> None:
        """Take the optimizer's state of parameters away, as if they had never been active."""
        for parameter in parameters:
            self.optimizer.state.pop(parameter, None)

    def let_refresh(self) -> bool:
        """Let every active matrix compute a new projector at its next update; False where there is none."""
        return self.method.cycle_steps() is not None and self.optimizer.expire_projectors(self.active())

    def reset(self) -> None:
        """Go back to the state before the first draw."""
        self.at_step = 0
        self.method.load_state_dict(self._initial[0])
        self.optimizer.load_state_dict(self._initial[1])

    def active_blocks(self) -> tuple[int, ...]:
        """Return the blocks that hold a parameter that requires gradients."""
        return active_blocks(self.decoder)

    def is_frozen_below_blocks(self) -> bool:
        """Return whether nothing is trained in front of the first block.

        A backward pass then ends at the lowest active block, and activations are kept from there on.
        """
        return not any(parameter.requires_grad for parameter in self.decoder.embedding.parameters())

    def active(self) -> list[torch.Tensor]:
        """Return the parameters of the optimizer that require gradients."""
        return [parameter for parameter in self._parameters if parameter.requires_grad]

    def has_state(self, parameter: torch.Tensor) -> bool:
        """Return whether the optimizer holds anything for a parameter."""
        return bool(self.optimizer.state.get(parameter))

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Take tensors without storage, and let the tracker see them."""
        with planned_for(self.device), sizes_are_fake() if self.by_sizes else self._fake, self.tracker:
            yield

    def _fake_batch(self, num_rows: int, *, masked: bool) -> MicroBatch:
        length = self.train.sequence_length
        example = Example((0,) * length, (True,) * length)
        real = collate([example] * num_rows, pad_id=0)
        if masked:  # of full rows none is made; that one of them is shorter changes no size
            real = dataclasses.replace(real, attention_mask=torch.ones_like(real.input_ids))
        fakes: dict[str, Any] = {
            field.name: self._fake.from_tensor(value)
            for field in dataclasses.fields(real)
            if isinstance(value := getattr(real, field.name), torch.Tensor)
        }
        batch = dataclasses.replace(real, **fakes)
        self.tracker.adopt(fakes.values(), "other")
        return batch


def _scores_needed(
    method: Method, num_blocks: int, block_scores: Callable[[BlockScoreRequest, int], Sequence[float]]
) -> Mapping[BlockScoreRequest, Sequence[float]]:
    """Return the scores that a method asks for."""
    request = method.block_scores_needed()
    return {} if request is None else {request: block_scores(request, num_blocks)}
