"""The low-rank projector of a gradient matrix: exact SVD or randomized range finder.

Papers: GaLore (arXiv 2403.03507), section 4; Halko, Martinsson, Tropp (arXiv 0909.4061), algorithms 4.4 and 5.1.
Reference: the galore-torch 1.0 distribution, galore_torch/galore_projector.py.

Deliberate differences from the reference:
- the kept slice is copied: there, the slice of an fp32 gradient is a view that keeps the whole U or Vh alive;
- the randomized projector, the projector's own dtype, and the rule ``smaller`` for square matrices are ours;
- a gradient that is not finite raises FloatingPointError before anything is factorised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

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
