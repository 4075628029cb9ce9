"""OwLore, later OWS: blocks drawn by their outlier ratios, gradients of their linear layers projected to a low rank.

Paper: OwLore/OWS (arXiv 2405.18380). Reference: pixeli99/OwLore@e415973:src/lmflow/pipeline/finetuner.py.
Paper and code differ (rank, gap, state of frozen blocks): see ``owlore`` and ``owlore-code`` in suites/methods.toml.

Deliberate differences from the reference:
- outlier ratios are computed from the checkpoint, where the code opens a file under a name that it does not have;
- linear layers inside blocks are projected by their place, where the code looks for ``attn`` and ``mlp`` in names;
- state of blocks that are frozen again can be dropped or moved to the host; a projector can be renewed on activation;
- ``projected = false`` is the full-rank variant (``ows-fullrank``); draws have a generator of their own.
"""

from __future__ import annotations

from dataclasses import fields
from typing import ClassVar

from pydantic import model_validator

from harness.method import METHODS
from harness.methods._layer_sampled import LayerSampledConfig, LayerSampledMethod
from harness.methods._projected import ProjectedMethod
from harness.methods._settings import LowRank, ProjectionSettings
from harness.settings import Implied


class OwloreConfig(ProjectionSettings, LayerSampledConfig):
    """Settings of OwLore."""

    implied: ClassVar[Implied] = {
        **LayerSampledConfig.implied,
        "projected": ((False, dict.fromkeys((*(each.name for each in fields(LowRank)), "refresh_on_activation"))),),
    }
    projected: bool
    """False: full-rank updates of the drawn blocks."""
    refresh_on_activation: bool | None = None
    """Compute a new projector when a block becomes active again, whatever the age of its old one."""

    @model_validator(mode="after")
    def _projection_given(self) -> OwloreConfig:
        if not self.projected:
            given = self.given() + (["refresh_on_activation"] if self.refresh_on_activation is not None else [])
            if given:
                raise ValueError(f"projected = false takes no {', '.join(given)}: use the label ows-fullrank")
            return self
        self.low_rank()
        if self.refresh_on_activation is None:
            raise ValueError("projection needs refresh_on_activation")
        return self


@METHODS.register("owlore")
class Owlore(LayerSampledMethod, ProjectedMethod):
    """Outlier-weighted layer sampling with low-rank projected gradients."""

    Config = OwloreConfig
    config: OwloreConfig
    summary = "a few blocks at a time, drawn by their outlier ratios, gradients projected to a low rank"

    def projection(self) -> ProjectionSettings | None:
        """Return the settings of the projection, or None for the full-rank variant."""
        return self.config if self.config.projected else None

    def refreshes_on_activation(self) -> bool:
        """Return what the settings say."""
        return bool(self.config.refresh_on_activation)
