"""What an optimizer keeps for its parameters, in tensors and in bytes, and the hooks on all of its parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from harness.method import StepOptimizer
from harness.tensors.sharded import local


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


def state_bytes_of(optimizer: StepOptimizer, parameter: torch.Tensor) -> int:
    """Return the bytes that the optimizer's ``state`` holds for one parameter."""
    return storage_bytes(tensors_in(optimizer.state.get(parameter)))


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the storages behind tensors, each counted once and whole, as far as they are here."""
    storages = {storage._cdata: storage.nbytes() for storage in (local(one).untyped_storage() for one in tensors)}
    return sum(storages.values())


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return every tensor in nested dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in inner for tensor in tensors_in(part)]
