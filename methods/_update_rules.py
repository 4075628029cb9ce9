"""What one update does to the numbers of one parameter: Adam's arithmetic under two rules, in slices, and rounding.

Papers: AdamW (arXiv 1711.05101), algorithm 2; Stochastic Rounding for LLM Training (arXiv 2502.20566).
References: torch/optim/adam.py of torch 2.13.0, function _single_tensor_adam; galore_torch/adamw.py of galore-torch
1.0. The operations are theirs one by one, so that equal dtypes give equal bits: no deliberate difference. Of the
rounding there is no reference implementation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from harness.methods._settings import AdamWSettings
from harness.tensors.sharded import Place

VECTOR = 64
"""Slices hold a multiple of so many elements: the CPU's kernels round bf16 otherwise in what is left after whole
vectors, at most two of 32 elements (AVX-512), so that a cut elsewhere would change bits."""

State = dict[str, Any]
"""What is held for one parameter: ``step``, ``exp_avg``, ``exp_avg_sq``, ``master``, and a projection's own names."""


def adamw_update(
    target: torch.Tensor,
    grad: torch.Tensor,
    state: State,
    lr: float,
    settings: AdamWSettings,
    *,
    up: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Update moments and ``target`` in place; ``up`` gives a direction its full shape, None: it has it.

    Formula: m = β1 m + (1-β1) g, v = β2 v + (1-β2) g², c1 = 1-β1^t, c2 = 1-β2^t.
    ``torch``: w = (1 - lr λ) w - lr/c1 up(m / (√v/√c2 + eps)).
    ``transformers``: w = w - lr √c2/c1 up(m / (√v + eps)), then w = (1 - lr λ) w.
    """
    m, v, t = state["exp_avg"], state["exp_avg_sq"], state["step"]
    (beta1, beta2), decay, eps = settings.betas, settings.weight_decay, settings.eps
    c1, c2 = 1.0 - beta1**t, 1.0 - beta2**t
    if settings.adamw_rule == "torch":
        if decay > 0.0:
            target.mul_(1.0 - lr * decay)
        m.lerp_(grad, 1.0 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        denominator = (v.sqrt() / math.sqrt(c2)).add_(eps)
        if up is None:
            target.addcdiv_(m, denominator, value=-lr / c1)
        else:
            target.add_(up(m / denominator), alpha=-lr / c1)
        return
    m.mul_(beta1).add_(grad, alpha=1.0 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
    denominator = v.sqrt().add_(eps)
    target.add_(m / denominator if up is None else up(m / denominator), alpha=-lr * math.sqrt(c2) / c1)
    if decay > 0.0:
        target.add_(target, alpha=-lr * decay)


def round_stochastically(values: torch.Tensor, generator: torch.Generator, place: Place | None = None) -> torch.Tensor:
    """Return ``values`` rounded to numbers that bf16 holds exactly, up or down with the chance that keeps the mean.

    Formula: add a uniform integer of [0, 2^16) to the bits of the fp32 number and cut the low 16 bits. bf16 is the
    upper half of fp32, so a number a fraction f of the way from its lower neighbour goes to the upper one with
    probability f. What is not finite stays as it is.

    Args:
        values: Any shape, fp32.
        generator: On the device of ``values``.
        place: Which part of a whole ``values`` are, for all of which is drawn; None: they are the whole.
    """
    assert values.dtype == torch.float32
    shape = values.shape if place is None else place.whole
    noise = torch.randint(0, 1 << 16, shape, dtype=torch.int32, device=values.device, generator=generator)
    return round_up_or_down(values, noise if place is None else place.cut(noise).clone())


def round_up_or_down(values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return fp32 ``values`` as :func:`round_stochastically` does, by given integers of [0, 2^16), which it uses up."""
    bits = noise.add_(values.view(torch.int32)).bitwise_and_(-(1 << 16))
    # A NaN whose payload is all ones would overflow into a number.
    return torch.where(values.isfinite(), bits.view(torch.float32), values).to(torch.bfloat16)


def row_slices(p: torch.Tensor, elements: int | None) -> Iterable[Any]:
    """Return indices that cut ``p`` into whole rows of at most ``elements`` in all, as far as ``VECTOR`` allows."""
    if elements is None or p.numel() <= elements:
        return (...,)
    width = p.numel() // len(p)
    aligned = VECTOR // math.gcd(VECTOR, width)  # rows
    rows = max(elements // width // aligned, 1) * aligned
    return (slice(start, start + rows) for start in range(0, len(p), rows))
