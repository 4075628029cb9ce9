"""Blocks drawn by their outlier ratios, gradients of their linear layers scaled as APOLLO scales them.

Papers: OwLore/OWS (arXiv 2405.18380) for the draws, APOLLO (arXiv 2412.05270) for the update. Nobody published the two
together: apollo-torch 1.0.3 has a seed for what requires gradients when it is built alone, and ends with a KeyError
when another block is thawed.

No reference: the parts are those of ``owlore`` and ``apollo``.
"""

from __future__ import annotations

from harness.method import METHODS
from harness.methods._layer_sampled import LayerSampledConfig, LayerSampledMethod
from harness.methods.apollo import Apollo, ApolloConfig


class OwsApolloConfig(ApolloConfig, LayerSampledConfig):
    """Settings of APOLLO on drawn blocks."""

    refresh_on_activation: bool
    """Draw a new projector when a block becomes active again, whatever the age of its old one."""


@METHODS.register("ows-apollo")
class OwsApollo(LayerSampledMethod, Apollo):
    """Outlier-weighted layer sampling with gradients scaled by channel or as a whole."""

    Config = OwsApolloConfig
    config: OwsApolloConfig
    summary = "a few blocks at a time, drawn by their outlier ratios, gradients scaled as in APOLLO"

    def refreshes_on_activation(self) -> bool:
        """Return what the settings say."""
        return self.config.refresh_on_activation
