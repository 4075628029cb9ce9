"""Puts a kept adapter on its base model exactly as it was scored: every value of the file in its own precision.

peft (0.21.2) makes an adapter in the precision of its base and then casts bf16 ones to fp32 unless told otherwise,
warns of parameters that the file lacks and drops those that it does not know; merged, part of it is rounded away.
Of an adapter that began as a part of the base weights, the residual that it was trained beside is made again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from harness.errors import HarnessError
from harness.tensors.residual import restore

WEIGHTS = "adapter_model.safetensors"


def load_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """Return a model with an adapter on it, unmerged, in evaluation mode.

    Args:
        model: The base that the adapter was trained on; it is wrapped in place.
        folder: What ``save_pretrained`` of the adapter wrote.

    Raises:
        HarnessError: it cannot be read, or its tensors are not those that its configuration asks for.
    """
    import peft

    file = folder / WEIGHTS
    try:
        saved = load_file(file)
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise HarnessError(f"{file}: is no adapter in safetensors: {error}") from error
    device = next(model.parameters()).device
    try:
        wrapped: Any = peft.PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise HarnessError(f"{folder}: the adapter cannot be put on its base: {first}") from error
    known: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(wrapped)
    places = {tensor.data_ptr(): name for name, tensor in known.items()}
    for fault, names in (("lacks", set(known) - set(saved)), ("holds unknown", set(saved) - set(known))):
        if names:
            raise HarnessError(f"{file}: {fault} {min(names)}, one of {len(names)} tensors that do not fit")
    for parameter in wrapped.parameters():
        name = places.get(parameter.data_ptr())
        if name is None:
            continue
        if saved[name].shape != parameter.shape:
            raise HarnessError(f"{file}: {name} is {tuple(saved[name].shape)}, its base takes {tuple(parameter.shape)}")
        parameter.data = saved[name].to(device)
    restore(wrapped, metadata)
    wrapped.eval()
    assert isinstance(wrapped, nn.Module)
    return wrapped
