"""Attention as it will run on the device, for fake CPU tensors: which mask there will be, and which kernel.

Under fake tensors transformers makes a causal mask in full where a real run needs none, because it may read no value.
So a mask function is registered under the planned attention's name that makes one where the real run makes one: where
rows are padded and the batch brings its mask, and where a layer's sliding window is not longer than the row.

``cuda`` stands for torch's own choice on a GPU: flash attention without a mask, memory-efficient attention under one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from harness.device_profile import DeviceProfile
from harness.planning.kernels import EfficientAttention, FlashAttention, MeasuredAttention, kept_bias

Device = Literal["cuda", "cpu"]


def register_attention(device: Device, profile: DeviceProfile | None = None) -> str:
    """Make the attention of a device known to transformers; return the name for ``attn_implementation``.

    Args:
        device: Of which kind.
        profile: What was measured of it, in place of what the kernels are known to allocate.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    name = f"harness_planned_{device}"
    AttentionInterface.register(name, _cuda_attention(profile) if device == "cuda" else _cpu_attention)
    AttentionMaskInterface.register(name, planned_mask)
    return name


def planned_mask(
    *,
    q_length: int,
    kv_length: int,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    mask_function: Callable[..., Any] | None = None,
    **others: Any,
) -> torch.Tensor | None:
    """Return the mask of one kind of layer, (batch, 1, queries, keys) bool, or None where the real run makes none.

    Source of the rule: transformers 5.23.0, masking_utils.py, ``_ignore_causal_mask_sdpa``: none is made of a row that
    is not padded, unless the window (``local_size``) is no longer than the row. Without a batch's mask,
    ``mask_function`` is not used: of fake positions transformers cannot tell that no rows were packed, and adds that.

    Args:
        q_length: Tokens of a row.
        kv_length: The same: nothing was cached.
        attention_mask: (batch, keys) bool of padded rows, or None.
        local_size: Sliding window of the layers, or None.
        mask_function: Which pairs of tokens see each other.
        others: What else ``sdpa_mask`` takes.
    """
    from transformers.masking_utils import sdpa_mask, sliding_window_causal_mask_function

    if attention_mask is None:
        if local_size is None or kv_length < local_size:
            return None
        mask_function, others = sliding_window_causal_mask_function(local_size), {**others, "use_vmap": False}
    skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    assert mask_function is not None
    mask: torch.Tensor | None = sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        **{**others, **skips},
    )
    return mask


def planned_cuda_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    profile: DeviceProfile | None = None,
) -> torch.Tensor:
    """Return (batch, queries, heads, head size), as transformers has it, having allocated what attention does on CUDA.

    Args:
        query: (batch, heads, queries, head size), bf16 or fp16.
        key: (batch, heads of keys, keys, head size).
        value: As ``key``.
        mask: (batch, 1 or heads, queries, keys) bool, or None.
        profile: What was measured of the device.
    """
    from transformers.integrations.sdpa_attention import repeat_kv

    bias = None
    if mask is not None:
        groups = query.shape[1] // key.shape[1]
        key, value, bias = repeat_kv(key, groups), repeat_kv(value, groups), kept_bias(mask, query)
    grouped = key.shape[1] != query.shape[1]
    constants = None
    if profile is not None:
        constants = profile.attention_constants(mask=mask is not None, grouped=grouped, head_size=query.shape[-1])
    if constants is not None:
        out = MeasuredAttention.apply(constants, query, key, value, bias)  # type: ignore[no-untyped-call]
    elif bias is None:
        out = FlashAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
    else:
        out = EfficientAttention.apply(query, key, value, bias)  # type: ignore[no-untyped-call]
    assert isinstance(out, torch.Tensor)
    return out.transpose(1, 2)


def _cuda_attention(profile: DeviceProfile | None) -> Callable[..., tuple[torch.Tensor, None]]:
    """Return attention on CUDA as transformers calls it: with the module first."""

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        if query.dtype not in (torch.bfloat16, torch.float16):
            return _cpu_attention(module, query, key, value, attention_mask, **kwargs)
        return planned_cuda_attention(query, key, value, attention_mask, profile), None

    return attention


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
