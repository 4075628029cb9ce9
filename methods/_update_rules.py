"""What one update does to the numbers of one parameter: Adam's arithmetic under two rules, in slices, and rounding.

On a CPU an update waits for memory: its seven or eight operations read and write a parameter, its gradient and moments
four times as often as has to be. So fp32 numbers are taken there some at a time, all operations on what then lies in
the cache: equal bits, as each number is computed alone, and a slice's temporaries in the place of a parameter's. Done
in one kernel, torch's ``fused = True`` is quicker still and gives other bits: on a CPU with Intel's MKL the root of the
references is MKL's, one rounding off in 0.7% of the numbers, and the kernel's own is exact.

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
from torch._subclasses.fake_tensor import is_fake

from harness.methods._settings import AdamWSettings
from harness.tensors.placement import computed_on_cpu
from harness.tensors.sharded import Place

VECTOR = 64
"""Slices hold a multiple of so many elements: the CPU's kernels round bf16 otherwise in what is left after whole
vectors, at most two of 32 elements (AVX-512), so that a cut elsewhere would change bits."""

CACHED = 1 << 16
"""Numbers of a slice for each thread of a CPU: six fp32 tensors of it are 1.6 MB, the second-level cache of a core.

Measured on one core of a Xeon with 2 MB of it, SmolLM2-135M's parameters: 2^14 0.50 s, 2^15 0.41, 2^16 0.38, 2^17 0.38,
2^18 0.40, 2^20 0.50, whole 0.71. Of slices this long a few microseconds a call are no matter."""

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
    if up is None and _goes_in_slices(target, grad, m, v):
        _update_in_slices(target, grad, state, lr, settings)
        return
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


def _goes_in_slices(*tensors: torch.Tensor) -> bool:
    """Return whether tensors of one shape are fp32 numbers that a CPU reads in order, and too many for its cache.

    In bf16 the operations of ``transformers`` round what is left after whole vectors otherwise (``VECTOR``).
    """
    return tensors[0].numel() > CACHED * torch.get_num_threads() and all(
        one.dtype == torch.float32 and one.is_contiguous() and computed_on_cpu(one) for one in tensors
    )


def _update_in_slices(
    target: torch.Tensor, grad: torch.Tensor, state: State, lr: float, settings: AdamWSettings
) -> None:
    """Do what :func:`adamw_update` does a slice after the other."""
    size = CACHED * torch.get_num_threads()
    flat = [one.view(-1) for one in (target, grad, state["exp_avg"], state["exp_avg_sq"])]
    if is_fake(target):  # without values one slice shows what all of them take
        flat = [one[:size] for one in flat]
    for w, g, m, v in zip(*(one.split(size) for one in flat), strict=True):
        adamw_update(w, g, {"exp_avg": m, "exp_avg_sq": v, "step": state["step"]}, lr, settings)


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
