"""The low-rank projector of a gradient matrix: exact SVD or randomized range finder, kept for a gap of steps.

Papers: GaLore (arXiv 2403.03507), section 4; Halko, Martinsson, Tropp (arXiv 0909.4061), algorithms 4.4 and 5.1.
Reference: the galore-torch 1.0 distribution, galore_torch/galore_projector.py.

Deliberate differences from the reference:
- the kept slice is copied: there, the slice of an fp32 gradient is a view that keeps the whole U or Vh alive;
- the randomized projector, the projector's own dtype, and the rule ``smaller`` for square matrices are ours;
- a gap counted by the run's steps is ours;
- a gradient that is not finite raises FloatingPointError before anything is factorised.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import JsonValue

from harness.methods._optimizers import Age, Projection
from harness.methods._settings import LowRank
from harness.methods._update_rules import State
from harness.tensors.dtypes import DTYPES

Side = Literal["left", "right"]

OVERSAMPLING = 32
"""Columns of the range finder beyond the rank."""
POWER_ITERATIONS = 2
"""Passes that sharpen the range finder's spectrum.

Both chosen on 35 gradient matrices of SmolLM2-135M-Instruct, those of tests/slow/test_projector_energy.py. The worst
share of the exact projector's energy: at rank 32 0.866 with 0 passes, 0.9947 with 1, 0.9995 with 2; at rank 128 0.928,
0.9946, 0.9988. Time: benchmarks/test_projector_refresh.py.
"""


@dataclass(frozen=True)
class Basis:
    """Shape of one matrix's projection: which side, how many dimensions."""

    side: Side
    rank: int
    """Effective rank: never above the smaller side of the matrix."""


def basis_for(shape: torch.Size, rank: int, rule: Literal["reference", "smaller"]) -> Basis:
    """Return side and effective rank for a matrix of ``shape``.

    ``right`` keeps a (rank, columns) projector and (rows, rank) moments, ``left`` (rows, rank) and (rank, columns).
    Square matrices go right under both rules.
    """
    rows, columns = shape
    if rule == "reference":
        side: Side = "right" if rows >= columns else "left"
    else:
        side = "right" if rows <= columns else "left"
    return Basis(side, min(rank, rows, columns))


def exact_projector(grad: torch.Tensor, basis: Basis) -> torch.Tensor:
    """Return the leading singular vectors: ``left`` (rows, rank), ``right`` (rank, columns), contiguous, fp32.

    Args:
        grad: (rows, columns), any float dtype; factorised as fp32.
        basis: Side and effective rank.
    """
    U, _, Vh = torch.linalg.svd(grad.float(), full_matrices=False)
    kept: torch.Tensor = U[:, : basis.rank] if basis.side == "left" else Vh[: basis.rank]
    return kept.clone(memory_format=torch.contiguous_format)


def randomized_projector(grad: torch.Tensor, basis: Basis, generator: torch.Generator) -> torch.Tensor:
    """Return nearly leading singular vectors, shaped as :func:`exact_projector` returns them, fp32.

    Formula, for ``left`` (``right`` is the same on Gᵀ): Y = (G Gᵀ)^q G Ω, Q = qr(Y), (Qᵀ G)(Qᵀ G)ᵀ = W Λ Wᵀ,
    P = Q W restricted to the largest ``rank`` eigenvalues; every product is orthonormalised in between.

    Args:
        grad: (rows, columns), any float dtype; factorised as fp32.
        basis: Side and effective rank.
        generator: CPU generator of Ω, so that every device sees the same one.

    Source: arXiv 0909.4061, algorithm 4.4 for Q; the last step is its algorithm 5.1 through the Gram matrix.
    """
    G = grad.float() if basis.side == "left" else grad.float().t()
    width = min(basis.rank + OVERSAMPLING, *G.shape)
    omega = torch.randn(G.shape[1], width, generator=generator).to(G.device)
    Q = torch.linalg.qr(G @ omega).Q  # (kept side, width)
    for _ in range(POWER_ITERATIONS):
        Z = torch.linalg.qr(G.t() @ Q).Q
        Q = torch.linalg.qr(G @ Z).Q
    B = Q.t() @ G  # (width, other side)
    W = torch.linalg.eigh(B @ B.t()).eigenvectors.flip(-1)[:, : basis.rank]
    P: torch.Tensor = Q @ W  # (kept side, rank)
    return P if basis.side == "left" else P.t().contiguous()


def project(grad: torch.Tensor, projector: torch.Tensor, side: Side) -> torch.Tensor:
    """Return the gradient in the subspace, in the wider dtype of the two."""
    dtype = torch.promote_types(grad.dtype, projector.dtype)
    grad, projector = grad.to(dtype), projector.to(dtype)
    return grad @ projector.t() if side == "right" else projector.t() @ grad


def project_back(direction: torch.Tensor, projector: torch.Tensor, side: Side) -> torch.Tensor:
    """Return a direction of the subspace in full shape, in the wider dtype of the two."""
    dtype = torch.promote_types(direction.dtype, projector.dtype)
    direction, projector = direction.to(dtype), projector.to(dtype)
    return direction @ projector if side == "right" else projector @ direction


def captured_energy(grad: torch.Tensor, projector: torch.Tensor, side: Side) -> float:
    """Return the share of the squared Frobenius norm that the projection keeps, 0 to 1."""
    return float(project(grad.float(), projector.float(), side).square().sum() / grad.float().square().sum())


class LowRankProjection(Projection):
    """The subspace of a gradient's leading singular vectors, kept for ``update_gap`` steps; one for many matrices.

    Holds ``projector`` and ``refreshed_at`` in the state of each matrix.
    """

    whole: ClassVar[frozenset[str]] = frozenset({"projector"})

    def __init__(
        self,
        settings: LowRank,
        *,
        streams: Callable[[str], torch.Generator],
        read_scalar: Callable[[torch.Tensor], float],
    ) -> None:
        """Take the settings.

        Args:
            settings: Of the projection.
            streams: Named random streams, for the randomized projector.
            read_scalar: Reads a one-element tensor; used once a refresh, to see that the gradient is finite.
        """
        self._settings = settings
        self._streams = streams
        self._read_scalar = read_scalar
        self._refreshes: dict[str, int] = {}
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Return the wall-clock time spent in refreshes, device synchronised."""
        return self._seconds

    def due(self, state: State, age: Age) -> bool:
        """Return whether the projector is a gap old, by the count that the settings name."""
        if "projector" not in state:
            return True
        gap = self._settings.update_gap
        if self._settings.update_gap_counter == "global":
            return bool(age.step // gap > state["refreshed_at"] // gap)
        return bool(age.updates - state["refreshed_at"] >= gap)

    def refresh(self, name: str, grad: torch.Tensor, state: State, age: Age) -> None:
        """Compute the projector from a gradient.

        Raises:
            FloatingPointError: the gradient is not finite, or its SVD does not converge.
        """
        started = _clock(grad)
        state.pop("projector", None)  # freed before the factorisation takes its memory
        if not math.isfinite(self._read_scalar(torch.linalg.vector_norm(grad, math.inf))):
            raise FloatingPointError(f"the gradient of {name} is not finite at step {age.step}")
        count = self._refreshes.get(name, 0)
        try:
            state["projector"] = self.made(name, grad, count)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise FloatingPointError(
                f"the projector of {name} could not be computed at step {age.step}: {error}"
            ) from error
        state["refreshed_at"] = self._now(age)
        self._refreshes[name] = count + 1
        self._seconds += _clock(grad) - started

    def made(self, name: str, grad: torch.Tensor, count: int) -> Any:
        """Return what is kept of a new projector, the matrix's ``count``-th, 0-based: here all of it."""
        basis = self._basis(grad.shape)
        if self._settings.projector == "svd":
            projector = exact_projector(grad, basis)
        else:
            projector = randomized_projector(grad, basis, self._streams(f"projector/{name}/{count}"))
        return projector.to(DTYPES[self._settings.projector_dtype])

    def matrix(self, grad: torch.Tensor, state: State, shape: torch.Size) -> torch.Tensor:
        """Return the projector of a matrix of a shape, from what is kept of it, on the gradient's device."""
        projector: torch.Tensor = state["projector"]
        return projector

    def down(self, grad: torch.Tensor, state: State, shape: torch.Size) -> torch.Tensor:
        """Return the gradient's coordinates."""
        return project(grad, self.matrix(grad, state, shape), self._basis(shape).side)

    def up(
        self, direction: torch.Tensor, low: torch.Tensor, grad: torch.Tensor, state: State, shape: torch.Size
    ) -> torch.Tensor:
        """Return the direction in full shape, times ``scale``."""
        projector = self.matrix(grad, state, shape)
        return project_back(direction, projector, self._basis(shape).side).mul_(self._settings.scale)

    def forget(self, state: State) -> None:
        """Free the projector of a matrix."""
        state.pop("projector", None)

    def expire(self, state: State, age: Age) -> bool:
        """Let the projector be a gap old."""
        if "projector" not in state:
            return False
        state["refreshed_at"] = self._now(age) - self._settings.update_gap
        return True

    def shown(self, name: str, shape: torch.Size) -> dict[str, JsonValue]:
        """Return side, effective rank and number of refreshes."""
        basis = self._basis(shape)
        return {"side": basis.side, "rank": basis.rank, "num_refreshes": self._refreshes.get(name, 0)}

    def counters(self) -> dict[str, JsonValue]:
        """Return the refreshes of each matrix, and the seconds that they took."""
        return {"refreshes": dict(self._refreshes), "seconds": self._seconds}

    def load_counters(self, counters: dict[str, Any]) -> None:
        """Restore them."""
        self._refreshes, self._seconds = dict(counters["refreshes"]), float(counters["seconds"])

    def _basis(self, shape: torch.Size) -> Basis:
        return basis_for(shape, self._settings.rank, self._settings.projection_side)

    def _now(self, age: Age) -> int:
        return age.step if self._settings.update_gap_counter == "global" else age.updates


def _clock(tensor: torch.Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()
