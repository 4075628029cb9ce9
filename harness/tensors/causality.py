"""Which models are causal in every layer, by what was read of their code: nothing behind a token reaches it.

Rows of such a model can be padded on the right, without an attention mask, and share a batch, and no token's output
moves but by rounding. Of every other model nothing is taken for granted: attention may not be causal in every layer,
layers may carry a state along the row or route tokens to experts under a shared capacity, positions may come from the
mask.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from harness.tensors.sharded import class_of

CAUSAL_ARCHITECTURES = frozenset({"gemma", "gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3"})
"""``model_type`` of the decoders whose code was read, transformers 5.23.0, models/<type>/modeling_<type>.py: without
``attention_mask`` positions count from 0 in each row, as with one; ``create_causal_mask`` and
``create_sliding_window_causal_mask`` (masking_utils.py) give causality and the window, whether or not a mask is given;
nothing else but attention reads the mask, and no layer mixes tokens in another way."""
CAUSAL_LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Entries of ``layer_types`` that are causal attention; there are linear, chunked and recurrent ones, too."""
ATTENTION = frozenset({"eager", "sdpa"})
"""Implementations of attention in transformers that were read: both keep to causality where no mask is given."""


def is_known_causal(model: nn.Module, *, other_attention: Collection[str] = ()) -> bool:
    """Return whether a model is known to be causal throughout, judged by what it is: configuration and modules.

    True only for a model of transformers' own code in ``CAUSAL_ARCHITECTURES``, wrapped by peft or not, all of whose
    attention is causal, of a known implementation and without dropout, whose random draws a mask would change.

    Args:
        model: As it is run, after a method has prepared it.
        other_attention: Names of registered attention functions that stand for ``sdpa``, as planning's do.
    """
    from transformers import PreTrainedModel

    peft_configs = getattr(model, "peft_config", {})
    if any(getattr(config, "is_prompt_learning", False) for config in peft_configs.values()):
        return False  # virtual tokens stand before the row, under the mask
    modules = list(model.modules())
    models = [module for module in modules if isinstance(module, PreTrainedModel)]
    if not models or any(_is_unknown(part, ATTENTION | set(other_attention)) for part in models):
        return False
    attention = [module for module in modules if type(module).__name__.endswith("Attention")]
    causal = [getattr(module, "is_causal", False) for module in attention]
    return bool(causal) and all(flag is True for flag in causal)


def _is_unknown(model: nn.Module, attention: Collection[str]) -> bool:
    """Return whether a model of transformers is, by class and configuration, not known to be causal throughout."""
    config: Any = model.config
    settings = vars(config)
    return (
        config.model_type not in CAUSAL_ARCHITECTURES
        or not class_of(model).__module__.startswith(f"transformers.models.{config.model_type}.")
        or config._attn_implementation not in attention
        or settings.get("is_causal") is False
        or any(value for name, value in settings.items() if "bidirectional" in name)
        or bool(settings.get("attention_dropout"))
        or not set(settings.get("layer_types") or ()) <= CAUSAL_LAYERS
    )
