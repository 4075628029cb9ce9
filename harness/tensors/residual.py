"""Base weights less what an adapter began with: made before training, and again where such an adapter is loaded.

Papers: PiSSA (arXiv 2404.02948), OLoRA (arXiv 2406.01775): W' = W - s B0 A0 is frozen, and s B A beside it is trained
from A0, B0. Reference: the peft 0.21.2 distribution, peft/tuners/lora/layer.py (``pissa_init``, ``olora_init``) for the
residual; peft/tuners/lora/model.py (``subtract_mutated_init``) for the adapter on the unchanged weights, whose A is
[A; A0] and whose B is [B, -B0]: W + s (B A - B0 A0).

Deliberate difference from the reference: a file says which part of it was trained, so that W' can be made again as it
was trained beside, rounding included. peft alone puts such a file on W as the adapter of twice the rank that it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

Factors = tuple[torch.Tensor, torch.Tensor]
"""A (rank, in) and B (out, rank), any float dtype."""
TRAINED_RANK, SCALING = "trained_rank", "scaling"
"""Keys of the metadata of an adapter's file."""


def lora_layers(wrapped: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the modules in which peft put an adapter beside a linear layer, by path."""
    for path, module in wrapped.named_modules():
        if getattr(module, "lora_A", None):
            yield path, module


def by_outputs(layer: Any) -> torch.Tensor:
    """Return the weight that an adapter stands beside as (out, in), a view."""
    weight: torch.Tensor = layer.get_base_layer().weight.detach()
    return weight.t() if layer.fan_in_fan_out else weight


def principal(factors: Factors, scaling: float) -> torch.Tensor:
    """Return s B A in fp32: (out, in)."""
    A, B = factors
    return (scaling * B.float()) @ A.float()


def subtract(layer: Any, factors: Factors) -> None:
    """Replace a layer's base weight W by W - s B A, computed in fp32 and rounded once, to the weight's dtype."""
    base = layer.get_base_layer().weight
    rest = (by_outputs(layer).float() - principal(factors, layer.scaling["default"])).to(base.dtype)
    base.data = rest.t().contiguous() if layer.fan_in_fan_out else rest


def restore(wrapped: nn.Module, metadata: Mapping[str, str]) -> None:
    """Bring a model with an adapter on unchanged weights to the residual and the adapter that were trained.

    Args:
        wrapped: By peft, holding [A; A0] and [B, -B0].
        metadata: Of the adapter's file; without the rank that was trained nothing is done.
    """
    if TRAINED_RANK not in metadata:
        return
    rank, scaling = int(metadata[TRAINED_RANK]), float(metadata[SCALING])
    for _, layer in lora_layers(wrapped):
        A, B = layer.lora_A["default"], layer.lora_B["default"]
        both_A, both_B = A.weight.detach(), B.weight.detach()
        layer.scaling["default"], layer.r["default"] = scaling, rank
        subtract(layer, (both_A[rank:], -both_B[:, rank:].contiguous()))
        A.weight.data, B.weight.data = both_A[:rank].clone(), both_B[:, :rank].contiguous()
        A.out_features = B.in_features = rank
