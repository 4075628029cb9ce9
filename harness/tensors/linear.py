"""What counts as a linear layer of a decoder, and which way round its weight lies.

Source: transformers, pytorch_utils.py, ``Conv1D``: GPT-2 and its kin multiply by a weight of (in, out) features, the
transpose of ``nn.Linear``'s.
"""

from __future__ import annotations

import torch
from torch import nn


def linear_layers(module: nn.Module) -> list[nn.Module]:
    """Return the linear layers inside a module, itself among them, in the order of their names' definition."""
    from transformers.pytorch_utils import Conv1D

    return [one for one in module.modules() if isinstance(one, (nn.Linear, Conv1D))]


def weight_of(layer: nn.Module) -> torch.Tensor:
    """Return the weight of a linear layer, (out_features, in_features), a view where it lies the other way round; of an
    embedding (words, width)."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.t() if type(layer).__name__ == "Conv1D" else weight


def shape_of(layer: nn.Module) -> tuple[int, ...]:
    """Return the shape of a layer's weight as it lies; of one that is packed that of what it stands for."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else tuple(weight.shape)


def stacked_weights(module: nn.Module) -> list[str]:
    """Return the names of weights that are stacks of matrices, as fused experts are, and no convolution's kernels."""
    kernels = {id(p) for one in module.modules() if isinstance(one, nn.modules.conv._ConvNd) for p in one.parameters()}
    return [name for name, p in module.named_parameters() if p.dim() == 3 and id(p) not in kernels]
