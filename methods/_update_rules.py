"""Adam's arithmetic for one parameter, under two rules that differ in eps and weight decay.

Paper: AdamW (arXiv 1711.05101), algorithm 2.
References: torch/optim/adam.py of torch 2.13.0, function _single_tensor_adam; galore_torch/adamw.py of galore-torch
1.0. The operations are theirs one by one, so that equal dtypes give equal bits: no deliberate difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


def adamw_update(
    target: torch.Tensor,
    grad: torch.Tensor,
    state: dict[str, Any],
    group: dict[str, Any],
    full_shape: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Update moments and ``target`` in place.

    Formula: m = β1 m + (1-β1) g, v = β2 v + (1-β2) g², c1 = 1-β1^t, c2 = 1-β2^t, and back() gives full shape.
    ``torch``: w = (1 - lr λ) w - lr/c1 back(m / (√v/√c2 + eps)).
    ``transformers``: w = w - lr √c2/c1 back(m / (√v + eps)), then w = (1 - lr λ) w.
    """
    m, v, t = state["exp_avg"], state["exp_avg_sq"], state["step"]
    lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
    c1, c2 = 1.0 - beta1**t, 1.0 - beta2**t
    if group["rule"] == "torch":
        if decay > 0.0:
            target.mul_(1.0 - lr * decay)
        m.lerp_(grad, 1.0 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        denominator = (v.sqrt() / math.sqrt(c2)).add_(group["eps"])
        if group["projection"] is None:
            target.addcdiv_(m, denominator, value=-lr / c1)
        else:
            target.add_(full_shape(m / denominator), alpha=-lr / c1)
        return
    m.mul_(beta1).add_(grad, alpha=1.0 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
    denominator = v.sqrt().add_(group["eps"])
    target.add_(full_shape(m / denominator), alpha=-lr * math.sqrt(c2) / c1)
    if decay > 0.0:
        target.add_(target, alpha=-lr * decay)
