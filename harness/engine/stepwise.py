"""A plain optimizer of ``torch.optim`` as the engine needs it, for methods that bring one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from harness.errors import HarnessError
from harness.method import Method, StateBytes, StepOptimizer
from harness.tensors.optimizer_state import storage_bytes, tensors_in


class Stepwise(torch.optim.Optimizer):
    """Steps an optimizer of ``torch.optim`` for some of its parameters at a time, and accounts for its state.

    It has a state of its own for each parameter, made at the parameter's first update: those that make it when they are
    built, or that step all parameters together (``LBFGS``), do otherwise than they would alone. Its state stays on the
    device, and it refreshes nothing. Planning runs it on fake tensors, so it must read no value of a tensor in a step.
    """

    def __init__(self, wrapped: torch.optim.Optimizer) -> None:
        """Take an optimizer over every parameter that may ever be trained, frozen now or not."""
        self.wrapped = wrapped
        self.defaults = wrapped.defaults
        self._group_of = {p: index for index, group in enumerate(wrapped.param_groups) for p in group["params"]}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Return the wrapped optimizer's own groups."""
        return self.wrapped.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """Return the wrapped optimizer's own state."""
        return self.wrapped.state

    @property
    def refresh_seconds(self) -> float | None:
        """Return None: nothing is refreshed."""
        return None

    def begin_step(self, step: int) -> None:
        """Take the number of the step, which no optimizer of ``torch.optim`` asks for."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that holds a gradient."""
        assert closure is None
        self.wrapped.step()

    def step_parameters(self, params: Iterable[torch.Tensor]) -> None:
        """Update these parameters and nothing else: meanwhile they are all that the groups hold."""
        wanted: dict[int, list[torch.Tensor]] = {}
        for p in params:
            wanted.setdefault(self._group_of[p], []).append(p)
        held = [group["params"] for group in self.param_groups]
        self._opt_called = True  # torch's schedulers warn where step() was never called
        try:
            for index, group in enumerate(self.param_groups):
                group["params"] = wanted.get(index, [])
            self.wrapped.step()
        finally:
            for group, every in zip(self.param_groups, held, strict=True):
                group["params"] = every

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Free the gradients."""
        self.wrapped.zero_grad(set_to_none)

    def state_bytes(self) -> StateBytes:
        """Return the bytes of the state tensors, by where they lie."""
        on_device = storage_bytes(self.device_tensors())
        return {"device": on_device, "host": storage_bytes(tensors_in(list(self.state.values()))) - on_device}

    def device_tensors(self) -> list[torch.Tensor]:
        """Return the state tensors on the parameters' device: torch keeps step counters on the host beside one."""
        device = self.param_groups[0]["params"][0].device.type
        return [tensor for tensor in tensors_in(list(self.state.values())) if tensor.device.type == device]

    def expire_projectors(self, params: Iterable[torch.Tensor]) -> bool:
        """Return False: nothing is computed anew."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state and groups."""
        return self.wrapped.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them; tensors that torch would cast to the dtype of their parameter keep their own."""
        self.wrapped.load_state_dict(state_dict)
        params = [p for group in self.param_groups for p in group["params"]]
        for index, saved in state_dict["state"].items():
            own = self.state[params[int(index)]]
            for key, value in saved.items():
                if isinstance(value, torch.Tensor):
                    own[key] = value.detach().to(own[key].device, copy=True)


def refuse_other_optimizers(method: Method, optimizer: object) -> None:
    """Raise HarnessError where a method built something that cannot step single parameters or tell of its state."""
    if not isinstance(optimizer, StepOptimizer):
        raise HarnessError(
            f"the optimizer of method {type(method).__name__} is a {type(optimizer).__name__}, which lacks what "
            "harness.method.StepOptimizer declares: wrap one of torch.optim in harness.engine.stepwise.Stepwise"
        )
