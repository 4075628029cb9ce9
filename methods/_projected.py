"""What methods share whose gradients go through a low-rank projection: which matrices, and what is shown. No torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from pydantic import JsonValue

from harness.declaration import Declaration, DeclaredProjection
from harness.errors import Refused
from harness.method import RunContext
from harness.methods._settings import ProjectionSettings
from harness.methods._trained import TrainedMethod

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.nn import Parameter

    from harness.methods._optimizers import Group
    from harness.methods._projection import LowRankProjection


class ProjectedMethod(TrainedMethod):
    """A method that projects the gradients of the blocks' linear layers, should it be asked to."""

    @abstractmethod
    def projection(self) -> ProjectionSettings | None:
        """Return the settings of the projection, or None where there is none."""

    def cycle_steps(self) -> int | None:
        """Return the steps between two refreshes of an always active matrix, or None without projection."""
        settings = self.projection()
        return None if settings is None else settings.update_gap

    def groups(self, named: Sequence[tuple[str, Parameter]], context: RunContext) -> list[Group]:
        """Return one group of full-rank parameters, one of projected matrices, as far as there are any.

        Raises:
            Refused: a projection is asked for and the blocks hold no linear layer.
        """
        from harness.methods._optimizers import Group

        settings = self.projection()
        if settings is None:
            return super().groups(named, context)
        projected = projected_weights(settings, context)
        if not projected:
            raise Refused("the model's blocks hold no linear layer, so there is nothing to project")
        full_rank = [(name, p) for name, p in named if id(p) not in projected]
        low_rank = [(name, p) for name, p in named if id(p) in projected]
        projection = self.build_projection(settings, [name for name, _ in low_rank], context)
        return [group for group in (Group(full_rank), Group(low_rank, projection)) if group.params]

    def cut_by_columns(self, model: nn.Module, context: RunContext) -> Collection[torch.Tensor]:
        """Return the matrices that are projected on the left: a column of the gradient is projected whole."""
        from harness.methods._projection import basis_for

        settings = self.projection()
        if settings is None:
            return ()
        low_rank, projected = settings.low_rank(), projected_weights(settings, context)
        return [
            p
            for p in model.parameters()
            if id(p) in projected and basis_for(p.shape, low_rank.rank, low_rank.projection_side).side == "left"
        ]

    def build_projection(
        self, settings: ProjectionSettings, names: Sequence[str], context: RunContext
    ) -> LowRankProjection:
        """Return the projection of the matrices with these names."""
        from harness.methods._projection import LowRankProjection

        return LowRankProjection(settings.low_rank(), streams=context.torch_generator, read_scalar=context.read_scalar)

    def refreshes_on_activation(self) -> bool:
        """Return whether a block that becomes active again gets new projectors, whatever the age of its old ones."""
        return False

    def declare(self, model: nn.Module, context: RunContext) -> Declaration | None:
        """Return what will be trained, the state that takes, and when projectors are computed anew."""
        from harness.methods._declared import declared_parts, trained_of

        settings, decoder = self.projection(), context.decoder
        if settings is None:
            return super().declare(model, context)
        assert settings.update_gap is not None and settings.update_gap_counter is not None
        trained = trained_of(self.trained_parameters(model, context), decoder, projected_weights(settings, context))
        blocks, others = declared_parts(
            trained, len(decoder.blocks), self.config, settings, num_ranks=context.num_ranks
        )
        projection = DeclaredProjection(
            update_gap=settings.update_gap,
            update_gap_counter=settings.update_gap_counter,
            refresh_on_activation=self.refreshes_on_activation(),
            scale=min((settings.size_of_update(one.shape) for one in trained if one.projected), default=1.0),
        )
        full_rank = [one.name for one in trained if one.projected and min(one.shape) <= settings.low_rank().rank]
        inside = [one for one in trained if isinstance(one.part, int) and len(one.shape) > 1]
        unprojected = [one.name for one in inside if not one.projected]
        return Declaration(
            blocks=blocks,
            others=others,
            projection=projection,
            full_rank=tuple(full_rank),
            unprojected=tuple(unprojected),
            damping=self.config.damping,
        )

    def proof(self) -> dict[str, JsonValue]:
        """Return which matrices were projected, to which rank and how often anew, and the seconds that took."""
        if self._optimizer is None or self.projection() is None:
            return {}
        return {"projected": self._optimizer.projections(), "refresh_seconds": self._optimizer.refresh_seconds}


def projected_weights(settings: ProjectionSettings, context: RunContext) -> set[int]:
    """Return the ids of the weights whose gradients are projected, should they be trained.

    They are those of every linear layer inside the decoder's blocks, with ``project_vocabulary`` embedding and head
    too; none where the blocks hold no linear layer. A weight that lies the other way round, as GPT-2's do, is projected
    on the same side, as the side follows from its shape: but for square ones, whose shape tells none.
    """
    from harness.tensors.linear import linear_layers

    decoder = context.decoder
    inside = [layer.weight for block in decoder.blocks for layer in linear_layers(block)]
    outside = [decoder.embedding.weight, decoder.head.weight] if inside and settings.project_vocabulary else []
    return {id(weight) for weight in (*inside, *outside)}
