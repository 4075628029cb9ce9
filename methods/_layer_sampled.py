"""What methods share that train a few blocks at a time: refusals, and layer sampling's hooks. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from harness.declaration import Declaration, DeclaredSampling
from harness.errors import Refused
from harness.method import BlockLaw, BlockScoreKind, BlockScoreRequest, MethodConfig, RunContext, StepOptimizer
from harness.methods._settings import AdamWSettings, LayerSamplingSettings, refuse_number_of_blocks
from harness.methods._trained import TrainedMethod
from harness.settings import TrainSettings

if TYPE_CHECKING:
    from torch import nn
    from torch.nn import Parameter

    from harness.methods._layer_sampling import BlockSampler


IN_TURN: Mapping[str, Literal["ascending", "descending"]] = {"tour": "ascending", "descending": "descending"}
"""Laws of sampling under which the turns are known beforehand."""

ALPHA_KINDS: Mapping[str, BlockScoreKind] = {
    "hill": "alpha_hill",
    "peak": "alpha_peak",
    "peak_corrected": "alpha_peak_corrected",
    "fit": "alpha_fit",
}
"""The block score of each ``alpha_estimator``."""


class LayerSampledConfig(LayerSamplingSettings, AdamWSettings):
    """Settings of a method that trains a few blocks at a time."""


class LayerSampledMethod(TrainedMethod):
    """A method that trains a few blocks at a time, drawn anew each period."""

    samples_blocks = True
    config: LayerSampledConfig
    _sampler: BlockSampler | None = None

    @classmethod
    def check(cls, config: MethodConfig, train: TrainSettings | None) -> None:
        """Refuse as every trained method does, and where the file of probabilities is not valid."""
        super().check(config, train)
        assert isinstance(config, LayerSampledConfig)
        if config.probability_file is not None and not config.takes_turns:
            from harness.methods._block_probabilities import read_scores

            read_scores(config.probability_file)

    def block_scores_needed(self) -> BlockScoreRequest | None:
        """Return the request for the scores that the probabilities follow from, where they follow from any."""
        if self.config.takes_turns:
            return None
        if self.config.by_alpha:
            assert self.config.alpha_estimator is not None
            return BlockScoreRequest(ALPHA_KINDS[self.config.alpha_estimator])
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
        self._sampler = BlockSampler(
            context.decoder.blocks, self.config, probabilities, context, renew=self.refreshes_on_activation()
        )
        return model

    def cycle_steps(self) -> int | None:
        """Return the whole periods that hold one projector refresh, in steps; one period without projection."""
        interval = self.config.interval_steps
        return interval * math.ceil((super().cycle_steps() or 1) / interval)

    def trained_parameters(self, model: nn.Module, context: RunContext) -> list[tuple[str, Parameter]]:
        """Return the parameters of every block, frozen now or not, and of the other parts that are trained."""
        parts = [part for part, trained in self._parts(context) if trained]
        wanted = {id(p) for module in (*context.decoder.blocks, *parts) for p in module.parameters()}
        return [(name, p) for name, p in model.named_parameters() if id(p) in wanted]

    def build_optimizer(self, model: nn.Module, context: RunContext) -> StepOptimizer:
        """Return the optimizer over the groups, the state of blocks where the settings have it."""
        optimizer = super().build_optimizer(model, context)
        assert self._optimizer is not None
        if self.config.active_state != "resident":
            self._optimizer.stream_state(
                [block.parameters() for block in context.decoder.blocks],
                ahead=self.config.active_state == "prefetched",
                descending=self.config.update_in_backward,
            )
        return optimizer

    def declare(self, model: nn.Module, context: RunContext) -> Declaration | None:
        """Return the same with the draws: how often, how many blocks, and what becomes of the others' state."""
        declared = super().declare(model, context)
        assert declared is not None
        sampling = DeclaredSampling(
            interval_steps=self.config.interval_steps,
            first_period_steps=self.config.first_period_steps,
            num_active=None if self.config.sampling == "bernoulli" else self.config.active_layers,
            in_turn=IN_TURN.get(self.config.sampling),
            state_policy=self.config.state_policy,
            streams_state=self.config.active_state != "resident",
            resets_each_period=self.config.reset_each_period,
        )
        return declared.model_copy(update={"sampling": sampling})

    def on_step_begin(self, step: int, optimizer: StepOptimizer) -> None:
        """Draw blocks at the start of a period and apply the state policy."""
        assert self._sampler is not None and self._optimizer is not None
        self._sampler.on_step_begin(step, self._optimizer)

    def visit(self, blocks: Sequence[int], optimizer: StepOptimizer) -> bool:
        """Activate these blocks as if they had been drawn."""
        assert self._sampler is not None and self._optimizer is not None
        self._sampler.visit(blocks, self._optimizer)
        return True

    def refreshes_on_activation(self) -> bool:
        """Return whether a block that becomes active again gets new projectors, whatever the age of its old ones."""
        return False

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
        refuse_number_of_blocks(config, len(decoder.blocks))
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
