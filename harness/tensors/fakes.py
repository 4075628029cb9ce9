"""Tensors without storage in the place of a model's own: what passes through it has shapes and no values."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


def replace_by_fakes(model: nn.Module, mode: TorchDispatchMode, device: str = "cpu") -> None:
    """Replace every parameter and buffer by a tensor that a mode makes; what was one tensor stays one.

    Args:
        model: Changed in place.
        mode: Makes tensors without storage.
        device: The name of their place.
    """
    known: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in known:
            made: torch.Tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            if isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, requires_grad=tensor.requires_grad)
            known[id(tensor)] = made
        return known[id(tensor)]

    kept = []  # a freed tensor's id must not be met again
    with mode:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        kept.append(tensor)
                        tensors[name] = fake(tensor)  # type: ignore[assignment]
