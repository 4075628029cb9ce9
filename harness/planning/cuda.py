"""What CUDA libraries allocate through torch's allocator and no operation on a fake CPU tensor shows.

Every constant names its source. None was calibrated on a device yet; they are small beside a 7B model.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from harness.device_profile import SolverConstants

LARGE_WORKSPACE = 32 << 20
"""cuBLAS workspace of the compute capabilities in ``LARGE_MAJORS``, bytes. cuBLASLt shares it since pull request
175879; before, it had 1 MiB of its own, which is left out.

Source: pytorch/pytorch, aten/src/ATen/cuda/CublasHandlePool.cpp: parseChosenWorkspaceSize, getCUDABlasLtWorkspace."""
SMALL_WORKSPACE = (4096 * 2 + 16 * 8) << 10
"""The same for all others: ``:4096:2:16:8``."""
LARGE_MAJORS = frozenset({9, 10, 11, 12})
"""Read in three states of that file: 9.0 alone (at 26a39059ec580351411f180816c47e2ef5134ae1), then with 10 and 12 (pull
request 175344, February 2026), then with 11 (189312, July 2026). The newest also frees a workspace after each product,
unless TORCH_CUBLAS_WORKSPACE_CACHE is 1; torch 2.13 keeps them."""
BLAS_THREADS = 2
"""Threads that multiply matrices, each with a handle and a workspace of its own: the loop's and autograd's."""


def blas_workspaces(compute_capability: str | None) -> list[int]:
    """Return the sizes of the cuBLAS workspaces that stay allocated; those of the newest devices where none is known.

    Args:
        compute_capability: ``major.minor``.
    """
    large = compute_capability is None or int(compute_capability.partition(".")[0]) in LARGE_MAJORS
    return [LARGE_WORKSPACE if large else SMALL_WORKSPACE] * BLAS_THREADS


SOLVERS = {"aten::_linalg_svd": "svd", "aten::linalg_qr": "qr", "aten::_linalg_eigh": "eigh"}
"""Factorisations by torch's operator."""


def solver_workspace(func: Any, args: tuple[Any, ...], measured: SolverConstants | None = None) -> list[int]:
    """Return the temporaries of a factorisation in bytes: copies of its input and work space; empty for other calls."""
    kind = _solver(func)
    if kind is None:
        return []
    matrix: torch.Tensor = args[0]
    return [solver_bytes(kind, matrix.shape[-2], matrix.shape[-1], matrix.element_size(), measured)]


@cache
def _solver(func: Any) -> str | None:
    return SOLVERS.get(func._schema.name)


def solver_bytes(kind: str, rows: int, columns: int, item_size: int, measured: SolverConstants | None = None) -> int:
    """Return what a factorisation of one matrix needs beside its input and its results, in bytes.

    Measured where a device profile says; else uncalibrated estimates. ``svd``: torch copies the matrix and calls
    gesvdj, whose work space is taken as one more matrix and one square of the smaller side. ``qr``: a copy is its own
    output; work space of 64 columns. ``eigh``: two squares.

    Args:
        kind: ``svd``, ``qr`` or ``eigh``.
        rows: Of the matrix.
        columns: Of the matrix.
        item_size: Bytes of one element.
        measured: Of a device profile.
    """
    matrices: float | None = None if measured is None else getattr(measured, kind)
    if matrices is not None:
        return round(matrices * rows * columns * item_size)
    if kind == "svd":
        return (2 * rows * columns + min(rows, columns) ** 2) * item_size
    return 64 * columns * item_size if kind == "qr" else 2 * min(rows, columns) ** 2 * item_size
