"""What CUDA libraries allocate through torch's allocator and no operation on a fake CPU tensor shows.

Every constant names its source. None was calibrated on a device yet; they are small beside a 7B model.
"""

from __future__ import annotations

from typing import Any

import torch

from harness.device_profile import SolverConstants

HOPPER_WORKSPACE = 32 << 20
"""cuBLAS workspace of compute capability 9 to 12. Source: pytorch/pytorch, aten/src/ATen/cuda/CublasHandlePool.cpp,
parseChosenWorkspaceSize."""
OLDER_WORKSPACE = (4096 * 2 + 16 * 8) << 10
"""The same for older devices: ``:4096:2:16:8``."""
OLDER_DEVICES = ("A100", "A10", "A30", "A40", "A6000", "L4", "L40", "RTX 30", "RTX 40", "V100", "T4")
"""Parts of names of devices below compute capability 9."""
BLAS_THREADS = 2
"""Threads that multiply matrices, each with a handle and a workspace of its own: the loop's and autograd's."""


def blas_workspaces(device_name: str | None) -> list[int]:
    """Return the sizes of the cuBLAS workspaces that stay allocated; those of the newest devices when none is named."""
    older = device_name is not None and any(part in device_name.upper() for part in OLDER_DEVICES)
    return [OLDER_WORKSPACE if older else HOPPER_WORKSPACE] * BLAS_THREADS


SOLVERS = {"aten::_linalg_svd": "svd", "aten::linalg_qr": "qr", "aten::_linalg_eigh": "eigh"}
"""Factorisations by torch's operator."""


def solver_workspace(func: Any, args: tuple[Any, ...], measured: SolverConstants | None = None) -> list[int]:
    """Return the temporaries of a factorisation in bytes: copies of its input and work space; empty for other calls."""
    kind = SOLVERS.get(func._schema.name)
    if kind is None:
        return []
    matrix: torch.Tensor = args[0]
    return [solver_bytes(kind, matrix.shape[-2], matrix.shape[-1], matrix.element_size(), measured)]


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
