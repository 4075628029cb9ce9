"""Whether a model's outputs depend on what follows, found by trying: such a model has no log-likelihoods of a text.

A model with bidirectional attention sees the continuation that it is to predict. Configurations say so in many ways;
two rows that differ in their last token alone say it in one.
"""

from __future__ import annotations

from typing import Any

import torch

from harness.errors import HarnessError

PROBED_TOKENS = 8
SMALLEST_CHANGE = 1e-4
"""Mean change of the logits, over their mean size, that is no rounding in fp32. Chosen by us."""
ROUNDINGS = 4
"""Of the model's dtype, that the same may come to in a coarser one. Chosen by us."""


@torch.no_grad()
def refuse_looking_ahead(model: Any, device: torch.device) -> None:
    """Refuse a model whose outputs at a token change with a later one.

    Args:
        model: A transformers language model on ``device``, in evaluation mode.
        device: Where inputs go.

    Raises:
        HarnessError: they change.
    """
    tokens = torch.arange(PROBED_TOKENS, device=device).repeat(2, 1) + 1
    tokens[1, -1] += 1
    logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[:, :-1]
    allowed = max(SMALLEST_CHANGE, ROUNDINGS * torch.finfo(logits.dtype).eps)
    first, second = logits.double()
    change = float((first - second).abs().mean() / first.abs().mean().clamp_min(1e-30))
    if change > allowed:
        raise HarnessError(
            f"the model ({model.config.model_type}) sees tokens that follow: what it says of a token changes by "
            f"{change:.0%} with the next one, so that no text has a likelihood under it; score a causal language model"
        )
