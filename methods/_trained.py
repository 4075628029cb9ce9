"""What trained methods share: refusals, the optimizer over named groups, and layer sampling's hooks. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from pydantic import JsonValue

from harness.errors import Refused
from harness.method import BlockLaw, BlockScoreRequest, Method, MethodConfig, RunContext, StepOptimizer
from harness.methods._settings import (
    PROJECTION_KEYS,
    AdamWSettings,
    LayerSamplingSettings,
    ProjectionSettings,
    refuse_bad_training,
)
from harness.settings import TrainSettings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from harness.methods._layer_sampling import BlockSampler
    from harness.methods._optimizers import AdamW


class TrainedMethod(Method):
    """A method that trains with our AdamW. By default every parameter is trained, none projected."""

    config: AdamWSettings
    _optimizer: AdamW | None = None

    @classmethod
    def check(cls, config: MethodConfig, train: TrainSettings | None) -> None:
        """Refuse what would fail, or silently do nothing."""
        assert isinstance(config, AdamWSettings)
        refuse_bad_training(config, train)

    def prepare(self, model: nn.Module, context: RunContext) -> nn.Module:
        """Let every parameter be trained."""
        return model.requires_grad_(True)

    def trained_parameters(self, model: nn.Module, context: RunContext) -> list[tuple[str, torch.nn.Parameter]]:
        """Return name and parameter of everything that may ever be trained, each once."""
        return list(model.named_parameters())

    def projection(self) -> ProjectionSettings | None:
        """Return the settings of the projection of the blocks' linear layers, or None."""
        return None

    def cycle_steps(self) -> int | None:
        """Return the steps between two refreshes of an always active matrix, or None without projection."""
        settings = self.projection()
        return None if settings is None else settings.update_gap

    def optimizer_class(self) -> type[AdamW]:
        """Return the optimizer's class."""
        from harness.methods._optimizers import AdamW

        return AdamW

    def build_optimizer(self, model: nn.Module, context: RunContext) -> StepOptimizer:
        """Return the optimizer: one group of full-rank parameters, one of projected matrices, as far as there are any.

        Raises:
            Refused: a projection is asked for and the blocks hold no linear layer.
        """
        config, settings = self.config, self.projection()
        projected = set() if settings is None else projected_weights(settings, context)
        if settings is not None and not projected:
            raise Refused("the model's blocks hold no linear layer, so there is nothing to project")
        named = self.trained_parameters(model, context)
        common = {
            "lr": context.train.learning_rate,
            "betas": list(config.betas),
            "eps": config.eps,
            "weight_decay": config.weight_decay,
            "rule": config.adamw_rule,
            "moment_dtype": config.moment_dtype,
            "master_weights": config.master_weights,
            "stochastic_rounding": config.stochastic_rounding,
            "update_slice_elements": config.update_slice_elements,
        }
        low_rank = None if settings is None else {key: getattr(settings, key) for key in PROJECTION_KEYS}
        full_group = [(name, p) for name, p in named if id(p) not in projected]
        projected_group = [(name, p) for name, p in named if id(p) in projected]
        groups: list[dict[str, Any]] = [
            {"params": params, "projection": projection, **common}
            for params, projection in ((full_group, None), (projected_group, low_rank))
            if params
        ]
        self._optimizer = self.optimizer_class()(
            groups, streams=context.torch_generator, read_scalar=context.read_scalar
        )
        return cast(StepOptimizer, self._optimizer)

    def on_step_begin(self, step: int, optimizer: StepOptimizer) -> None:
        """Tell the optimizer the step."""
        cast("AdamW", optimizer).begin_step(step)

    def proof(self) -> dict[str, JsonValue]:
        """Return which matrices were projected, to which rank and how often anew, and the seconds that took."""
        if self._optimizer is None or self.projection() is None:
            return {}
        projected: dict[str, JsonValue] = dict(self._optimizer.projections())
        return {"projected": projected, "refresh_seconds": self._optimizer.refresh_seconds}


def projected_weights(settings: ProjectionSettings, context: RunContext) -> set[int]:
    """Return the ids of the weights whose gradients are projected, should they be trained.

    They are those of every linear layer inside the decoder's blocks, with ``project_vocabulary`` embedding and head
    too; none where the blocks hold no linear layer.
    """
    from torch import nn

    decoder = context.decoder
    inside = [m.weight for block in decoder.blocks for m in block.modules() if isinstance(m, nn.Linear)]
    outside = [decoder.embedding.weight, decoder.head.weight] if inside and settings.project_vocabulary else []
    return {id(weight) for weight in (*inside, *outside)}


class LayerSampledConfig(LayerSamplingSettings, AdamWSettings):
    """Settings of a method that trains a few blocks at a time."""


class LayerSampledMethod(TrainedMethod):
    """A method that trains a few blocks at a time, drawn anew each period."""

    config: LayerSampledConfig
    _sampler: BlockSampler | None = None

    @classmethod
    def check(cls, config: MethodConfig, train: TrainSettings | None) -> None:
        """Refuse as every trained method does, and where the file of probabilities is not valid."""
        super().check(config, train)
        assert isinstance(config, LayerSampledConfig)
        if config.probability_file is not None and config.sampling != "tour":
            from harness.methods._block_probabilities import read_scores

            read_scores(config.probability_file)

    def block_scores_needed(self) -> BlockScoreRequest | None:
        """Return the request for outlier ratios or weight norms, where the probabilities follow from them."""
        if self.config.sampling == "tour":
            return None
        if self.config.probability in ("outlier", "outlier_reverse"):
            return BlockScoreRequest("outlier", self.config.tau)
        return BlockScoreRequest("weight_norm") if self.config.probability == "weight_norm" else None

    def block_law(self, num_blocks: int, scores: Sequence[float] | None) -> BlockLaw | None:
        """Return the law of the settings."""
        from harness.methods._block_law import block_law

        return block_law(self.config, num_blocks, scores)

    def prepare(self, model: nn.Module, context: RunContext) -> nn.Module:
        """Freeze the blocks, and the other parts as the settings say; nothing is drawn before step 0.

        Raises:
            Refused: the model and the settings do not fit.
        """
        from harness.methods._block_probabilities import block_probabilities
        from harness.methods._layer_sampling import BlockSampler

        self._refuse_misfits(model, context)
        request = self.block_scores_needed()
        scores = None if request is None else context.block_scores(request)
        probabilities = block_probabilities(self.config, len(context.decoder.blocks), scores)
        model.requires_grad_(False)
        for part, trained in self._parts(context):
            part.requires_grad_(trained)
        self._sampler = BlockSampler(context.decoder.blocks, self.config, probabilities, context)
        return model

    def cycle_steps(self) -> int | None:
        """Return the whole periods that hold one projector refresh, in steps; one period without projection."""
        interval = self.config.interval_steps
        return interval * math.ceil((super().cycle_steps() or 1) / interval)

    def trained_parameters(self, model: nn.Module, context: RunContext) -> list[tuple[str, torch.nn.Parameter]]:
        """Return the parameters of every block, frozen now or not, and of the other parts that are trained."""
        parts = [part for part, trained in self._parts(context) if trained]
        wanted = {id(p) for module in (*context.decoder.blocks, *parts) for p in module.parameters()}
        return [(name, p) for name, p in model.named_parameters() if id(p) in wanted]

    def on_step_begin(self, step: int, optimizer: StepOptimizer) -> None:
        """Draw blocks at the start of a period and apply the state policy."""
        super().on_step_begin(step, optimizer)
        assert self._sampler is not None
        self._sampler.on_step_begin(step, cast("AdamW", optimizer))

    def visit(self, blocks: Sequence[int], optimizer: StepOptimizer) -> bool:
        """Activate these blocks as if they had been drawn."""
        assert self._sampler is not None
        self._sampler.visit(blocks, cast("AdamW", optimizer))
        return True

    def may_activate_every_block(self) -> bool:
        """Return True for coin flips."""
        return self.config.sampling == "bernoulli"

    def state_dict(self) -> dict[str, JsonValue]:
        """Return active blocks, draws, probabilities and generator."""
        assert self._sampler is not None
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, JsonValue]) -> None:
        """Restore them; :meth:`on_resume` then freezes and unfreezes."""
        assert self._sampler is not None
        self._sampler.load_state_dict(state)

    def on_resume(self, model: nn.Module, optimizer: StepOptimizer, step: int) -> None:
        """Train the restored blocks and no others, without a draw; the optimizer's state comes from its own file."""
        assert self._sampler is not None
        self._sampler.apply()

    def proof(self) -> dict[str, JsonValue]:
        """Return the law, the probabilities and every draw, beside what was projected."""
        sampled = {} if self._sampler is None else self._sampler.proof()
        return {**sampled, **super().proof()}

    def _parts(self, context: RunContext) -> list[tuple[nn.Module, bool]]:
        decoder = context.decoder
        return [
            (decoder.embedding, self.config.train_embedding),
            (decoder.head, self.config.train_head),
            (decoder.final_norm, self.config.train_final_norm),
        ]

    def _refuse_misfits(self, model: nn.Module, context: RunContext) -> None:
        decoder, config = context.decoder, self.config
        if config.active_layers > len(decoder.blocks):
            raise Refused(f"active_layers is {config.active_layers}, but the model has {len(decoder.blocks)} blocks")
        if decoder.tied_head and config.train_embedding != config.train_head:
            raise Refused(
                "the model's head is its embedding, one matrix: train_embedding and train_head must be the same"
            )
        known = {id(p) for block in decoder.blocks for p in block.parameters()}
        known |= {id(p) for part, _ in self._parts(context) for p in part.parameters()}
        others = [name for name, p in model.named_parameters() if id(p) not in known]
        if others:
            raise Refused(
                f"{others[0]} is in no block, embedding, head or final norm, and no setting says whether to train it"
            )
