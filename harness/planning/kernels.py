"""Torch's attention kernels on CUDA, as what they allocate: they compute nothing.

``FlashAttention`` is taken where no mask is given. Source: pytorch/pytorch@03b7c19,
aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, functions mha_fwd (out, softmax_lse) and mha_bwd
(softmax_d, dq_accum, dk_expanded, dv_expanded).

``EfficientAttention`` is taken under a mask, which flash attention refuses: the memory-efficient kernel (cutlass).
Sources: torch 2.13.0's own headers, ATen/native/transformers/cuda/mem_eff_attention/kernel_forward.h and
kernel_backward.h (sizes), kernels/cutlassF.h and cutlassB.h (which instance is taken first);
pytorch/pytorch@00afd8f, aten/src/ATen/native/transformers/cuda/attention_backward.cu, function
_efficient_attention_backward (gradients, delta, workspace); r266-tech/pytorch@0a1abb7 (a fork),
aten/src/ATen/native/transformers/attention.cpp, functions convert_boolean_attn_mask, pad_bias and preprocess_mask.

Nothing here was calibrated on a device. The instances are those of compute capability 8.0, 9.0 and 10.0 without
dropout; 8.6 and 8.9 have less shared memory and take smaller ones. On 9.0 and 10.0 torch asks cuDNN before either
kernel where cuDNN is newer than 9.15 (pytorch/pytorch@001f694, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp,
functions check_prefer_cudnn_attention and priority_order); what that allocates inside itself is not public. Head sizes
that are no multiple of 8 go to torch's plain kernel under a mask; that is not told apart either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from harness.device_profile import AttentionConstants

SEQUENCE_MULTIPLE = 128
"""flash_api.cpp: seqlen_q_rounded."""
LOGSUMEXP_MULTIPLE = 32
"""kernel_forward.h: kAlignLSE."""
BIAS_MULTIPLE = 8
"""attention.cpp, preprocess_mask: mem_eff_alignment; a bias whose rows are no multiple of it is copied into one."""
LARGEST_HEAD_IN_REGISTERS = 128
"""cutlassF.h: above it the forward kernel is 32x128_gmem, which sums the output in fp32 outside the registers."""
SPLIT_BLOCKS = 200
"""attention_backward.cu: keys are split no further than so many blocks, where splits need memory."""
MIN_PARALLELISM = 256
"""attention_backward.cu: rows times heads from which short rows of keys are not split."""
LOCK_ELEMENTS = 4
"""kernel_backward.h, GradQTempStorage: lock, counter and padding before each tile, in floats."""


class BackwardTile(NamedTuple):
    """One instance of the memory-efficient backward kernel. Source: cutlassB.h, dispatch_cutlassB_bf16_sm80."""

    largest_head: int
    queries: int
    keys: int
    in_registers: bool
    """Whether the gradients of keys and values are summed in registers, not in the workspace."""


BACKWARD_TILES = (
    BackwardTile(64, 64, 64, in_registers=True),
    BackwardTile(128, 128, 128, in_registers=True),
    BackwardTile(65536, 128, 64, in_registers=False),
)

_flop_listeners: list[Callable[[int], None]] = []


def attention_flops(query: torch.Tensor, key: torch.Tensor) -> int:
    """Return the operations of the forward pass: 4 B H S K D, all pairs of tokens, as is usual for MFU.

    Nothing is left out for causality, for a sliding window or for padding, with a mask or without.

    Args:
        query: (batch, heads, queries, head size).
        key: (batch, heads, keys, head size).
    """
    batch, heads, queries, size = query.shape
    return 4 * batch * heads * queries * key.shape[2] * size


@contextmanager
def listening_to_flops(listener: Callable[[int], None]) -> Iterator[None]:
    """Call a function with the operations of each planned attention inside a ``with``."""
    _flop_listeners.append(listener)
    try:
        yield
    finally:
        _flop_listeners.remove(listener)


class FlashAttention(torch.autograd.Function):
    """Allocates what flash attention allocates."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return (batch, heads, queries, head size), laid out as (batch, queries, heads, head size)."""
        batch, heads, queries, size = query.shape
        out = query.new_empty(batch, queries, heads, size).transpose(1, 2)
        lse = query.new_empty((batch, heads, queries), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, lse)
        _tell(attention_flops(query, key))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the gradients of query, key and value."""
        query, key, value, _, _ = ctx.saved_tensors
        batch, heads, queries, size = query.shape
        rows = _up(queries, SEQUENCE_MULTIPLE)
        columns = _up(size, 32 if size <= 128 else 64)
        gradients = tuple(torch.empty_like(tensor) for tensor in (query, key, value))
        workspaces = [
            query.new_empty((batch, heads, rows), dtype=torch.float32),  # softmax_d
            query.new_empty((batch, rows, heads, columns), dtype=torch.float32),  # dq_accum
        ]
        if key.shape[1] != heads:
            workspaces += [query.new_empty(batch, key.shape[2], heads, size) for _ in range(2)]  # dk, dv expanded
        del workspaces
        _tell(2 * attention_flops(query, key))
        return gradients


class EfficientAttention(torch.autograd.Function):
    """Allocates what memory-efficient attention allocates."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Return (batch, heads, queries, head size), laid out as (batch, queries, heads, head size).

        Args:
            ctx: Autograd's.
            query: (batch, heads, queries, head size).
            key: (batch, heads, keys, head size): repeated, where heads are grouped.
            value: As ``key``.
            bias: (batch, heads, queries, keys), as :func:`kept_bias` returns it.
        """
        batch, heads, queries, size = query.shape
        out = query.new_empty(batch, queries, heads, size).transpose(1, 2)
        lse = query.new_empty((batch, heads, _up(queries, LOGSUMEXP_MULTIPLE)), dtype=torch.float32)
        if size > LARGEST_HEAD_IN_REGISTERS:
            accumulator = query.new_empty((batch, queries, heads, size), dtype=torch.float32)  # output_accum
            del accumulator
        ctx.save_for_backward(query, key, value, bias, out, lse)
        _tell(attention_flops(query, key))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of query, key and value, and None for the bias."""
        query, key, value, _, _, _ = ctx.saved_tensors
        batch, heads, queries, size = query.shape
        grad_out = grads[0].transpose(1, 2).contiguous()
        gradients = tuple(_laid_out_by_token(tensor) for tensor in (query, key, value))
        delta = query.new_empty((batch, heads, queries), dtype=torch.float32)
        workspace = query.new_empty(backward_workspace(batch, heads, queries, key.shape[2], size), dtype=torch.float32)
        del grad_out, delta, workspace
        _tell(2 * attention_flops(query, key))
        return *gradients, None


class MeasuredAttention(torch.autograd.Function):
    """Allocates what was measured of the kernel that torch chooses on a device."""

    @staticmethod
    def forward(
        ctx: Any, constants: AttentionConstants, query: torch.Tensor, *others: torch.Tensor | None
    ) -> torch.Tensor:
        """Return (batch, heads, queries, head size), laid out as (batch, queries, heads, head size).

        Args:
            ctx: Autograd's.
            constants: Of this way to call attention.
            query: (batch, heads, queries, head size).
            others: Keys and values, (batch, heads of keys, keys, head size), and the bias of a mask, or None.
        """
        batch, heads, queries, size = query.shape
        out = query.new_empty(batch, queries, heads, size).transpose(1, 2)
        kept = _bytes_of(query, constants.kept_bytes)
        key, value, bias = others
        assert key is not None and value is not None
        ctx.save_for_backward(query, key, value, out, kept, *([] if bias is None else [bias]))
        ctx.constants = constants
        _tell(attention_flops(query, key))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of query, key and value, and None for the rest."""
        query, key, value, *_ = ctx.saved_tensors
        gradients = tuple(_laid_out_by_token(tensor) for tensor in (query, key, value))
        workspace = _bytes_of(query, ctx.constants.backward_bytes)
        del workspace
        _tell(2 * attention_flops(query, key))
        return None, *gradients, None


def kept_bias(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Return what a boolean mask is turned into before the memory-efficient kernel, which keeps it for its backward.

    Args:
        mask: (batch, 1 or heads, queries, keys) bool, True where a key is seen; or a bias, any float dtype.
        query: (batch, heads, queries, head size).

    Returns:
        (batch, heads, queries, keys) in the dtype of ``query``; heads share what the mask shared.
    """
    bias = mask
    if mask.dtype == torch.bool:
        bias = torch.where(mask, 0.0, torch.scalar_tensor(float("-inf"), dtype=query.dtype, device=query.device))
    keys = bias.shape[-1]
    if any(stride % BIAS_MULTIPLE for stride in bias.stride()[:-1]):
        bias = torch.nn.functional.pad(bias, (0, BIAS_MULTIPLE - keys % BIAS_MULTIPLE))[..., :keys]
    batch, heads, queries, _ = query.shape
    return bias.expand(batch, heads, queries, keys)


def backward_workspace(batch: int, heads: int, queries: int, keys: int, size: int) -> int:
    """Return the fp32 elements of the memory-efficient backward kernel's workspace.

    Source: kernel_backward.h, Params::workspace_size: for each row and head, gradients of keys and values of one tile
    of keys for each split (none where they stay in registers), and one buffer for each tile of the query's gradient.
    """
    tile = next(tile for tile in BACKWARD_TILES if size <= tile.largest_head)
    of_keys = 0
    if not tile.in_registers:
        splits = -(-keys // tile.keys)
        if batch * heads >= MIN_PARALLELISM and keys <= 2 * tile.keys:
            splits = 1
        splits = max(1, min(splits, SPLIT_BLOCKS // (batch * heads)))
        of_keys = splits * tile.keys * _up(size, tile.queries)
    tiles = -(-queries // tile.queries) * -(-size // tile.keys)
    of_queries = tiles * (LOCK_ELEMENTS + tile.queries * tile.keys)
    return batch * heads * _up(2 * of_keys + of_queries, 4)


def _laid_out_by_token(tensor: torch.Tensor) -> torch.Tensor:
    batch, heads, tokens, size = tensor.shape
    return tensor.new_empty(batch, tokens, heads, size).transpose(1, 2)


def _bytes_of(query: torch.Tensor, a_head_and_token: float) -> torch.Tensor:
    batch, heads, queries, _ = query.shape
    return query.new_empty(round(a_head_and_token * batch * heads * queries), dtype=torch.uint8)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _tell(flops: int) -> None:
    for listener in _flop_listeners:
        listener(flops)
