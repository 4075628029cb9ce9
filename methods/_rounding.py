"""Stochastic rounding of fp32 numbers to bf16: up or down with the probability that makes the mean right.

Paper: Stochastic Rounding for LLM Training (arXiv 2502.20566); no reference implementation.
Formula: add a uniform integer of [0, 2^16) to the bits of the fp32 number and cut the low 16 bits. bf16 is the upper
half of fp32, so a number a fraction f of the way from its lower neighbour goes to the upper one with probability f.
"""

from __future__ import annotations

import torch


def round_stochastically(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return ``values`` rounded to numbers that bf16 holds exactly, as bf16; what is not finite stays as it is.

    Args:
        values: Any shape, fp32.
        generator: On the device of ``values``.
    """
    assert values.dtype == torch.float32
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    bits = noise.add_(values.view(torch.int32)).bitwise_and_(-(1 << 16))
    # A NaN whose payload is all ones would overflow into a number.
    return torch.where(values.isfinite(), bits.view(torch.float32), values).to(torch.bfloat16)
