"""Where memory is meant to lie and what for, said by who allocates it, in measurements and predictions alike.

On a CPU host and device cannot be told apart by looking at a tensor, so whoever moves one says so: what is allocated
inside ``with on_host():`` counts as host memory. What an optimizer holds is told from what it held at a step's end;
of state that has left the device by then, ``with optimizer_state():`` says so where it is allocated.

Tensors without storage are the CPU's whatever device is planned, so planning says which one it is: what is done in
another way on a CPU is then planned as it will be done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_HOST: ContextVar[bool] = ContextVar("harness_on_host", default=False)
_STATE: ContextVar[bool] = ContextVar("harness_optimizer_state", default=False)
_PLANNED: ContextVar[str] = ContextVar("harness_planned_for", default="cpu")


@contextmanager
def on_host() -> Iterator[None]:
    """Count what is allocated inside as host memory."""
    token = _HOST.set(True)
    try:
        yield
    finally:
        _HOST.reset(token)


def meant_for_host() -> bool:
    """Return True inside :func:`on_host`."""
    return _HOST.get()


@contextmanager
def optimizer_state() -> Iterator[None]:
    """Count what is allocated inside as an optimizer's state."""
    token = _STATE.set(True)
    try:
        yield
    finally:
        _STATE.reset(token)


def meant_for_state() -> bool:
    """Return True inside :func:`optimizer_state`."""
    return _STATE.get()


@contextmanager
def planned_for(device: str) -> Iterator[None]:
    """Let tensors without storage stand for those of a type of device inside: ``cpu``, ``cuda``."""
    token = _PLANNED.set(device)
    try:
        yield
    finally:
        _PLANNED.reset(token)


def computed_on_cpu(tensor: torch.Tensor) -> bool:
    """Return whether a CPU computes with a tensor, or will where it is planned."""
    return tensor.device.type == "cpu" and _PLANNED.get() == "cpu"
