"""LISA: a few blocks are trained at a time, drawn anew each period; embedding, head and final norm throughout.

Paper: LISA (arXiv 2403.17919), algorithm 1: independent coin flips, state reset each period.
Reference: OptimalScale/LMFlow@f3597db:src/lmflow/pipeline/utils/lisa_trainer.py: exactly so many blocks, uniform,
without replacement, state kept for ever. Both are settings.

No deliberate difference from the paper under the label ``lisa-paper``. Without ``reset_each_period`` a block that is
drawn twice running, embedding, head and final norm keep their state.

Deliberate differences from the reference:
- every block is in the optimizer from the start (built over what requires gradients, it never updates later blocks);
- drawn exactly once at step 0 and then at optimizer-step boundaries, accumulation or not;
- embedding, head and final norm can each be frozen; draws have a generator of their own.
"""

from __future__ import annotations

from harness.method import METHODS
from harness.methods._layer_sampled import LayerSampledConfig, LayerSampledMethod


@METHODS.register("lisa")
class Lisa(LayerSampledMethod):
    """Layer sampling with full-rank updates."""

    Config = LayerSampledConfig
    summary = "a few blocks at a time, drawn anew each period"
