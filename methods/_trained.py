"""What trained methods share: refusals, and the optimizer over named parameters. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.declaration import Declaration
from harness.method import Method, MethodConfig, RunContext, StepOptimizer
from harness.methods._settings import AdamWSettings, refuse_bad_training
from harness.settings import TrainSettings

if TYPE_CHECKING:
    from torch import nn
    from torch.nn import Parameter

    from harness.methods._optimizers import AdamW, Group


class TrainedMethod(Method):
    """A method that trains with our AdamW. By default every parameter is trained, none projected."""

    config: AdamWSettings
    _optimizer: AdamW | None = None

    @classmethod
    def check(cls, config: MethodConfig, train: TrainSettings | None) -> None:
        """Refuse what would fail, or silently do nothing."""
        assert isinstance(config, AdamWSettings)
        refuse_bad_training(config, train)

    @classmethod
    def check_sharded(cls, config: MethodConfig, train: TrainSettings | None, num_ranks: int) -> None:
        """Refuse nothing: our AdamW works on the parts of tensors."""

    def prepare(self, model: nn.Module, context: RunContext) -> nn.Module:
        """Let every parameter be trained."""
        return model.requires_grad_(True)

    def trained_parameters(self, model: nn.Module, context: RunContext) -> list[tuple[str, Parameter]]:
        """Return name and parameter of everything that may ever be trained, each once."""
        return list(model.named_parameters())

    def groups(self, named: Sequence[tuple[str, Parameter]], context: RunContext) -> list[Group]:
        """Return the trained parameters in groups that are updated alike, in order; none empty."""
        from harness.methods._optimizers import Group

        return [Group(named)]

    def declare(self, model: nn.Module, context: RunContext) -> Declaration | None:
        """Return what will be trained and the state that takes."""
        from harness.methods._declared import declared_parts, trained_of

        decoder = context.decoder
        trained = trained_of(self.trained_parameters(model, context), decoder, ())
        blocks, others = declared_parts(trained, len(decoder.blocks), self.config, None, num_ranks=context.num_ranks)
        return Declaration(blocks=blocks, others=others, damping=self.config.damping)

    def optimizer_class(self) -> type[AdamW]:
        """Return the optimizer's class."""
        from harness.methods._optimizers import AdamW

        return AdamW

    def build_optimizer(self, model: nn.Module, context: RunContext) -> StepOptimizer:
        """Return the optimizer over the groups.

        Raises:
            Refused: a projection is asked for and the blocks hold no linear layer.
        """
        groups = self.groups(self.trained_parameters(model, context), context)
        self._optimizer = self.optimizer_class()(
            groups, self.config, learning_rate=context.train.learning_rate, streams=context.torch_generator
        )
        return self._optimizer
