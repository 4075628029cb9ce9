"""bf16 moments rounded up or down at random, so that what rounding to nearest loses is there on average.

Paper: none of these moments; Stochastic Rounding for LLM Training (arXiv 2502.20566) rounds weights so. No reference
implementation.

An update computes both moments in fp32 from the stored bf16 ones, moves the weight by them, and rounds them
stochastically as it stores them. Rounded to nearest, the second moment never falls at beta2 = 0.999:
``harness.silent_settings`` has the derivation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from harness.methods._settings import AdamWSettings
from harness.methods._update_rules import State, adamw_update, round_up_or_down
from harness.tensors.sharded import place_of

PIECE = 1 << 20
"""Elements whose noise is drawn at once, all of a smaller parameter, from a seed of their own: so a slice gets the
noise that it has in the whole parameter, on every device."""
ODD = 0x9E3779B97F4A7C15
"""Spreads the seeds of pieces: 2^64 divided by the golden ratio."""


def noise_of(stream: torch.Generator, start: int, count: int, total: int, device: torch.device) -> torch.Tensor:
    """Return 32 random bits each for elements ``start`` to ``start + count`` of ``total``: (count,), int32."""
    generator, seed, piece = torch.Generator(device), stream.initial_seed(), min(PIECE, total)
    found = []
    for number in range(start // piece, -(-(start + count) // piece)):
        generator.manual_seed((seed + number * ODD) % 2**63)
        bits = torch.empty(piece, dtype=torch.int32, device=device)
        bits.random_(-(1 << 31), 1 << 31, generator=generator)
        first, last = max(start - number * piece, 0), min(start + count - number * piece, piece)
        found.append(bits[first:last])
    return found[0] if len(found) == 1 else torch.cat(found)


def noise_beside(
    stream: torch.Generator, low: torch.Tensor, start: int, p: torch.Tensor, moments: torch.Tensor
) -> torch.Tensor:
    """Return the noise of numbers of a gradient, as :func:`noise_of`: the same whoever holds them.

    Args:
        stream: Of the update.
        low: The numbers, whole rows of what this process holds of the gradient that the moments are of.
        start: Numbers of that part before them.
        p: The parameter, which says how the gradient is shared out.
        moments: Of the whole part.
    """
    place = place_of(p)
    if place is None or not low.numel():
        return noise_of(stream, start, low.numel(), moments.numel(), low.device) if low.numel() else low.int()
    shape = place.shape_of_whole(moments.shape)
    total = math.prod(shape)
    if place.dim == 0:
        return noise_of(stream, place.start * (total // shape[0]) + start, low.numel(), total, low.device)
    return place.cut(noise_of(stream, 0, total, total, low.device).view(shape)).contiguous()


def rounding_update(
    target: torch.Tensor,
    grad: torch.Tensor,
    state: State,
    lr: float,
    settings: AdamWSettings,
    *,
    noise: torch.Tensor,
    up: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Update ``target`` by :func:`adamw_update` in fp32, and store the moments of ``state`` rounded at random.

    Args:
        target: What takes the update.
        grad: What the moments are of, fp32.
        state: Its moments bf16.
        lr: Learning rate.
        settings: Of the update.
        noise: As :func:`noise_of`, one for each number of ``grad``; the lower halves are the first moment's, the upper
            ones the second's.
        up: As :func:`adamw_update` has it.
    """
    assert grad.dtype == torch.float32
    wide = state | {name: state[name].float() for name in ("exp_avg", "exp_avg_sq")}
    adamw_update(target, grad, wide, lr, settings, up=up)
    bits = noise.view(grad.shape)
    state["exp_avg"].copy_(round_up_or_down(wide["exp_avg"], bits & 0xFFFF))
    state["exp_avg_sq"].copy_(round_up_or_down(wide["exp_avg_sq"], (bits >> 16) & 0xFFFF))
