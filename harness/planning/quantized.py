"""Packed 4-bit layers without storage: what they hold and what their products allocate. They compute nothing.

bitsandbytes quantizes by values, so that its ``Linear4bit`` cannot be made of tensors that have none. What stands here
in its place holds a packed weight and constants of the sizes that it would have, and in each product makes and frees
what bitsandbytes does: constants turned back into fp32 where they are quantized, twice (without their mean and with it)
in the forward pass and once in the backward pass, and the whole matrix in the precision of the product.

Source: the bitsandbytes 0.50.2 distribution, autograd/_functions.py (``MatMul4Bit``), functional.py
(``dequantize_4bit``), backends/cuda/ops.py (``_dequant_linear_fallback``) and backends/default/ops.py
(``_gemm_4bit_default_impl``). On CUDA up to 1,536 tokens of a micro-batch may go to a fused kernel, chosen by device
and shape, which makes no such matrix in the forward pass; that is not told apart, and ``harness plan`` says so. Nothing
here was calibrated on a device.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from harness.settings import Quantization
from harness.tensors.dtypes import DTYPES
from harness.tensors.quantized import (
    BLOCK,
    BLOCK_OF_CONSTANTS,
    bitsandbytes,
    constants_bytes,
    layers_to_quantize,
    packed_bytes,
)

FUSED_TOKENS = 1536
"""Of a micro-batch: above it no fused kernel is taken. Source: backends/cuda/ops.py, _gemm_4bit_custom_max_m."""


class _Product(torch.autograd.Function):
    """Allocates what ``bitsandbytes.matmul_4bit`` allocates where the input requires a gradient or not."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any, bias: torch.Tensor | None) -> torch.Tensor:
        """Return (batch, tokens, out_features)."""
        ctx.layer = layer
        constants = _constants(layer)
        shifted = None if constants is None else constants + layer.mean
        matrix = x.new_empty((layer.out_features, layer.in_features))
        out = torch.nn.functional.linear(x, matrix, bias)
        del constants, shifted, matrix
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the input, and None for layer and bias, which are frozen."""
        (grad,) = grads
        constants = _constants(ctx.layer)
        matrix = grad.new_empty((ctx.layer.out_features, ctx.layer.in_features))
        found = torch.matmul(grad, matrix)
        del constants, matrix
        return found, None, None


def _constants(layer: Any) -> torch.Tensor | None:
    """Return (blocks,) fp32 where the constants are quantized."""
    return layer.absmax.new_empty(layer.absmax.shape, dtype=torch.float32) if layer.double else None


def plan_quantized(model: nn.Module, how: Quantization, dtype: str) -> str:
    """Replace the linear layers of a model on ``meta`` by what stands for packed ones; return what was assumed.

    Args:
        model: On ``meta``.
        how: As the run's.
        dtype: ``fp32`` or ``bf16``.

    Raises:
        Refused: bitsandbytes is missing, which peft needs to put an adapter beside such a layer, or the model has none.
    """
    kind = _stand_in()
    packed = scales = 0
    names = layers_to_quantize(model)
    for name in names:
        linear = cast(nn.Linear, model.get_submodule(name))
        size = linear.in_features * linear.out_features
        packed, scales = packed + packed_bytes(size), scales + constants_bytes(size, double=how.double)
        model.set_submodule(name, kind(linear, how, dtype))
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
    return (
        f"{len(names)} layers are held in {how.kind}: {packed:,} bytes of weights and {scales:,} of their constants; "
        "each was taken as turned back whole for a product, where on CUDA bitsandbytes may take a fused kernel up to "
        f"{FUSED_TOKENS:,} tokens of a micro-batch"
    )


def _stand_in() -> Any:
    """Return the class of the stand-ins: one of bitsandbytes' own, so that peft takes it for what it stands for."""
    bnb = bitsandbytes()

    class PlannedLinear4bit(bnb.nn.Linear4bit):  # type: ignore[misc, name-defined]
        """A packed layer without values; its constants are buffers, so that they are counted."""

        def __init__(self, linear: nn.Linear, how: Quantization, dtype: str) -> None:
            with torch.device("meta"):
                super().__init__(
                    linear.in_features,
                    linear.out_features,
                    bias=False,
                    compute_dtype=DTYPES[dtype],
                    compress_statistics=how.double,
                    quant_type=how.kind,
                )
                size = linear.in_features * linear.out_features
                blocks = -(-size // BLOCK)
                data = torch.empty((packed_bytes(size), 1), dtype=torch.uint8)
                self.weight = bnb.nn.Params4bit(
                    data, requires_grad=False, compress_statistics=how.double, quant_type=how.kind, bnb_quantized=True
                )
                self.register_buffer("absmax", torch.empty(blocks, dtype=torch.uint8 if how.double else torch.float32))
                self.register_buffer("code", torch.empty(16))
                if how.double:
                    self.register_buffer("mean", torch.empty(()))
                    self.register_buffer("absmax_of_constants", torch.empty(-(-blocks // BLOCK_OF_CONSTANTS)))
                    self.register_buffer("code_of_constants", torch.empty(256))
            self.bias = linear.bias
            self.double = how.double
            if self.bias is not None:
                self.bias.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Return (batch, tokens, out_features), dtype as ``x``."""
            made: torch.Tensor = _Product.apply(x.to(self.compute_dtype), self, self.bias)  # type: ignore[no-untyped-call]
            return made.to(x.dtype)

    return PlannedLinear4bit
