"""Attention as it will run on the device, for fake CPU tensors.

Under fake tensors transformers makes a causal mask in full where a real run needs none; an attention function that is
registered without a mask function gets none. Rows of full length are planned, so none is needed.

``cuda`` stands for torch's flash attention: what it keeps for the backward pass, and what that allocates inside itself.
Source: pytorch/pytorch@03b7c19, aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, functions mha_fwd
(out, softmax_lse) and mha_bwd (softmax_d, dq_accum, dk_expanded, dv_expanded).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

Device = Literal["cuda", "cpu"]
SEQUENCE_MULTIPLE = 128
"""flash_api.cpp: seqlen_q_rounded."""

_flop_listeners: list[Callable[[int], None]] = []


def register_attention(device: Device) -> str:
    """Make the attention of a device known to transformers; return the name for ``attn_implementation``."""
    from transformers import AttentionInterface

    name = f"harness_planned_{device}"
    AttentionInterface.register(name, _cuda_attention if device == "cuda" else _cpu_attention)
    return name


def attention_flops(query: torch.Tensor, key: torch.Tensor) -> int:
    """Return the operations of the forward pass: 4 B H S K D, nothing left out for causality, as is usual for MFU.

    Args:
        query: (batch, heads, queries, head size).
        key: (batch, heads, keys, head size).
    """
    batch, heads, queries, size = query.shape
    return 4 * batch * heads * queries * key.shape[2] * size


class FlashAttention(torch.autograd.Function):
    """Allocates what flash attention allocates, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return (batch, heads, queries, head size), laid out as (batch, queries, heads, head size)."""
        batch, heads, queries, size = query.shape
        out = query.new_empty(batch, queries, heads, size).transpose(1, 2)
        lse = query.new_empty((batch, heads, queries), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, lse)
        for listener in _flop_listeners:
            listener(attention_flops(query, key))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the gradients of query, key and value."""
        query, key, value, _, _ = ctx.saved_tensors
        batch, heads, queries, size = query.shape
        rows = -(-queries // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE
        columns = -(-size // (32 if size <= 128 else 64)) * (32 if size <= 128 else 64)
        gradients = tuple(torch.empty_like(tensor) for tensor in (query, key, value))
        workspaces = [
            query.new_empty((batch, heads, rows), dtype=torch.float32),  # softmax_d
            query.new_empty((batch, rows, heads, columns), dtype=torch.float32),  # dq_accum
        ]
        if key.shape[1] != heads:
            workspaces += [query.new_empty(batch, key.shape[2], heads, size) for _ in range(2)]  # dk, dv expanded
        del workspaces
        for listener in _flop_listeners:
            listener(2 * attention_flops(query, key))
        return gradients


@contextmanager
def listening_to_flops(listener: Callable[[int], None]) -> Iterator[None]:
    """Call a function with the operations of each planned attention inside a ``with``."""
    _flop_listeners.append(listener)
    try:
        yield
    finally:
        _flop_listeners.remove(listener)


def _cuda_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    assert attention_mask is None, "rows of full length need no mask"
    if query.dtype not in (torch.bfloat16, torch.float16):
        return _cpu_attention(module, query, key, value, attention_mask, **kwargs)
    out = FlashAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
    assert isinstance(out, torch.Tensor)
    return out.transpose(1, 2), None


def _cpu_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    result = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    out: torch.Tensor = result[0]
    return out, None
