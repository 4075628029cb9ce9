"""What stochastic rounding of bf16 moments costs in time: pytest benchmarks/test_moment_rounding.py"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.methods._optimizers import AdamW, Group
from harness.methods._settings import AdamWSettings
from harness.tensors.seeding import torch_generator

WAYS: dict[str, dict[str, Any]] = {
    "bf16": {"moment_dtype": "bf16"},
    "fp32": {"moment_dtype": "fp32"},
    "stochastic": {"moment_dtype": "bf16", "moment_rounding": "stochastic"},
}
SHAPE = (1024, 2816)


@pytest.mark.parametrize("way", WAYS)
def test_update(way: str, benchmark: Any) -> None:
    settings = AdamWSettings(
        adamw_rule="torch", betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, master_weights=False,
        stochastic_rounding=False, **WAYS[way],
    )  # fmt: skip
    p = torch.nn.Parameter(torch.randn(SHAPE, generator=torch_generator(1, "weights")).to(torch.bfloat16))
    optimizer = AdamW([Group([("w", p)])], settings, learning_rate=1e-4, streams=lambda name: torch_generator(1, name))
    p.grad = torch.randn(SHAPE, generator=torch_generator(1, "gradient")).to(torch.bfloat16)
    benchmark.extra_info["elements"] = p.numel()
    benchmark(optimizer.step)
