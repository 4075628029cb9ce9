"""Projections whose subspace says how far the gradient itself moves: APOLLO's and Fira's, with their growth limiter.

Papers: APOLLO (arXiv 2412.05270), algorithm 1; Fira (arXiv 2410.01623), sections on norm-based scaling and the
norm-growth limiter. References: the apollo-torch 1.0.3 and fira 1.0.2 distributions, for numbers alone: written from
the formulas, compared beside them (``tests/golden/test_apollo.py``, ``tests/golden/test_fira.py``).

Deliberate differences from the references:
- the limiter is computed on the device: no update waits for it, where the references read one number a matrix;
- its norm has a dtype of its own (there the gradient's), and a zero gradient may leave it as it is;
- factors follow the side that is projected, where the references take the longer side of the moments or of the matrix;
- the rank is clipped to the smaller side of a matrix, as for every projection here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pydantic import JsonValue

from harness.methods._optimizers import Age
from harness.methods._projection import LowRankProjection
from harness.methods._scaling_settings import ApolloSettings, ScalingSettings
from harness.methods._update_rules import State
from harness.tensors.dtypes import DTYPES

TINY = 1e-8
"""Added to each norm that is divided by. Source: both references."""
HELD_BACK = 100.0
"""Of updates that the limiter divides by more than this it is counted that the matrix all but stood still."""


class ScaledProjection(LowRankProjection):
    """A projection that scales full-size gradients, and limits the growth of their norm.

    Beside the projector it holds ``update_norm`` in the state of each matrix, the norm of the last scaled gradient
    after the limiter: (), ``limiter_dtype``. ``matrix``, an integer there, says which count is the matrix's.
    """

    whole: ClassVar[frozenset[str]] = LowRankProjection.whole | {"update_norm"}

    def __init__(
        self,
        settings: ScalingSettings,
        *,
        names: Sequence[str],
        streams: Callable[[str], torch.Generator],
        read_scalar: Callable[[torch.Tensor], float],
        sum_over_ranks: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Take the settings.

        Args:
            settings: Of projection, scaling and limiter.
            names: Of all matrices.
            streams: Named random streams.
            read_scalar: Reads a one-element tensor: once a refresh, and where counts are told.
            sum_over_ranks: Adds up a one-element tensor over the processes that hold parts of a matrix; None: there
                is one.
        """
        super().__init__(settings.low_rank(), streams=streams, read_scalar=read_scalar)
        self._sum_over_ranks = sum_over_ranks
        self._scaling = settings
        self._numbers = {name: number for number, name in enumerate(names)}
        self._counted = [0] * len(names)  # when it was loaded
        self._counts: torch.Tensor | None = None

    def refresh(self, name: str, grad: torch.Tensor, state: State, age: Age) -> None:
        """Compute the subspace.

        Raises:
            FloatingPointError: as every projection's.
        """
        super().refresh(name, grad, state, age)
        state["matrix"] = self._numbers[name]

    def scaled(
        self, moved: torch.Tensor, direction: torch.Tensor, low: torch.Tensor, state: State, shape: torch.Size
    ) -> torch.Tensor:
        """Return ``moved``, scaled and limited, in a tensor of its own.

        Formula: s = ‖N‖ / (‖R‖ + 1e-8), norms over the projected dimension, or over all; U = s ∘ moved;
        f = max(‖U‖ / (previous + 1e-8), γ) / γ; U / f is returned, and ‖U‖ / f kept. The first U is not limited.

        Args:
            moved: (rows, columns), of the gradient's kind, or the part of it that this process holds.
            direction: N, Adam's in the subspace.
            low: R, the gradient in the subspace.
            state: Of the matrix.
            shape: (rows, columns) of all of it.
        """
        if self._scaling.scaling == "tensor":
            factor = self._norm(direction, direction.dtype) / (self._norm(low, low.dtype) + TINY)
        else:  # each channel is whole here
            over = {"dim": self._low_rank_dim(shape), "keepdim": True}
            factor = torch.linalg.vector_norm(direction, **over) / (torch.linalg.vector_norm(low, **over) + TINY)
        return self._limited(moved * factor, state)

    def _norm(self, part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the norm, taken in ``dtype``, of what every process holds a part of: ()."""
        norm: torch.Tensor = torch.linalg.vector_norm(part, dtype=dtype)
        if self._sum_over_ranks is None:
            return norm
        return self._sum_over_ranks(norm.float().square()).sqrt().to(dtype)

    def _limited(self, moved: torch.Tensor, state: State) -> torch.Tensor:
        """Return ``moved`` with the limiter's factor applied in place; keep its norm, and count."""
        bound, dtype = self._scaling.growth_limit, DTYPES[self._scaling.limiter_dtype]
        widest = torch.promote_types(moved.dtype, dtype)
        norm = self._norm(moved, widest).to(dtype)
        previous = state.get("update_norm")
        if previous is not None:
            growth = norm / (previous + TINY)
            # Not a clamp: in bf16 1.01 is 1.0078, and 1.0078 / 1.01 is not 1.
            divisor = (growth / bound).masked_fill(growth < bound, 1.0)
            if self._scaling.limiter_at_zero == "skip":
                divisor = divisor.masked_fill(previous == 0.0, 1.0)
            self._count(state["matrix"], divisor)
            moved, norm = moved.div_(divisor), norm / divisor
            if self._scaling.limiter_at_zero == "skip":
                norm = torch.where(norm == 0.0, previous, norm)
        state["update_norm"] = norm
        return moved

    def _low_rank_dim(self, shape: torch.Size) -> int:
        """Return the dimension of the low-rank gradient that is as long as the rank."""
        return 1 if self._basis(shape).side == "right" else 0

    def _count(self, number: int, divisor: torch.Tensor) -> None:
        if self._counts is None:
            self._counts = torch.tensor(self._counted, dtype=torch.int32, device=divisor.device)
        self._counts[number].add_(divisor > HELD_BACK)

    def _held_back(self, number: int) -> int:
        """Return how many updates of a matrix were held back; waits for the device."""
        return self._counted[number] if self._counts is None else int(self._read_scalar(self._counts[number]))

    def shown(self, name: str, shape: torch.Size) -> dict[str, JsonValue]:
        """Return the same, and how many updates the limiter divided by more than ``HELD_BACK``."""
        return {**super().shown(name, shape), "num_held_back": self._held_back(self._numbers[name])}

    def counters(self) -> dict[str, JsonValue]:
        """Return the same, and the updates held back of each matrix, in the order of the names."""
        return {**super().counters(), "held_back": [self._held_back(number) for number in range(len(self._counted))]}

    def load_counters(self, counters: dict[str, Any]) -> None:
        """Restore them."""
        super().load_counters(counters)
        self._counted, self._counts = list(counters["held_back"]), None


class ApolloProjection(ScaledProjection):
    """APOLLO's: the gradient moves, and the subspace says how far; a gaussian projector, kept or drawn each time."""

    _scaling: ApolloSettings

    def up(
        self, direction: torch.Tensor, low: torch.Tensor, grad: torch.Tensor, state: State, shape: torch.Size
    ) -> torch.Tensor:
        """Return sqrt(scale) times the gradient, scaled and limited."""
        return self.scaled(grad, direction, low, state, shape).mul_(math.sqrt(self._settings.scale))

    def made(self, name: str, grad: torch.Tensor, count: int) -> Any:
        """Return the projector, or the seed that it is drawn from."""
        if self._settings.projector != "gaussian":
            return super().made(name, grad, count)
        seed = self._streams(f"projector/{name}/{count}").initial_seed()
        return self._drawn(seed, grad, grad.shape) if self._scaling.store_projector else seed

    def matrix(self, grad: torch.Tensor, state: State, shape: torch.Size) -> torch.Tensor:
        """Return the projector, drawn anew where the seed is kept."""
        held = state["projector"]
        return held if isinstance(held, torch.Tensor) else self._drawn(held, grad, shape)

    def _drawn(self, seed: int, grad: torch.Tensor, whole: torch.Size) -> torch.Tensor:
        """Return normal numbers of variance 1 / rank, ``left`` (rows, rank), ``right`` (rank, columns).

        They are drawn on the gradient's device: of equal seeds, a GPU makes other numbers than a CPU.
        """
        basis, (rows, columns) = self._basis(whole), whole
        shape = (basis.rank, columns) if basis.side == "right" else (rows, basis.rank)
        generator = torch.Generator(grad.device if grad.is_cuda else "cpu").manual_seed(seed)
        numbers = torch.randn(shape, generator=generator, device=grad.device)
        return numbers.div_(math.sqrt(basis.rank)).to(DTYPES[self._settings.projector_dtype])


class FiraProjection(ScaledProjection):
    """Fira's: GaLore's update, and beside it what the projection leaves out of the gradient, scaled and limited."""

    def up(
        self, direction: torch.Tensor, low: torch.Tensor, grad: torch.Tensor, state: State, shape: torch.Size
    ) -> torch.Tensor:
        """Return α back(N) + limited(s ∘ (G - α back(R))).

        α is ``scale``. It is inside the residual too, as in the reference: for α other than 1 that is not what the
        projection leaves out, and has a part in the subspace.
        """
        left_out = self.scaled(grad - super().up(low, low, grad, state, shape), direction, low, state, shape)
        return left_out.add_(super().up(direction, low, grad, state, shape))
