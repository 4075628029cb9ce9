"""GaLore: every parameter is trained; gradients of the blocks' linear layers go through a low-rank projection.

Paper: GaLore (arXiv 2403.03507), algorithm 2; section 4.3 for the per-layer update (here ``update_in_backward``).
Reference: the galore-torch 1.0 distribution, galore_torch/adamw.py and galore_projector.py, projection type ``std``.

Deliberate differences from the reference:
- a copied projector in place of a view that keeps a whole singular-vector matrix alive;
- the per-layer update is one optimizer stepped from hooks: it respects gradient accumulation, scheduler and gap as
  they are, where the reference builds an optimizer and a scheduler a parameter and doubles both lengths;
- clipping with the per-layer update is refused, not ignored;
- the randomized projector, and a gap counted by the run's steps, are options beside the reference's.
"""

from __future__ import annotations

from pydantic import model_validator

from harness.method import METHODS
from harness.methods._projected import ProjectedMethod
from harness.methods._settings import AdamWSettings, ProjectionSettings


class GaloreConfig(ProjectionSettings, AdamWSettings):
    """Settings of GaLore."""

    @model_validator(mode="after")
    def _projection_given(self) -> GaloreConfig:
        self.low_rank()
        return self


@METHODS.register("galore")
class Galore(ProjectedMethod):
    """Full-parameter training with low-rank projected gradients."""

    Config = GaloreConfig
    config: GaloreConfig
    summary = "full-parameter training, gradients of the blocks' linear layers projected to a low rank"

    def projection(self) -> ProjectionSettings | None:
        """Return the settings: the blocks' linear layers are always projected."""
        return self.config
