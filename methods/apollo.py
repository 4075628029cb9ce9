"""APOLLO and APOLLO-Mini: the gradient itself moves the weights, scaled by what Adam does in a random subspace of it.

Paper: APOLLO (arXiv 2412.05270), algorithm 1; Mini is rank 1 with one factor a matrix.
Reference: zhuhanqing/APOLLO@76b3472:apollo_torch/apollo.py, the apollo-torch 1.0.3 distribution. Its licence is
CC-BY-NC: what is here is written from the formulas, and compared with it number by number.

Deliberate differences from the reference:
- projectors are drawn from streams named by matrix and refresh, so that matrices of equal shape never share one (there
  they do in the per-layer mode), and a matrix that is thawed later has one (there that is a KeyError);
- a seed may be kept in the place of a projector, as the paper counts memory; the reference keeps the projector;
- limiter, zero gradients, sides and ranks: see ``methods/_scaling.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import model_validator

from harness.method import METHODS, RunContext
from harness.methods._projected import ProjectedMethod
from harness.methods._scaling_settings import ApolloSettings
from harness.methods._settings import AdamWSettings, ProjectionSettings

if TYPE_CHECKING:
    from harness.methods._projection import LowRankProjection


class ApolloConfig(ApolloSettings, AdamWSettings):
    """Settings of APOLLO."""

    @model_validator(mode="after")
    def _projection_is_whole(self) -> ApolloConfig:
        self.low_rank()
        return self


@METHODS.register("apollo")
class Apollo(ProjectedMethod):
    """Full-parameter training with gradients scaled by channel or as a whole."""

    Config: ClassVar[type[ApolloConfig]] = ApolloConfig
    config: ApolloConfig
    summary = "full-parameter training, gradients of the blocks' linear layers scaled by Adam's norms in a subspace"

    def projection(self) -> ProjectionSettings | None:
        """Return the settings: the blocks' linear layers are always projected."""
        return self.config

    def build_projection(
        self, settings: ProjectionSettings, names: Sequence[str], context: RunContext
    ) -> LowRankProjection:
        """Return the projection of the matrices with these names."""
        from harness.methods._scaling import ApolloProjection

        assert isinstance(settings, ApolloSettings)
        return ApolloProjection(
            settings,
            names=names,
            streams=context.torch_generator,
            read_scalar=context.read_scalar,
            sum_over_ranks=context.sum_over_ranks if context.num_ranks > 1 else None,
        )
