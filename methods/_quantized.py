"""Adapters beside quantized weights, put beside plain ones, where they can be merged.

peft (0.21.2, tuners/lora/bnb.py, ``merge``) quantizes to 4 bits anew what it merges, and leaves packed layers;
what is exported here is a model of the base architecture. It computes another function than the one that was trained
and scored: there the adapters' outputs were added to those of 4-bit weights; here adapters are added to what these
stand for, and rounded to its precision.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from harness.tensors.quantized import dequantize, quantized_layers


def on_plain_weights(wrapped: nn.Module) -> nn.Module:
    """Return peft's model with its adapters on dequantized weights; as it is where nothing is quantized.

    Args:
        wrapped: peft's model; its base is changed in place.
    """
    import peft

    model: Any = wrapped
    if not quantized_layers(model):
        return wrapped
    values = {key: tensor.clone() for key, tensor in peft.get_peft_model_state_dict(model).items()}
    config = model.peft_config[model.active_adapter]
    base: Any = model.unload()
    dequantize(base, quantized_layers(base))
    base.is_loaded_in_4bit = False
    plain: nn.Module = peft.get_peft_model(base, config, autocast_adapter_dtype=False)
    known = {name.replace(".default.", "."): p for name, p in plain.named_parameters()}
    for key, tensor in values.items():
        known[key].data = tensor
    plain.eval()
    return plain
