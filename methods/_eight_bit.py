"""Moments in 8 bits: bitsandbytes' blockwise update in the place of Adam's arithmetic.

Paper: 8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861).
Reference: bitsandbytes 0.50.2, bitsandbytes/optim/optimizer.py, class Optimizer2State, which AdamW8bit is; galore-torch
1.0, galore_torch/adamw8bit.py, for the place of a projection.

A moment is a byte a number, the index of one of 256 values between -1 and 1 (the second moment's: 0 and 1), times the
largest magnitude of its block of 256 numbers, in fp32. Dequantization, Adam and quantization are one operator of
bitsandbytes: on CUDA a kernel of its own without temporaries, on a CPU operations in fp32.

Deliberate differences from the references:
- the operators are called by the names of their arguments. GaLoreAdamW8bit calls by position, and under bitsandbytes
  0.50.2 its last two values mean a limit on the update's norm and that zeros are skipped;
- a projected gradient's direction is that of Adam, brought up and then scaled by the learning rate, as everywhere here;
- ``adamw_rule = "transformers"`` is had as well: its eps before the bias correction is eps / sqrt(1 - beta2^t) after
  it. GaLoreAdamW8bit's update is that of ``torch``, as bitsandbytes' is;
- the table of values lies once on each device, for all parameters; in no parameter's state, and not counted as state;
- of a parameter that is shared out over processes each cuts the blocks of its own part, while the size of the whole
  decides about 8 bits. Where parts begin at multiples of 256 numbers these are the blocks of the whole: equal bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from harness.methods._settings import AdamWSettings
from harness.methods._update_rules import State
from harness.tensors.sharded import APART, Lying, Place, parts_begin_at, place_of

FEWEST_ELEMENTS = 4096
"""Tensors with fewer numbers keep fp32 moments; of a projected gradient it is the numbers in the subspace that count.

Source: bitsandbytes' ``min_8bit_size``."""
BLOCK = 256
"""Numbers with one constant, cut from the beginning. Source: the operator's own, not to be chosen."""
LARGEST_CALL = 1 << 30
"""Numbers that one call is given at most, a multiple of ``BLOCK``: the kernel counts in 32 bits."""


class EightBitMoments:
    """Makes and updates the moments of one optimizer; satisfied by any number of parameters and devices."""

    def __init__(self) -> None:
        """Take nothing; bitsandbytes is imported when it is needed."""
        self._tables: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def begin(self, low: torch.Tensor, whole: torch.Size) -> State:
        """Return moments that are zero, for a gradient: (any shape), any float dtype, a part of one of shape ``whole``.

        They are ``exp_avg`` and ``exp_avg_sq`` of its shape: uint8 with ``exp_avg_absmax`` and ``exp_avg_sq_absmax``,
        (blocks,) and fp32, beside them; or fp32 alone for fewer than ``FEWEST_ELEMENTS`` numbers of the whole.
        """
        small = whole.numel() < FEWEST_ELEMENTS
        made: State = {}
        for moment in ("exp_avg", "exp_avg_sq"):
            dtype = torch.float32 if small else torch.uint8
            made[moment] = torch.zeros_like(low, dtype=dtype, memory_format=torch.contiguous_format)
            if not small:
                blocks = -(-low.numel() // BLOCK)
                made[f"{moment}_absmax"] = torch.zeros(blocks, dtype=torch.float32, device=low.device)
        return made

    def places(self, p: torch.Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Lying]:
        """Return how 8-bit moments of a parameter lie, given shapes as :meth:`HeldState.state_places` is.

        Blocks of a part that are none of the whole's cannot be cut anew: such moments lie apart.
        """
        place, found = place_of(p), dict[str, Lying]()
        for moment in ("exp_avg", "exp_avg_sq"):
            if place is None or (constants := f"{moment}_absmax") not in shapes:
                continue
            width = math.prod(shapes[moment][1:])
            if parts_begin_at(BLOCK, shapes[moment], p):
                start, length, total = (
                    -(-rows * width // BLOCK) for rows in (place.start, place.length, place.whole[0])
                )
                found[constants] = Place(0, start, length, torch.Size([total]))
            else:
                found |= {moment: APART, constants: APART}
        return found

    def update(
        self,
        target: torch.Tensor,
        grad: torch.Tensor,
        state: State,
        lr: float,
        settings: AdamWSettings,
        *,
        up: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Update moments and ``target`` in place, as :func:`adamw_update` says, whose formula this is.

        A direction that is brought up is what a tensor of zeros loses at a learning rate that leaves m / (√v/√c2 + eps)
        or m / (√v + eps) of the update; it has the gradient's dtype, as in the reference.

        Args:
            target: fp32 or bf16; a bf16 one is rounded to nearest once.
            grad: What the moments are of, fp32 or bf16.
            state: ``step`` and what :meth:`begin` returned.
            lr: Learning rate.
            settings: Of the update; ``update_slice_elements`` bounds the temporaries here too, and changes no bit.
            up: Gives a direction its full shape; None: it has it.
        """
        t, decay = state["step"], settings.weight_decay
        c1, root = 1.0 - settings.betas[0] ** t, math.sqrt(1.0 - settings.betas[1] ** t)
        after = settings.adamw_rule == "transformers"
        eps = settings.eps / root if after else settings.eps
        if up is None:
            self._apply(target, grad, state, settings, lr=lr, eps=eps, weight_decay=0.0 if after else decay)
        else:
            if decay > 0.0 and not after:
                target.mul_(1.0 - lr * decay)
            unit = c1 / root if after else c1
            direction = torch.zeros_like(grad, memory_format=torch.contiguous_format)
            self._apply(direction, grad, state, settings, lr=unit, eps=eps, weight_decay=0.0)
            target.add_(up(direction.neg_()), alpha=-lr / unit)
        if decay > 0.0 and after:
            target.add_(target, alpha=-lr * decay)

    def _apply(
        self,
        target: torch.Tensor,
        grad: torch.Tensor,
        state: State,
        settings: AdamWSettings,
        *,
        lr: float,
        eps: float,
        weight_decay: float,
    ) -> None:
        """Let bitsandbytes update ``target`` and the moments, a few whole blocks after the other."""
        whole = target if target.is_contiguous() else target.contiguous()  # kernels take addresses
        flat = {"p": whole.view(-1), "g": grad.contiguous().view(-1)}
        flat |= {key: state[key].view(-1) for key in ("exp_avg", "exp_avg_sq")}
        asked = min(settings.update_slice_elements or LARGEST_CALL, LARGEST_CALL)
        step = max(asked // BLOCK, 1) * BLOCK
        beta1, beta2 = settings.betas
        for start in range(0, target.numel(), step):
            part = {key: value[start : start + step] for key, value in flat.items()}
            of_both: dict[str, Any] = {
                "optimizer_name": "adam",
                "g": part["g"].to(target.dtype),
                "p": part["p"],
                "state1": part["exp_avg"],
                "state2": part["exp_avg_sq"],
                **{"beta1": beta1, "beta2": beta2, "beta3": 0.0, "alpha": 0.0},
                **{"eps": eps, "step": state["step"], "lr": lr, "weight_decay": weight_decay},
                **{"gnorm_scale": 1.0, "skip_zeros": False},
            }
            if "exp_avg_absmax" in state:
                blocks = slice(start // BLOCK, -(-(start + step) // BLOCK))
                qmap1, qmap2 = self._tables_on(target.device)
                library().optimizer_update_8bit_blockwise(
                    **of_both,
                    qmap1=qmap1,
                    qmap2=qmap2,
                    absmax1=state["exp_avg_absmax"][blocks],
                    absmax2=state["exp_avg_sq_absmax"][blocks],
                )
            else:
                library().optimizer_update_32bit(**of_both)
        if whole is not target:
            target.copy_(whole)

    def _tables_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if device not in self._tables:
            signed, unsigned = (torch.tensor(_values(one), dtype=torch.float32, device=device) for one in (True, False))
            self._tables[device] = signed, unsigned
        return self._tables[device]


@cache
def library() -> Any:
    """Return ``bitsandbytes.functional``, imported where no mode sees it: planning's would make fakes of its tables."""
    with _disable_current_modes():
        import bitsandbytes.functional

        return bitsandbytes.functional


@cache
def _values(signed: bool) -> tuple[float, ...]:
    """Return the 256 values of the dynamic data type, ascending: made of real tensors, whatever mode is entered."""
    functional = library()
    with _disable_current_modes():
        return tuple(functional.create_dynamic_map(signed=signed).tolist())
