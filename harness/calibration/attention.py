"""What attention keeps and needs on the device, as transformers calls it, and which kernel torch chose."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.calibration.bench import Bench, Found, Watched, watching_fakes
from harness.calibration_log import Reading
from harness.planning.attention import planned_cuda_attention
from harness.tensors.optimizer_state import storage_bytes

KERNELS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "overrideable"}
"""By torch.nn.attention.SDPBackend's numbers, as ``torch._fused_sdp_choice`` gives them."""
KEPT, BACKWARD = "kept for the backward pass", "peak of the backward pass"
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
Watching = Callable[..., AbstractContextManager[Watched]]
"""Watches memory, told what was there before."""


@dataclass(frozen=True)
class Shape:
    """Of the tensors that attention takes."""

    batch: int
    heads: int
    kv_heads: int
    tokens: int
    head_size: int
    masked: bool

    @property
    def heads_and_tokens(self) -> int:
        """Return how many query vectors there are."""
        return self.batch * self.heads * self.tokens


def needs(bench: Bench, kind: str | None) -> Found:
    """Return the bytes that attention keeps and its backward pass needs, a head and token, beside inputs and results.

    ``plain``: no mask, as many heads of keys as of queries; ``grouped``: no mask, a quarter as many; ``mask``: a mask
    of padded rows. What a boolean mask is turned into is not counted: it grows with the square of the tokens, and
    planning makes it.
    """
    heads = bench.pick(32, 4)
    shape = Shape(
        batch=bench.pick(4, 1),
        heads=heads,
        kv_heads=heads // 4 if kind == "grouped" else heads,
        tokens=bench.pick(1024, 64),
        head_size=bench.pick(128, 16),
        masked=kind == "mask",
    )
    no_bf16 = bench.cuda and not torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.float16 if no_bf16 else torch.bfloat16
    q, k, v = inputs(shape, dtype, bench.random)
    mask = padded_mask(shape, bench.device) if shape.masked else None
    found = needed_bytes(transformers_attention, (q, k, v), mask, lambda *there: bench.watching())
    backend = torch._fused_sdp_choice(q, k, v, mask, 0.0, mask is None, enable_gqa=shape.kv_heads < shape.heads)
    kernel = KERNELS[int(backend)]
    expected = planned_bytes(shape, dtype) if bench.cuda else (None, None)
    readings = tuple(
        Reading(
            name=name,
            value=value / shape.heads_and_tokens,
            unit="B/head/token",
            expected=None if assumed is None else assumed / shape.heads_and_tokens,
            expected_by=None if assumed is None else "planner",
        )
        for name, value, assumed in zip((KEPT, BACKWARD), found, expected, strict=True)
    )
    return Found(
        readings,
        f"torch chose the kernel '{kernel}'",
        {
            "kernel": kernel,
            "head_size": shape.head_size,
            "kept_bytes": readings[0].value,
            "backward_bytes": readings[1].value,
        },
    )


def needed_bytes(
    attend: Attend,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    watching: Watching,
) -> tuple[int, int]:
    """Return the bytes kept beside output and mask, and those at the peak of the backward pass beside the gradients.

    Args:
        attend: Takes query, key, value (batch, heads, tokens, head size) and mask, returns the output.
        qkv: What it takes, requiring gradients.
        mask: (batch, 1, tokens, tokens) bool, or None.
        watching: Watches memory, told what was there before.
    """
    there = [*qkv, *([] if mask is None else [mask])]
    grad = torch.empty_like(attend(*qkv, mask))
    with watching(*there, grad) as forward:
        out = attend(*qkv, mask)
    bias = 0 if mask is None else mask.numel() * out.element_size()
    with watching(*there, grad, out, *_kept(out)) as backward:
        gradients = torch.autograd.grad(out, qkv, grad)
    kept = forward.left_bytes - storage_bytes([out]) - bias
    needed = backward.peak_bytes - storage_bytes(gradients)
    return max(0, kept), max(0, needed)


def planned_bytes(shape: Shape, dtype: torch.dtype) -> tuple[int, int]:
    """Return what planning assumes of the same call on CUDA, without a device profile."""
    with FakeTensorMode():
        qkv = inputs(shape, dtype, lambda *size, dtype, seed: torch.empty(size, dtype=dtype))
        mask = padded_mask(shape, torch.device("cpu")) if shape.masked else None
        return needed_bytes(planned_cuda_attention, qkv, mask, watching_fakes)


def transformers_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return attention as transformers' models call it."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    module = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], is_causal=True, training=True)
    out: torch.Tensor = sdpa_attention_forward(module, q, k, v, mask, is_causal=None)[0]
    return out


def inputs(
    shape: Shape, dtype: torch.dtype, make: Callable[..., torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return query, key and value, (batch, heads, tokens, head size), requiring gradients.

    They are laid out by token, as a model's linear layers give them: kernels give their output the layout of the query,
    and transformers copies one that is laid out otherwise.
    """
    q, k, v = (
        make(shape.batch, shape.tokens, heads, shape.head_size, dtype=dtype, seed=seed).transpose(1, 2).requires_grad_()
        for seed, heads in enumerate((shape.heads, shape.kv_heads, shape.kv_heads))
    )
    return q, k, v


def padded_mask(shape: Shape, device: torch.device) -> torch.Tensor:
    """Return a causal mask of rows whose last quarter is padding: (batch, 1, tokens, tokens), bool."""
    tokens = shape.tokens
    mask = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    mask[:, tokens * 3 // 4 :] = False
    return mask.repeat(shape.batch, 1, 1, 1)


def _kept(out: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors that the graph of ``out`` keeps for its backward pass."""
    found: list[torch.Tensor] = []
    waiting, seen = [out.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        names = [name for name in dir(node) if name.startswith("_saved_")]
        found += [value for name in names if isinstance(value := getattr(node, name), torch.Tensor)]
        found += getattr(node, "saved_tensors", ())
        waiting += [function for function, _ in node.next_functions]
    return found
