"""What CUDA libraries allocate through torch's allocator and no operation on a fake CPU tensor shows.

Every constant names its source. None was calibrated on a device yet; they are small beside a 7B model.
"""

from __future__ import annotations

from typing import Any

import torch

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


def solver_workspace(func: Any, args: tuple[Any, ...]) -> list[int]:
    """Return the temporaries of a factorisation in bytes: copies of its input and work space; empty for other calls.

    Uncalibrated estimates. ``svd``: torch copies the matrix and calls gesvdj, whose work space is taken as one more
    matrix and one square of the smaller side. ``qr``: a copy is its own output; work space of 64 columns. ``eigh``:
    two squares.
    """
    name = func._schema.name
    if name not in ("aten::_linalg_svd", "aten::linalg_qr", "aten::_linalg_eigh"):
        return []
    matrix: torch.Tensor = args[0]
    rows, columns = matrix.shape[-2:]
    smaller, item = min(rows, columns), matrix.element_size()
    if name == "aten::_linalg_svd":
        return [rows * columns * item, rows * columns * item, smaller * smaller * item]
    if name == "aten::linalg_qr":
        return [64 * columns * item]
    return [2 * smaller * smaller * item]
