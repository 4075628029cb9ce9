"""Fira: GaLore's update, and beside it what the projection leaves out of the gradient, scaled as Adam scales the rest.

Paper: Fira (arXiv 2410.01623).
Reference: xichen-fy/Fira@5c28b13:optimizer_torch/fira_adamw.py and gradient_projection.py, the fira 1.0.2 distribution.

As the reference has it, the factor alpha (``scale``) is inside what is left out, too: for alpha other than 1 that is
not what the projection leaves out. Deliberate differences: those of ``methods/galore.py`` and ``methods/_scaling.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import model_validator

from harness.method import METHODS, RunContext
from harness.methods._projected import ProjectedMethod
from harness.methods._scaling_settings import ScalingSettings
from harness.methods._settings import AdamWSettings, ProjectionSettings

if TYPE_CHECKING:
    from harness.methods._projection import LowRankProjection


class FiraConfig(ScalingSettings, AdamWSettings):
    """Settings of Fira."""

    @model_validator(mode="after")
    def _projection_is_whole(self) -> FiraConfig:
        self.low_rank()
        return self


@METHODS.register("fira")
class Fira(ProjectedMethod):
    """Full-parameter training with low-rank projected gradients and what the projection leaves out of them."""

    Config = FiraConfig
    config: FiraConfig
    summary = "full-parameter training, gradients projected to a low rank, what that leaves out added as it is, scaled"

    def projection(self) -> ProjectionSettings | None:
        """Return the settings: the blocks' linear layers are always projected."""
        return self.config

    def build_projection(
        self, settings: ProjectionSettings, names: Sequence[str], context: RunContext
    ) -> LowRankProjection:
        """Return the projection of the matrices with these names."""
        from harness.methods._scaling import FiraProjection

        assert isinstance(settings, ScalingSettings)
        return FiraProjection(
            settings,
            names=names,
            streams=context.torch_generator,
            read_scalar=context.read_scalar,
            sum_over_ranks=context.sum_over_ranks if context.num_ranks > 1 else None,
        )
