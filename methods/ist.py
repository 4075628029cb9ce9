"""IST: of LoRA's adapters those of a few blocks are trained at a time, drawn by an importance that training estimates.

Paper: "Layer-wise Importance Matters" (arXiv 2410.11772).
Reference: antgroup/importance-aware-sparse-tuning-IST-paper@53ab149:ist.py, the callback of its training script. The
paper's own table of settings was not read: constants are the code's.

Every ``score_interval`` steps, not before the first, ``score_sets`` sets of blocks are drawn; with the adapters of each
set scaled by ``suppression`` the loss of ``score_rows`` training rows is taken, and the importance moves by what the
losses say (``_importance``). Every ``interval_steps`` steps the blocks whose adapters are trained are drawn, with
weights sigmoid(-I): in the code at every step (``interval_steps = 1``); with ``interval_steps = score_interval`` an
importance loop and a fine-tuning loop take turns, as the paper tells it.

Deliberate differences from the reference:
- draws and the rows of the scoring passes have streams of their own; the code takes torch's global generator;
- the scaling of every adapter is restored to what it was; the code restores all to that of the last one;
- state of adapters that are frozen again may be dropped; the code keeps it;
- the importance is kept in Python's floats, the code's in fp32;
- adapters outside the blocks, where ``target_modules`` names any, are trained at every step and never suppressed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, JsonValue, PositiveFloat, PositiveInt

from harness.declaration import Declaration, DeclaredSampling
from harness.errors import Refused
from harness.method import METHODS, BlockLaw, InferenceRequest, RunContext, StepOptimizer
from harness.methods._importance import sigmoid, suppressed_sets, updated_importance
from harness.methods._settings import LayerSamplingSettings
from harness.methods.lora import Lora, LoraConfig

if TYPE_CHECKING:
    from torch import nn

    from harness.methods._layer_sampling import BlockSampler

Share = Annotated[float, Field(gt=0.0, le=1.0)]
ROWS, SETS = "importance_rows", "importance_sets"
"""Streams of the rows that are scored, and of the sets that are suppressed."""


class IstConfig(LoraConfig):
    """Settings of IST, beside those of LoRA."""

    active_share: Share
    """Of the blocks, rounded down: so many have their adapters trained at a time."""
    interval_steps: PositiveInt
    """Optimizer steps from one draw of these blocks to the next."""
    score_interval: PositiveInt
    """Optimizer steps from one look at the importance to the next; there is none before the first step."""
    score_rows: PositiveInt
    """Training rows whose loss is taken, all at once in a forward pass without gradients."""
    score_sets: Annotated[int, Field(ge=2)]
    """Sets of suppressed blocks of each look, a forward pass each; rewards are centred over them."""
    score_rate: PositiveFloat
    """Of the importance's update."""
    suppressed_share: Share
    """Of the blocks, rounded down: so many are in each set."""
    suppression: Annotated[float, Field(ge=0.0)]
    """Factor of what the adapters of suppressed blocks add; 1: nothing is suppressed."""
    state_policy: Literal["keep", "drop"]
    """Moments of adapters that are frozen again: kept, as is Adam's step counter, or freed."""


@METHODS.register("ist")
class Ist(Lora):
    """Low-rank adapters, those of a few blocks at a time."""

    Config = IstConfig  # type: ignore[assignment]
    config: IstConfig
    samples_blocks = True
    draws_depend_on_training = True
    summary = "low-rank adapters of a few blocks at a time, drawn by an estimated importance"
    _sampler: BlockSampler | None = None

    def prepare(self, model: nn.Module, context: RunContext) -> nn.Module:
        """Wrap the model as LoRA does; nothing is drawn before step 0.

        Raises:
            Refused: as LoRA; a block gets no adapter, or there are too few blocks to draw from.
        """
        self._sampling(len(context.decoder.blocks))
        wrapped = super().prepare(model, context)
        for name, block in zip(context.decoder.block_names, context.decoder.blocks, strict=True):
            if not adapters_of(block):
                raise Refused(
                    f"ist draws blocks by their adapters, and {name} has none: name target_modules of every block"
                )
        return wrapped

    def build_optimizer(self, model: nn.Module, context: RunContext) -> StepOptimizer:
        """Return the optimizer over all adapters; those of the blocks are frozen until the first draw."""
        from harness.methods._layer_sampling import BlockSampler

        optimizer = super().build_optimizer(model, context)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        trained = {id(block): [p for p in block.parameters() if id(p) in held] for block in context.decoder.blocks}
        self._context, self._blocks = context, context.decoder.blocks
        self._importance = [0.0] * len(self._blocks)
        self._looks: list[dict[str, Any]] = []
        self._sampler = BlockSampler(
            self._blocks,
            self._sampling(len(self._blocks)),
            [1.0 / len(self._blocks)] * len(self._blocks),
            context,
            of_block=lambda block: trained[id(block)],
        )
        self._sampler.apply()
        return optimizer

    def declare(self, model: nn.Module, context: RunContext) -> Declaration | None:
        """Return what LoRA declares, with the draws and with whose adapters are drawn together."""
        declared = super().declare(model, context)
        assert declared is not None
        sampling = self._sampling(len(declared.blocks))
        names: list[dict[str, None]] = [{} for _ in declared.blocks]
        for one in self._wanted(model, context)[1]:
            if isinstance(one.part, int):
                names[one.part][one.name] = None
        blocks = [
            part.model_copy(update={"adapters": tuple(found)})
            for part, found in zip(declared.blocks, names, strict=True)
        ]
        drawn = DeclaredSampling(
            interval_steps=sampling.interval_steps,
            num_active=sampling.active_layers,
            state_policy=sampling.state_policy,
        )
        return declared.model_copy(update={"blocks": tuple(blocks), "sampling": drawn})

    def block_law(self, num_blocks: int, scores: Sequence[float] | None) -> BlockLaw | None:
        """Return the law that the draws begin with: all blocks alike."""
        from dataclasses import replace

        from harness.methods._block_law import block_law

        return replace(block_law(self._sampling(num_blocks), num_blocks, None), probability="importance")

    def cycle_steps(self) -> int | None:
        """Return the whole periods that hold one look at the importance, in steps."""
        interval = self.config.interval_steps
        return interval * math.ceil(self.config.score_interval / interval)

    def inference_needed(self) -> InferenceRequest | None:
        """Return the passes of a look at the importance."""
        config = self.config
        return InferenceRequest(config.score_rows, config.score_sets, config.score_interval)

    def on_step_begin(self, step: int, optimizer: StepOptimizer) -> None:
        """Look at the importance where that is due, then draw the blocks of a period."""
        assert self._sampler is not None and self._optimizer is not None
        due = step > 0 and step % self.config.score_interval == 0
        if due and not (self._looks and self._looks[-1]["step"] == step):
            self._look(step)
        self._sampler.on_step_begin(step, self._optimizer)

    def visit(self, blocks: Sequence[int], optimizer: StepOptimizer) -> bool:
        """Let the adapters of these blocks be trained as if the blocks had been drawn."""
        assert self._sampler is not None and self._optimizer is not None
        self._sampler.visit(blocks, self._optimizer)
        return True

    def state_dict(self) -> dict[str, JsonValue]:
        """Return draws and their generator, probabilities, importance, and the looks at it, which count its rows."""
        assert self._sampler is not None
        own: dict[str, JsonValue] = {"importance": [*self._importance], "looks": [*self._looks]}
        return self._sampler.state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them; :meth:`on_resume` then freezes and unfreezes."""
        assert self._sampler is not None
        self._sampler.load_state_dict(state)
        self._importance, self._looks = list(state["importance"]), list(state["looks"])

    def on_resume(self, model: nn.Module, optimizer: StepOptimizer, step: int) -> None:
        """Train the adapters of the restored blocks and no others, without a draw."""
        assert self._sampler is not None
        self._sampler.apply()

    def proof(self) -> dict[str, JsonValue]:
        """Return draws and probabilities over time, the importance and what it follows from, and the adapters."""
        if self._sampler is None:
            return super().proof()
        drawn = self._sampler.proof() | {"probability": "importance"}
        return {**drawn, "importance": [*self._importance], "looks": [*self._looks], **super().proof()}

    def _sampling(self, num_blocks: int) -> LayerSamplingSettings:
        """Return how blocks of a model are drawn and what becomes of their state.

        Raises:
            Refused: a share of its blocks is none, or there are fewer different sets than ``score_sets``.
        """
        config = self.config
        active, silent = (_part(share, num_blocks) for share in (config.active_share, config.suppressed_share))
        for name, number in (("active_share", active), ("suppressed_share", silent)):
            if number == 0:
                raise Refused(f"{name} = {getattr(config, name)} of {num_blocks} blocks is none of them: raise it")
        if (possible := math.comb(num_blocks, silent)) < config.score_sets:
            raise Refused(
                f"score_sets = {config.score_sets} asks for as many different sets of {silent} of {num_blocks} "
                f"blocks, and there are {possible}: lower score_sets or change suppressed_share"
            )
        return LayerSamplingSettings(
            active_layers=active,
            interval_steps=config.interval_steps,
            sampling="without_replacement",
            probability="uniform",
            state_policy=config.state_policy,
            returning_step_counter="reset" if config.state_policy == "drop" else "keep",
            train_embedding=False,
            train_head=False,
            train_final_norm=False,
        )

    def _look(self, step: int) -> None:
        """Take the losses under suppression and let importance and probabilities follow them."""
        assert self._sampler is not None
        config, context, number = self.config, self._context, len(self._looks)
        size = _part(config.suppressed_share, len(self._blocks))
        generator = context.numpy_generator(f"{SETS}/{number}")
        sets = suppressed_sets(self._importance, size, config.score_sets, generator)
        losses = []
        for drawn in sets:
            with suppressed([self._blocks[block] for block in drawn], config.suppression):
                losses.append(context.inference_loss(ROWS, number, config.score_rows))
        self._importance = updated_importance(self._importance, sets, losses, config.score_rate)
        self._looks.append({"step": step, "suppressed": sets, "losses": losses})
        self._sampler.set_probabilities(step, [sigmoid(-i) for i in self._importance])


def _part(share: float, num_blocks: int) -> int:
    """Return a share of the blocks, rounded down; what only rounding keeps below a whole number is that number."""
    return math.floor(share * num_blocks + 1e-9)


def adapters_of(block: nn.Module) -> list[Any]:
    """Return the layers of a block that have an adapter, as peft's."""
    from peft.tuners.lora import LoraLayer

    return [module for module in block.modules() if isinstance(module, LoraLayer) and module.scaling]


@contextmanager
def suppressed(blocks: Sequence[nn.Module], factor: float) -> Iterator[None]:
    """Scale what the adapters of blocks add by a factor inside the ``with``; their own scalings return after it."""
    layers = [layer for block in blocks for layer in adapters_of(block)]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling.update({name: factor * scaling for name, scaling in layer.scaling.items()})
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)
