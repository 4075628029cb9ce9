"""Makes galore_adamw.json with the reference, where galore-torch 1.0 is installed.

Gradients have well separated singular values (each a third of the one before), and the singular vectors follow one sign
rule, so that the numbers do not hang on the linear algebra library. The rule: the largest entry of each left vector is
positive. The test imports the functions of this file, never the reference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

SHAPES = {"tall": (12, 7), "wide": (7, 12), "square": (9, 9)}
NUM_STEPS = 50
SETTINGS: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "rank": 3, "update_gap": 10, "scale": 0.25}
FILE = Path(__file__).with_name("galore_adamw.json")


def waves(rows: int, columns: int, phase: float) -> np.ndarray:
    i, j = np.arange(1, rows + 1)[:, None], np.arange(1, columns + 1)[None, :]
    return np.cos(0.7 * i * j + 0.31 * i * i + phase * j)


def weights(shape: tuple[int, int]) -> torch.Tensor:
    return torch.from_numpy(waves(*shape, 0.5)).float()


def gradient(shape: tuple[int, int], step: int) -> torch.Tensor:
    size = min(shape)
    U = np.linalg.qr(waves(shape[0], size, 0.9 + 0.05 * step))[0]
    V = np.linalg.qr(waves(shape[1], size, 2.1 - 0.03 * step))[0]
    return torch.from_numpy((U * 3.0 ** -np.arange(size)) @ V.T).float()


@contextmanager
def signed_svd() -> Iterator[None]:
    """Let ``torch.linalg.svd`` follow the sign rule."""
    svd: Callable[..., Any] = torch.linalg.svd

    def signed(matrix: torch.Tensor, full_matrices: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        U, S, Vh = svd(matrix, full_matrices=full_matrices)
        signs = torch.sign(U.gather(0, U.abs().argmax(0, keepdim=True)))  # (1, size)
        return U * signs, S, Vh * signs.t()

    torch.linalg.svd = signed
    try:
        yield
    finally:
        torch.linalg.svd = svd


def reference_weights(shape: tuple[int, int]) -> torch.Tensor:
    from galore_torch import GaLoreAdamW

    p = torch.nn.Parameter(weights(shape))
    group = {
        "params": [p],
        "rank": SETTINGS["rank"],
        "update_proj_gap": SETTINGS["update_gap"],
        "scale": SETTINGS["scale"],
        "proj_type": "std",
    }
    optimizer = GaLoreAdamW([group], lr=SETTINGS["lr"], weight_decay=SETTINGS["weight_decay"])
    for step in range(NUM_STEPS):
        p.grad = gradient(shape, step)
        optimizer.step()
    return p.detach()


def main() -> None:
    with signed_svd():
        golden = {name: reference_weights(shape).tolist() for name, shape in SHAPES.items()}
    FILE.write_text(json.dumps({"made_with": "galore-torch 1.0", "weights": golden}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
