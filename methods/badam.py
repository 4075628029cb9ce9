"""BAdam: block coordinate Adam. One block is trained for a period by an Adam that begins anew with it, then the next.

Paper: BAdam (arXiv 2404.02827). Reference: Ledzy/BAdam@bf989dc:src/badam/block_optim.py, class BlockOptimizer, as in
the badam 1.4 distribution; with ``first_period_steps = interval_steps - 1`` its weights are ours bit by bit.

Deliberate differences from the reference:
- the first period is as long as every other, where the reference's counter makes it one step short; a setting has that;
- weight decay is what the setting says, where the reference loses that of the user's parameter groups and takes the
  default of the wrapped optimizer's constructor (torch's AdamW: 0.01, norms included);
- gradients are cast to fp32 one parameter at a time, not those of the whole block at once (0.81 GB of LLaMA-2-7B);
- masters are saved in checkpoints, so that a resumed run ends in the same bits; the reference's restarts from bf16;
- embedding, head and final norm can be trained at every step, beside the active block (its ``active_modules``), and are
  no blocks of their own (its ``include_embedding`` and ``include_lm_head``);
- the order of a round comes from a generator of its own, not torch's global one.
"""

from __future__ import annotations

from pydantic import model_validator

from harness.method import METHODS
from harness.methods._layer_sampled import LayerSampledConfig, LayerSampledMethod


class BadamConfig(LayerSampledConfig):
    """Settings of BAdam: those of layer sampling, as far as blocks take turns and nothing outlives a period."""

    @model_validator(mode="after")
    def _block_coordinate(self) -> BadamConfig:
        if not self.takes_turns:
            raise ValueError(
                f"method badam takes blocks in turn: set sampling = 'reshuffle', 'tour' or 'descending', not "
                f"'{self.sampling}', or use method lisa"
            )
        if not self.reset_each_period:
            raise ValueError(
                "method badam begins every period without optimizer state: set reset_each_period = true, or use "
                "method lisa"
            )
        return self


@METHODS.register("badam")
class Badam(LayerSampledMethod):
    """Block coordinate descent with Adam."""

    Config = BadamConfig
    summary = "one block at a time, in turn, by an Adam that begins anew with each"
