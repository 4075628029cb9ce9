"""The AdamW of every trained method: per-parameter steps, low-rank projection, and state that can be dropped or moved.

Papers: AdamW (arXiv 1711.05101); GaLore (arXiv 2403.03507), algorithm 2.
References: torch.optim.AdamW for ``rule = "torch"``; galore_torch/adamw.py of the galore-torch 1.0 distribution, itself
the AdamW of older transformers, for ``rule = "transformers"`` and for the projection.

Deliberate differences from the references:
- moments have a dtype of their own, and Adam's arithmetic runs in it; with the gradient's dtype it is the references';
- the projector's age is counted apart from Adam's step counter, so that resetting one leaves the other;
- random numbers come from streams named by parameter and update, so that the order of updates does not matter;
- one parameter at a time, never multi-tensor: peak memory holds the temporaries of the largest parameter only, and
  with ``update_slice_elements`` those of so many elements of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import Parameter

from harness.methods._projection import (
    Basis,
    basis_for,
    exact_projector,
    project,
    project_back,
    randomized_projector,
)
from harness.methods._rounding import round_stochastically
from harness.methods._update_rules import adamw_update
from harness.placement import on_host

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
VECTOR = 64
"""Slices hold a multiple of so many elements: the CPU's kernels round bf16 otherwise in what is left after whole
vectors, at most two of 32 elements (AVX-512), so that a cut elsewhere would change bits."""


class AdamW(torch.optim.Optimizer):
    """AdamW that steps single parameters; satisfies :class:`harness.method.StepOptimizer`.

    Every group states ``lr``, ``betas``, ``eps``, ``weight_decay``, ``rule``, ``moment_dtype``, ``master_weights``,
    ``stochastic_rounding``, ``update_slice_elements`` and ``projection`` (None, or rank, update_gap,
    update_gap_counter, projection_side, projector, scale, projector_dtype); its ``params`` are pairs of base-model name
    and parameter.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        streams: Callable[[str], torch.Generator],
        read_scalar: Callable[[torch.Tensor], float],
    ) -> None:
        """Take the parameters.

        Args:
            groups: As above.
            streams: Named random streams: a fresh CPU generator for each name.
            read_scalar: Reads a one-element tensor; used once a projector refresh, to see that the gradient is finite.
        """
        self.global_step = 0
        """The run's optimizer step, for ``update_gap_counter = "global"``; :meth:`begin_step` sets it."""
        self.refresh_seconds = 0.0
        """Wall-clock time spent in projector refreshes, device synchronised."""
        self._streams = streams
        self._read_scalar = read_scalar
        self._updates: dict[str, int] = {}
        self._refreshes: dict[str, int] = {}
        self._offloaded: set[str] = set()
        super().__init__(groups, {})
        self._group_index: dict[torch.Tensor, int] = {}
        self._names: dict[torch.Tensor, str] = {}
        for index, group in enumerate(self.param_groups):
            for name, p in zip(group["param_names"], group["params"], strict=True):
                self._group_index[p] = index
                self._names[p] = name

    # Stepping

    def begin_step(self, step: int) -> None:
        """Tell the number of the optimizer step whose updates follow, 0-based."""
        self.global_step = step

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that holds a gradient."""
        assert closure is None
        self.step_parameters(p for group in self.param_groups for p in group["params"] if p.grad is not None)
        self.global_step += 1

    @torch.no_grad()
    def step_parameters(self, params: Iterable[torch.Tensor]) -> None:
        """Update these parameters, each with a gradient, and nothing else.

        Raises:
            FloatingPointError: a projector is due and the gradient is not finite, or its SVD does not converge.
        """
        self._opt_called = True  # torch's schedulers warn where step() was never called
        for p in params:
            self._update(p, self.param_groups[self._group_index[p]])

    def _update(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        name, state, grad = self._names[p], self.state[p], self.gradient(p)
        assert name not in self._offloaded, f"{name} is updated while its state is on the host"
        projection = group["projection"]
        if projection is not None:
            basis = basis_for(p.shape, projection["rank"], projection["projection_side"])
            if self._refresh_due(name, state, projection):
                self._refresh(name, state, grad, basis, projection)
            grad = project(grad, state["projector"], basis.side)
        dtype = DTYPES[group["moment_dtype"]]
        if "exp_avg" not in state:
            state["step"] = 0
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.zeros_like(grad, dtype=dtype, memory_format=torch.contiguous_format)
        state["step"] += 1
        self._updates[name] = self._updates.get(name, 0) + 1
        target = self._target(p, state, group)
        if projection is None:
            for rows in _row_slices(p, group["update_slice_elements"]):
                part = {key: value[rows] if isinstance(value, torch.Tensor) else value for key, value in state.items()}
                adamw_update(target[rows], grad[rows].to(dtype), part, group, lambda direction: direction)
        else:
            grad = grad.to(dtype)
            projector, scale = state["projector"], projection["scale"]
            adamw_update(target, grad, state, group, lambda d: project_back(d, projector, basis.side).mul_(scale))
        if target is p:
            return
        if group["stochastic_rounding"]:
            stream = f"stochastic_rounding/{name}/{self._updates[name]}"
            target = round_stochastically(target, self._generator(stream, p.device))
        p.copy_(target)

    def gradient(self, p: torch.Tensor) -> torch.Tensor:
        """Return what Adam takes as the gradient of ``p``; a subclass may correct it."""
        assert p.grad is not None, f"{self._names[p]} is updated without a gradient"
        return p.grad

    def _target(self, p: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> torch.Tensor:
        """Return what takes the update: the parameter, its fp32 master, or a temporary fp32 copy to be rounded."""
        if p.dtype == torch.float32:
            return p
        if group["master_weights"]:
            if "master" not in state:
                state["master"] = p.detach().float()
            master: torch.Tensor = state["master"]
            return master
        return p.detach().float() if group["stochastic_rounding"] else p

    # Projectors

    def _refresh_due(self, name: str, state: dict[str, Any], projection: dict[str, Any]) -> bool:
        if "projector" not in state:
            return True
        gap: int = projection["update_gap"]
        if projection["update_gap_counter"] == "global":
            return bool(self.global_step // gap > state["refreshed_at"] // gap)
        return bool(self._updates.get(name, 0) - state["refreshed_at"] >= gap)

    def _refresh(
        self, name: str, state: dict[str, Any], grad: torch.Tensor, basis: Basis, projection: dict[str, Any]
    ) -> None:
        started = _clock(grad)
        state.pop("projector", None)  # freed before the factorisation takes its memory
        if not math.isfinite(self._read_scalar(torch.linalg.vector_norm(grad, math.inf))):
            raise FloatingPointError(f"the gradient of {name} is not finite at step {self.global_step}")
        count = self._refreshes.get(name, 0)
        try:
            if projection["projector"] == "svd":
                projector = exact_projector(grad, basis)
            else:
                projector = randomized_projector(grad, basis, self._streams(f"projector/{name}/{count}"))
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise FloatingPointError(
                f"the projector of {name} could not be computed at step {self.global_step}: {error}"
            ) from error
        state["projector"] = projector.to(DTYPES[projection["projector_dtype"]])
        by_run = projection["update_gap_counter"] == "global"
        state["refreshed_at"] = self.global_step if by_run else self._updates.get(name, 0)
        self._refreshes[name] = count + 1
        self.refresh_seconds += _clock(grad) - started

    def _generator(self, stream: str, device: torch.device) -> torch.Generator:
        generator = self._streams(stream)
        if device.type != "cuda":
            return generator
        return torch.Generator(device).manual_seed(generator.initial_seed())

    # State

    def drop_state(self, params: Iterable[torch.Tensor]) -> None:
        """Free moments, projector, master and step counter of these parameters."""
        for p in params:
            self.state.pop(p, None)
            self._offloaded.discard(self._names[p])

    def offload_state(self, params: Iterable[torch.Tensor]) -> None:
        """Move the state tensors of these parameters to the host."""
        for p in params:
            if p in self.state:
                with on_host():
                    self._move(p, torch.device("cpu"))
                self._offloaded.add(self._names[p])

    def restore_state(self, params: Iterable[torch.Tensor]) -> None:
        """Bring back what :meth:`offload_state` moved; parameters without state there are left alone."""
        for p in params:
            if self._names[p] in self._offloaded:
                self._move(p, p.device)
                self._offloaded.discard(self._names[p])

    def reset_step_counter(self, params: Iterable[torch.Tensor]) -> None:
        """Let the bias correction of these parameters begin again; moments and projectors stay."""
        for p in params:
            if "step" in self.state.get(p, {}):
                self.state[p]["step"] = 0

    def drop_projectors(self, params: Iterable[torch.Tensor]) -> None:
        """Free the projectors of these parameters: the next update computes new ones."""
        for p in params:
            self.state.get(p, {}).pop("projector", None)

    def expire_projectors(self, params: Iterable[torch.Tensor]) -> bool:
        """Let the next update of each of these parameters compute a new projector; return whether one has any.

        Unlike with :meth:`drop_projectors` those of the others stay meanwhile, as in a refresh that is due.
        """
        expired = False
        for p in params:
            state, projection = self.state.get(p, {}), self.param_groups[self._group_index[p]]["projection"]
            if "projector" in state:
                by_run = projection["update_gap_counter"] == "global"
                now = self.global_step if by_run else self._updates.get(self._names[p], 0)
                state["refreshed_at"] = now - projection["update_gap"]
                expired = True
        return expired

    def state_bytes(self) -> dict[str, int]:
        """Return the bytes of the storages behind all state tensors, by place: ``device`` and ``host``.

        Whole storages are counted, each once, so that a view that keeps a larger tensor alive shows.
        """
        totals = {"device": 0, "host": 0}
        seen: set[int] = set()
        for p, tensors in self._state_tensors():
            place = "host" if self._names[p] in self._offloaded else "device"
            for tensor in tensors:
                storage = tensor.untyped_storage()
                if storage._cdata not in seen:
                    seen.add(storage._cdata)
                    totals[place] += storage.nbytes()
        return totals

    def device_tensors(self) -> list[torch.Tensor]:
        """Return the state tensors that are not on the host."""
        return [
            tensor
            for p, tensors in self._state_tensors()
            if self._names[p] not in self._offloaded
            for tensor in tensors
        ]

    def _state_tensors(self) -> Iterable[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Yield each parameter with state and the tensors held for it; a subclass with further tensors adds them."""
        for p, state in self.state.items():
            yield p, [value for value in state.values() if isinstance(value, torch.Tensor)]

    def _move(self, p: torch.Tensor, device: torch.device) -> None:
        state = self.state[p]
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                state[key] = value.to(device, copy=True)

    def projections(self) -> dict[str, dict[str, Any]]:
        """Return side, effective rank, numbers of refreshes and of updates of every projected matrix by name."""
        shown = {}
        for group in self.param_groups:
            if group["projection"] is not None:
                for name, p in zip(group["param_names"], group["params"], strict=True):
                    basis = basis_for(p.shape, group["projection"]["rank"], group["projection"]["projection_side"])
                    refreshes = self._refreshes.get(name, 0)
                    shown[name] = {"side": basis.side, "rank": basis.rank, "num_refreshes": refreshes}
                    shown[name]["num_updates"] = self._updates.get(name, 0)
        return shown

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return ``state`` (tensors and integers by parameter index), ``param_groups`` and ``counters`` (both JSON)."""
        return super().state_dict() | {
            "counters": {
                "global_step": self.global_step,
                "refresh_seconds": self.refresh_seconds,
                "updates": dict(self._updates),
                "refreshes": dict(self._refreshes),
                "offloaded": sorted(self._offloaded),
            }
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned: tensors copied, dtypes kept, offloaded ones on the host.

        Raises:
            ValueError: the groups are not those of this optimizer.
        """
        saved_names = [group["param_names"] for group in state_dict["param_groups"]]
        if saved_names != [group["param_names"] for group in self.param_groups]:
            raise ValueError("the saved optimizer state is of other parameters than this optimizer's")
        counters = state_dict["counters"]
        self.global_step, self.refresh_seconds = int(counters["global_step"]), float(counters["refresh_seconds"])
        self._updates, self._refreshes = dict(counters["updates"]), dict(counters["refreshes"])
        self._offloaded = set(counters["offloaded"])
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})
        params: list[Parameter] = [p for group in self.param_groups for p in group["params"]]
        self.state.clear()
        for index, saved in state_dict["state"].items():
            p = params[int(index)]
            device = torch.device("cpu") if self._names[p] in self._offloaded else p.device
            self.state[p] = {
                key: value.detach().to(device, copy=True) if isinstance(value, torch.Tensor) else value
                for key, value in saved.items()
            }


def _row_slices(p: torch.Tensor, elements: int | None) -> Iterable[Any]:
    """Return indices that cut ``p`` into whole rows of at most ``elements`` in all, as far as ``VECTOR`` allows."""
    if elements is None or p.numel() <= elements:
        return (...,)
    width = p.numel() // len(p)
    aligned = VECTOR // math.gcd(VECTOR, width)  # rows
    rows = max(elements // width // aligned, 1) * aligned
    return (slice(start, start + rows) for start in range(0, len(p), rows))


def _clock(tensor: torch.Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()
