"""Full fine-tuning: every parameter, one AdamW.

Paper: AdamW (arXiv 1711.05101). Reference: torch.optim.AdamW, which ``adamw_rule = "torch"`` equals bit by bit
where the moments have the dtype of the weights.

Deliberate difference: weight decay reaches norms and embeddings too; the Trainer of transformers exempts norms and
biases. No published configuration here uses a decay other than 0.
"""

from __future__ import annotations

from harness.method import METHODS
from harness.methods._settings import AdamWSettings
from harness.methods._trained import TrainedMethod


@METHODS.register("full")
class Full(TrainedMethod):
    """Every parameter is trained at every step."""

    Config = AdamWSettings
    summary = "full fine-tuning with AdamW"
