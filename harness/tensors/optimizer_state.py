"""What an optimizer keeps for its parameters, in tensors and in bytes, and the hooks on all of its parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from harness.method import StepOptimizer


def on_every_parameter(optimizer: StepOptimizer, hook: Any) -> list[Any]:
    """Register a post-accumulate hook on every parameter of the optimizer, frozen now or not; return the handles."""
    handles = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            trainable = parameter.requires_grad
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(hook))
            parameter.requires_grad_(trainable)
    return handles


def state_tensors(optimizer: StepOptimizer) -> list[torch.Tensor]:
    """Return every tensor of the optimizer's state that lies on the device.

    An optimizer that moves states itself, or holds tensors elsewhere than in ``state``, says what is on the device
    through ``device_tensors()``: on a CPU the two places cannot be told apart by looking at the tensors.
    """
    own = getattr(optimizer, "device_tensors", None)
    if own is not None:
        return list(own())
    device = optimizer.param_groups[0]["params"][0].device
    return [tensor for tensor in _tensors_in(list(optimizer.state.values())) if tensor.device.type == device.type]


def optimizer_state_bytes(optimizer: StepOptimizer) -> tuple[int, int]:
    """Return the bytes of optimizer state on the device and on the host, each storage counted once and whole."""
    own = getattr(optimizer, "state_bytes", None)
    if own is not None:
        found = own()
        return int(found["device"]), int(found["host"])
    on_device = storage_bytes(state_tensors(optimizer))
    return on_device, storage_bytes(_tensors_in(list(optimizer.state.values()))) - on_device


def state_bytes_of(optimizer: StepOptimizer, parameter: torch.Tensor) -> int:
    """Return the bytes that the optimizer's ``state`` holds for one parameter."""
    return storage_bytes(_tensors_in(optimizer.state.get(parameter)))


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the storages behind tensors, each counted once and whole."""
    storages = {storage._cdata: storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())


def _tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in inner for tensor in _tensors_in(part)]
