"""What CUDA libraries allocate through torch's allocator and no operation on a fake CPU tensor shows.

Every constant names its source. None was calibrated on a device yet; they are small beside a 7B model.
"""

from __future__ import annotations

from typing import Any

import torch

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
