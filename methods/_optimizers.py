"""The AdamW of every trained method: one parameter at a time, with a projection in front of it where one is given.

Papers: AdamW (arXiv 1711.05101); GaLore (arXiv 2403.03507), algorithm 2, for the place of the projection.
References: torch.optim.AdamW for ``adamw_rule = "torch"``; galore_torch/adamw.py of the galore-torch 1.0 distribution,
itself the AdamW of older transformers, for ``adamw_rule = "transformers"`` and for the projection.

Deliberate differences from the references:
- moments have a dtype of their own, and Adam's arithmetic runs in it; with the gradient's dtype it is the references';
  bf16 moments may be rounded at random as they are stored (``moment_rounding``), 8-bit ones are bitsandbytes'
  (``_eight_bit.py``);
- a projection's age is counted apart from Adam's step counter, so that resetting one leaves the other;
- random numbers come from streams named by parameter and update, so that the order of updates does not matter;
- one parameter at a time, never multi-tensor: peak memory holds the temporaries of the largest parameter only, and
  with ``update_slice_elements`` those of so many elements of it;
- of a parameter that is shared out over processes each updates its own part, with moments of that part; a subspace is
  computed from the whole gradient, alike in every process, and kept whole. What is drawn is drawn for the whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import JsonValue
from torch.nn import Parameter

from harness.methods._eight_bit import EightBitMoments
from harness.methods._held_state import HeldState
from harness.methods._moment_rounding import noise_beside, rounding_update
from harness.methods._settings import AdamWSettings
from harness.methods._update_rules import State, adamw_update, round_stochastically, row_slices
from harness.tensors.dtypes import DTYPES
from harness.tensors.placement import optimizer_state
from harness.tensors.sharded import Lying, gathered, local, place_of


@dataclass(frozen=True)
class Age:
    """How far the run is, and one matrix in it."""

    step: int
    """Of the run's optimizer steps, 0-based."""
    updates: int
    """Of the matrix so far, whatever became of its state."""


class Projection(ABC):
    """A subspace in front of Adam: gradients of matrices go down into it, Adam's directions come up out of it.

    What it holds for a matrix stands in the matrix's optimizer state under names of its own, so that it is dropped,
    moved, counted and saved together with the moments.
    """

    whole: ClassVar[frozenset[str]]
    """Names of the tensors there that every process holds all of; others lie as the matrix does."""

    @abstractmethod
    def due(self, state: State, age: Age) -> bool:
        """Return whether the subspace is computed anew before this update; True where there is none yet."""

    @abstractmethod
    def refresh(self, name: str, grad: torch.Tensor, state: State, age: Age) -> None:
        """Compute the subspace from a gradient: all of it, (rows, columns), any float dtype.

        Raises:
            FloatingPointError: the gradient is not finite, or its factorisation does not converge.
        """

    @abstractmethod
    def down(self, grad: torch.Tensor, state: State, shape: torch.Size) -> torch.Tensor:
        """Return the gradient in the subspace: what the moments are of.

        Args:
            grad: The gradient, or the part of it that this process holds: whole along the side that is projected.
            state: Of the matrix.
            shape: (rows, columns) of the whole matrix.
        """

    @abstractmethod
    def up(
        self, direction: torch.Tensor, low: torch.Tensor, grad: torch.Tensor, state: State, shape: torch.Size
    ) -> torch.Tensor:
        """Return what the matrix moves along, shaped as ``grad``, in a tensor of its own.

        Args:
            direction: Adam's, in the subspace.
            low: The gradient in the subspace, in the dtype in which Adam's arithmetic runs.
            grad: As :meth:`down` had it.
            state: Of the matrix.
            shape: (rows, columns) of the whole matrix.
        """

    @abstractmethod
    def forget(self, state: State) -> None:
        """Free the subspace of a matrix; its moments stay."""

    @abstractmethod
    def expire(self, state: State, age: Age) -> bool:
        """Let the subspace be due at the next update and stay until then; return whether there is one."""

    @property
    @abstractmethod
    def seconds(self) -> float:
        """Return the wall-clock time spent in refreshes, device synchronised."""

    @abstractmethod
    def shown(self, name: str, shape: torch.Size) -> dict[str, JsonValue]:
        """Return what a record says of a matrix."""

    @abstractmethod
    def counters(self) -> dict[str, JsonValue]:
        """Return what it counts beside the state of single matrices."""

    @abstractmethod
    def load_counters(self, counters: dict[str, Any]) -> None:
        """Restore what :meth:`counters` returned."""


@dataclass(frozen=True)
class Group:
    """Parameters that are updated alike."""

    params: Sequence[tuple[str, Parameter]]
    """By their names in the base model."""
    projection: Projection | None = None
    learning_rate: float | None = None
    """In the place of the run's, which a schedule scales alike; None: the run's."""


class AdamW(HeldState):
    """AdamW that steps single parameters; satisfies :class:`harness.method.StepOptimizer`."""

    def __init__(
        self,
        groups: Sequence[Group],
        settings: AdamWSettings,
        *,
        learning_rate: float,
        streams: Callable[[str], torch.Generator],
    ) -> None:
        """Take the parameters.

        Args:
            groups: Of parameters.
            settings: Of every group.
            learning_rate: Of every group without one of its own, until a schedule sets another.
            streams: Named random streams: a fresh CPU generator for each name.
        """
        self.global_step = 0
        """The run's optimizer step; :meth:`begin_step` sets it."""
        self._settings = settings
        self._streams = streams
        self._eight_bit = EightBitMoments() if settings.moment_dtype == "int8" else None
        self._updates: dict[str, int] = {}
        self._group_index: dict[torch.Tensor, int] = {
            p: index for index, group in enumerate(groups) for _, p in group.params
        }
        self._projections = [group.projection for group in groups]
        rates = [learning_rate if group.learning_rate is None else group.learning_rate for group in groups]
        super().__init__(
            [{"params": list(group.params), "lr": rate} for group, rate in zip(groups, rates, strict=True)]
        )

    def begin_step(self, step: int) -> None:
        """Take the number of the optimizer step whose updates follow, 0-based."""
        self.global_step = step

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that holds a gradient."""
        assert closure is None
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.step_parameters(params if self.stream is None else self.stream.in_order(params))
        self.global_step += 1

    @torch.no_grad()
    def step_parameters(self, params: Iterable[torch.Tensor]) -> None:
        """Update these parameters, each with a gradient, and nothing else.

        Raises:
            FloatingPointError: as :meth:`Projection.refresh`.
        """
        self._opt_called = True  # torch's schedulers warn where step() was never called
        for p in params:
            if self.stream is None:
                self._update(p)
            else:
                self.stream.begin(p)
                self._update(p)
                self.stream.end(p)

    def _update(self, p: torch.Tensor) -> None:
        name, state, grad, projection = self._names[p], self.state[p], self.gradient(p), self._projection(p)
        assert name not in self._offloaded, f"{name} is updated while its state is on the host"
        low = grad
        if projection is not None:
            age = self._age(p)
            if projection.due(state, age):
                projection.refresh(name, gathered(grad, p), state, age)
            low = projection.down(grad, state, p.shape)
        settings = self._settings
        if "exp_avg" not in state:
            with optimizer_state():
                state |= {"step": 0, **self._moments_of(low, p)}
        state["step"] += 1
        self._updates[name] = self._updates.get(name, 0) + 1
        own = local(p)
        target = self._target(p, state)
        works_in = self._works_in(low)
        if projection is None:
            for rows in row_slices(own, None if self._eight_bit else settings.update_slice_elements):
                part = {key: value[rows] if isinstance(value, torch.Tensor) else value for key, value in state.items()}
                start = 0 if rows is ... else rows.start * (own.numel() // len(own))
                self._move_by(p, target[rows], low[rows].to(works_in), part, start=start)
        else:
            low = low.to(works_in)
            self._move_by(p, target, low, state, up=lambda one: projection.up(one, low, grad, state, p.shape))
        if target is own:
            return
        if settings.stochastic_rounding:
            stream = f"stochastic_rounding/{name}/{self._updates[name]}"
            target = round_stochastically(target, self._generator(stream, p.device), place_of(p))
        own.copy_(target)

    def _move_by(
        self,
        p: torch.Tensor,
        target: torch.Tensor,
        low: torch.Tensor,
        state: State,
        *,
        start: int = 0,
        up: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Update ``target``, all that this process holds of a parameter or rows of it, and the moments of its gradient.

        Args:
            p: The parameter.
            target: What takes the update.
            low: The gradient that the moments are of, of the same rows.
            state: The moments of the same rows.
            start: How many numbers of the gradient that the moments are of this process holds before the rows.
            up: As :func:`adamw_update` has it.
        """
        settings, lr = self._settings, self.param_groups[self._group_index[p]]["lr"]
        if self._eight_bit is not None:
            self._eight_bit.update(target, low, state, lr, settings, up=up)
            return
        if settings.moment_rounding == "nearest":
            adamw_update(target, low, state, lr, settings, up=up)
            return
        name = self._names[p]
        stream = self._streams(f"moment_rounding/{name}/{self._updates[name]}")
        noise = noise_beside(stream, low, start, p, self.state[p]["exp_avg"])
        rounding_update(target, low, state, lr, settings, noise=noise, up=up)

    def _moments_of(self, low: torch.Tensor, p: torch.Tensor) -> State:
        """Return moments that are zero, of a parameter's gradient as it enters them."""
        if self._eight_bit is not None:
            place = place_of(p)
            return self._eight_bit.begin(low, low.shape if place is None else place.shape_of_whole(low.shape))
        like: dict[str, Any] = {"dtype": DTYPES[self._settings.moment_dtype], "memory_format": torch.contiguous_format}
        return {moment: torch.zeros_like(low, **like) for moment in ("exp_avg", "exp_avg_sq")}

    def _works_in(self, low: torch.Tensor) -> torch.dtype:
        """Return the dtype in which Adam takes a gradient; 8-bit moments take it as it is."""
        if self._eight_bit is not None:
            return low.dtype
        return DTYPES[self._settings.moment_dtype] if self._settings.moment_rounding == "nearest" else torch.float32

    def gradient(self, p: torch.Tensor) -> torch.Tensor:
        """Return what Adam takes as the gradient of what this process holds of ``p``; a subclass may correct it."""
        assert p.grad is not None, f"{self._names[p]} is updated without a gradient"
        return local(p.grad)

    def _target(self, p: torch.Tensor, state: State) -> torch.Tensor:
        """Return what takes the update: the parameter, its fp32 master, or a temporary fp32 copy to be rounded.

        Each is of what this process holds.
        """
        own = local(p)
        if p.dtype == torch.float32:
            return own
        if self._settings.master_weights:
            if "master" not in state:
                with optimizer_state():
                    state["master"] = own.detach().float()
            master: torch.Tensor = state["master"]
            return master
        return own.detach().float() if self._settings.stochastic_rounding else own

    def _generator(self, stream: str, device: torch.device) -> torch.Generator:
        generator = self._streams(stream)
        if device.type != "cuda":
            return generator
        return torch.Generator(device).manual_seed(generator.initial_seed())

    # Projections

    @property
    def refresh_seconds(self) -> float:
        """Return the wall-clock time spent in projector refreshes, device synchronised."""
        return sum((projection.seconds for projection in self._projections if projection is not None), 0.0)

    def drop_projectors(self, params: Iterable[torch.Tensor]) -> None:
        """Free the projectors of these parameters: the next update computes new ones."""
        for p in params:
            if (projection := self._projection(p)) is not None and p in self.state:
                projection.forget(self.state[p])

    def expire_projectors(self, params: Iterable[torch.Tensor]) -> bool:
        """Let the next update of each of these parameters compute a new projector; return whether one has any.

        Unlike with :meth:`drop_projectors` those of the others stay meanwhile, as in a refresh that is due.
        """
        expired = False
        for p in params:
            if (projection := self._projection(p)) is not None and p in self.state:
                expired |= projection.expire(self.state[p], self._age(p))
        return expired

    def projections(self) -> dict[str, JsonValue]:
        """Return what every projected matrix shows, by name, and how often it was updated."""
        return {
            name: {**projection.shown(name, p.shape), "num_updates": self._updates.get(name, 0)}
            for group, projection in zip(self.param_groups, self._projections, strict=True)
            if projection is not None
            for name, p in zip(group["param_names"], group["params"], strict=True)
        }

    def _projection(self, p: torch.Tensor) -> Projection | None:
        return self._projections[self._group_index[p]]

    def _age(self, p: torch.Tensor) -> Age:
        return Age(self.global_step, self._updates.get(self._names[p], 0))

    # Checkpoints

    def state_places(self, p: torch.Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Lying]:
        """Return the same: what a projection holds is whole, and 8-bit moments lie by their blocks."""
        places = super().state_places(p, shapes)
        if self._eight_bit is not None:
            places |= self._eight_bit.places(p, shapes)
        projection = self._projection(p)
        return places if projection is None else places | dict.fromkeys(projection.whole & set(shapes))

    def counters(self) -> dict[str, Any]:
        """Return what is counted: steps, updates of each parameter, and what projections count."""
        return super().counters() | {
            "global_step": self.global_step,
            "updates": dict(self._updates),
            "projections": [None if one is None else one.counters() for one in self._projections],
        }

    def load_counters(self, counters: dict[str, Any]) -> None:
        """Restore what :meth:`counters` returned."""
        super().load_counters(counters)
        self.global_step, self._updates = int(counters["global_step"]), dict(counters["updates"])
        for projection, saved in zip(self._projections, counters["projections"], strict=True):
            if projection is not None:
                projection.load_counters(saved)
