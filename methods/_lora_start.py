"""Where adapters begin that are a part of the base weights, and what is kept of it: PiSSA and OLoRA.

Papers: PiSSA (arXiv 2404.02948): of W = U S Vt the adapter takes the largest r singular values, B = U_r (S_r / s)^1/2,
A = (S_r / s)^1/2 Vt_r. OLoRA (arXiv 2406.01775): of W = Q R, B = Q_r and A = R_r. W is (out, in), s the adapter's
scaling; the base weight becomes W - s B A. Reference: the peft 0.21.2 distribution, peft/tuners/lora/layer.py.

Deliberate differences from the reference:
- A and B are rounded to the adapters' dtype before the residual is made of them, which then holds what they lost; peft
  rounds them to the base weight's dtype after it, even where they are kept in fp32;
- each matrix draws from a random stream of its own name, so that its start does not hang on which others have adapters;
- a rank above the smaller side leaves rows of A and columns of B zero, where peft makes a smaller adapter;
- GPT-2's transposed weights are decomposed as (out, in) by OLoRA too, where peft takes the QR factors of the transpose;
- a weight that another layer shares is refused, where peft takes the adapter's part out of both.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import JsonValue
from safetensors.torch import load, load_file, save, save_file
from torch import nn

from harness.errors import Refused
from harness.method import RunContext
from harness.methods._lora_variants import LoraVariants
from harness.tensors.adapters import WEIGHTS
from harness.tensors.residual import SCALING, TRAINED_RANK, Factors, by_outputs, lora_layers, principal, subtract
from harness.tensors.sharded import whole

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBE_TOKENS = 32
"""Of the text that shows how far rounding the residual moves the output."""


@dataclass(frozen=True)
class Start:
    """What adapters began with, and what it did to the model."""

    initial: Mapping[str, bytes]
    """A (rank, in) and B (out, rank) of every adapter by its path, in the adapters' dtype, as a file of safetensors has
    them: on the host, and no tensors of the training."""
    facts: Mapping[str, JsonValue]
    """For the record."""

    def factors(self, path: str) -> Factors:
        """Return what an adapter began with, on the host."""
        found = load(self.initial[path])
        return found["A"], found["B"]

    def moved(self, path: str, layer: Any) -> bool:
        """Return whether an adapter is no longer where it began."""
        A, B = self.factors(path)
        now = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        gathered = [whole(p.detach()).cpu() for p in now]
        return not all(torch.equal(p, old) for p, old in zip(gathered, (A, B), strict=True))


def refuse_unsuitable(model: nn.Module, targets: Mapping[str, nn.Module], kind: str) -> None:
    """Refuse layers whose weight cannot give a part of itself to an adapter.

    Raises:
        Refused: it is an embedding, shared with another layer, quantised, or not finite; the sentence says which.
    """
    holders = Counter(id(module._parameters.get("weight")) for module in model.modules())
    for name, module in targets.items():
        weight: Any = module.weight
        if isinstance(module, nn.Embedding):
            reason = "an embedding, which it is not defined for"
        elif holders[id(weight)] > 1:
            reason = "a weight that another layer shares, which would lose its part too"
        elif weight.dtype not in (torch.float32, torch.bfloat16):
            reason = f"a weight in {str(weight.dtype).removeprefix('torch.')}, of which no part can be taken"
        elif not weight.is_meta and not bool(torch.isfinite(weight).all()):
            reason = "a weight that is not finite"
        else:
            continue
        raise Refused(
            f"init_lora_weights = '{kind}' takes a part of each base weight, and {name} is {reason}: leave it out of "
            "target_modules"
        )


def begin_in_weights(wrapped: nn.Module, config: LoraVariants, context: RunContext) -> Start:
    """Let every adapter begin as a part of its base weight, which loses it; return what they began with.

    On ``meta`` nothing has a value, and nothing is done: shapes are those of any other start.

    Args:
        wrapped: By peft, in training's dtypes.
        config: Says how.
        context: Of the run.
    """
    initial: dict[str, bytes] = {}
    lost = total = 0.0
    for path, layer in lora_layers(wrapped):
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        if A.is_meta:
            return Start({}, {})
        W = by_outputs(layer).float().clone()  # (out, in)
        with context.seed_globally(f"lora_init/{path}"), torch.no_grad():
            first_A, first_B = _factors(W, A.shape[0], layer.scaling["default"], config)
        A.data, B.data = _filled(A, first_A), _filled(B, first_B)
        subtract(layer, (A.detach(), B.detach()))
        rest = by_outputs(layer).float() + principal((A.detach(), B.detach()), layer.scaling["default"])
        lost += context.read_scalar((rest - W).square().sum())
        total += context.read_scalar(W.square().sum())
        initial[path] = save({"A": A.detach(), "B": B.detach()})
    return Start(initial, {"init": config.init_lora_weights, "weight_error": math.sqrt(lost / total) if total else 0.0})


def _factors(weight: torch.Tensor, rank: int, scaling: float, config: LoraVariants) -> Factors:
    """Return A (k, in) and B (out, k) in fp32 for a weight (out, in) in fp32, k the rank or the smaller side.

    Source: peft/tuners/lora/layer.py, ``pissa_init`` and ``olora_init``.
    """
    k = min(rank, *weight.shape)
    if config.init_lora_weights == "olora":
        Q, R = torch.linalg.qr(weight)
        return R[:k], Q[:, :k]
    if config.pissa_iterations is None:
        U, S, Vt = torch.linalg.svd(weight, full_matrices=False)
    else:
        U, S, V = torch.svd_lowrank(weight, k, niter=config.pissa_iterations)
        Vt = V.t()
    root = torch.diag((S[:k] / scaling).sqrt())
    return root @ Vt[:k], U[:, :k] @ root


def _filled(p: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return values in the dtype and shape of a parameter, zeros beyond them."""
    filled = torch.zeros_like(p.detach(), memory_format=torch.contiguous_format)
    filled[: values.shape[0], : values.shape[1]] = values
    return filled


@contextmanager
def output_compared(model: nn.Module, context: RunContext, facts: dict[str, JsonValue]) -> Iterator[None]:
    """Note in ``facts`` how far the logits move inside the ``with``, over their norm, on tokens drawn at random."""
    weight: Any = context.decoder.embedding.weight
    if weight.is_meta:
        yield
        return
    generator = context.torch_generator("lora_start")
    ids = torch.randint(0, weight.shape[0], (1, min(PROBE_TOKENS, context.train.sequence_length)), generator=generator)
    before = _logits(model, ids.to(weight.device))
    yield
    moved = _logits(model, ids.to(weight.device)) - before
    facts["output_error"] = context.read_scalar(moved.norm() / before.norm())


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of a model that may be wrapped, in evaluation mode, in fp32."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    finally:
        model.train(training)
    return logits.float()


class OnUnchangedWeights(nn.Module):
    """An adapter that began as a part of the base weights, saved as one that stands on them as they were.

    It is of twice the rank: A of [A; A0] and B of [B, -B0], rows and columns one below and beside the other.
    """

    def __init__(self, wrapped: nn.Module, start: Start) -> None:
        super().__init__()
        self.wrapped = wrapped
        self._start = start

    def save_pretrained(self, folder: Path, **given: Any) -> None:
        """Write what peft reads, and in its metadata which part of it was trained and beside which scaling.

        Source: peft/tuners/lora/model.py, ``subtract_mutated_init``.
        """
        wrapped: Any = self.wrapped
        wrapped.save_pretrained(folder, **given)
        saved = load_file(folder / WEIGHTS)
        scaling, rank = 1.0, 0
        for path, layer in lora_layers(self.wrapped):
            A0, B0 = self._start.factors(path)
            scaling, rank = float(layer.scaling["default"]), A0.shape[0]
            for key, other, dim in ((f"{path}.lora_A.weight", A0, 0), (f"{path}.lora_B.weight", -B0, 1)):
                saved[key] = torch.cat([saved[key], other], dim=dim).contiguous()
        save_file(saved, folder / WEIGHTS, {"format": "pt", TRAINED_RANK: str(rank), SCALING: repr(scaling)})
        file = folder / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        alpha = scaling * 2 * rank
        config |= {"r": 2 * rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha, "use_rslora": False}
        file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
