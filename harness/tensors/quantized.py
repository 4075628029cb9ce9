"""Base weights in 4 bits, as bitsandbytes holds them: which layers, how they are made, what they take, and back again.

Papers: QLoRA (arXiv 2305.14314), section 3. Reference: the bitsandbytes 0.50.2 distribution, nn/modules.py
(``Linear4bit``, ``Params4bit``) and functional.py (``quantize_4bit``), and transformers 5.23's
quantizers/quantizer_bnb_4bit.py, used as they are. Deliberate differences from the reference:

- which layers: transformers' rule, all linear layers but the head and what is tied to it; the transposed ones of GPT-2
  and its kin are refused, as no weight would stand where its architecture has it;
- the packed format for CPUs with AVX512-BF16 is kept off. There an evaluation under ``no_grad`` repacks the frozen
  weights in place, rounds their constants to bf16, and training goes on in that format without a gradient for a layer's
  input;
- ``prepare_model_for_kbit_training`` of peft is not called: it casts embedding, head and norms to fp32;
- a checkpoint's matrix of another shape than the layer is refused, which transformers takes when it quantizes.

What a layer holds beside its packed weights, ``quant_state``, is among neither parameters nor buffers of the module.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from harness.errors import Refused
from harness.settings import Quantization
from harness.tensors.dtypes import DTYPES
from harness.tensors.optimizer_state import storage_bytes

BLOCK = 64
"""Elements of a block, which share a constant. Source: bitsandbytes, ``Params4bit``."""
BLOCK_OF_CONSTANTS = 256
"""Constants of a block where they are quantized too. Source: functional.py, ``quantize_4bit``."""
CODE_BYTES, CODE_OF_CONSTANTS_BYTES, MEAN_BYTES = 16 * 4, 256 * 4, 4
"""Of the 16 values of nf4, of the 256 that constants take, and of the constants' mean: fp32, and each layer has its
own."""
EXTRA = "pip install bitsandbytes, or in a checkout pip install '.[quantized]'"


def bitsandbytes() -> Any:
    """Return the module bitsandbytes.

    Raises:
        Refused: it is not installed or cannot be loaded.
    """
    try:
        import bitsandbytes as found
    except (ImportError, OSError, RuntimeError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise Refused(
            f"quantized base weights need the package bitsandbytes, which cannot be imported ({said}): {EXTRA}"
        ) from error
    return found


def quantized_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers whose weights are packed, by name; none where nobody has imported bitsandbytes."""
    loaded: Any = sys.modules.get("bitsandbytes")
    kind: Any = getattr(getattr(loaded, "nn", None), "Linear4bit", None)
    return {} if kind is None else {name: one for name, one in model.named_modules() if isinstance(one, kind)}


def layers_to_quantize(model: Any) -> list[str]:
    """Return the names of the layers that are to be packed, in order.

    Raises:
        Refused: there are none, or some are transposed.
    """
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    found = [
        (name, one)
        for name, one in model.named_modules()
        if (type(one) is nn.Linear or isinstance(one, Conv1D)) and should_convert_module(name, kept)
    ]
    if transposed := [name for name, one in found if isinstance(one, Conv1D)]:
        raise Refused(
            f"quantization packs linear layers, and {transposed[0]} is a transposed one (Conv1D), as {len(transposed)} "
            "layers of this architecture are: set quantization = 'none'"
        )
    if not found:
        raise Refused("quantization packs linear layers, and this model has none but its head")
    return [name for name, _ in found]


def quantize(model: nn.Module, how: Quantization, dtype: str) -> None:
    """Pack the linear layers of a model in place, one after the other, where they lie.

    Args:
        model: Every parameter in ``dtype``.
        how: What is made.
        dtype: ``fp32`` or ``bf16``; products are computed in it.

    Raises:
        Refused: bitsandbytes is missing, or the model has no such layers.
    """
    bnb = bitsandbytes()
    for name in layers_to_quantize(model):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        device = linear.weight.device
        with torch.device("meta"):
            packed = bnb.nn.Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                compute_dtype=DTYPES[dtype],
                compress_statistics=how.double,
                quant_type=how.kind,
            )
        weight = bnb.nn.Params4bit(
            linear.weight.detach(),
            requires_grad=False,
            compress_statistics=how.double,
            quant_type=how.kind,
            module=packed,
        )
        packed.weight = weight.to(device)
        packed.bias = linear.bias
        model.set_submodule(name, packed)
        del linear, weight
    settle(model)


def settle(model: Any) -> None:
    """Leave of a model that was just quantized what belongs to it: no format but one, nothing of how it was loaded.

    peft asks ``is_loaded_in_4bit``. What transformers notes beside it would be written into a ``config.json`` of merged
    weights, which are not quantized.
    """
    for layer in quantized_layers(model).values():
        layer.support_avx512bf16_for_cpu = False
        layer.requires_grad_(False)
        vars(layer).pop("source_cls", None)
    for name in ("hf_quantizer", "quantization_method", "is_quantized", "hf_device_map"):
        vars(model).pop(name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._is_quantized = False
    model.is_loaded_in_4bit = True


def loading(how: Quantization, dtype: str, device: torch.device) -> dict[str, Any]:
    """Return what ``from_pretrained`` is told so that it packs each tensor as it reads it.

    Raises:
        Refused: bitsandbytes is missing.
    """
    from transformers import BitsAndBytesConfig

    bitsandbytes()
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=how.kind,
        bnb_4bit_use_double_quant=how.double,
        bnb_4bit_compute_dtype=DTYPES[dtype],
    )
    return {"quantization_config": config, "device_map": {"": device}}


def mismatched(model: nn.Module) -> set[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Return name, shape in the checkpoint and wanted shape of each packed weight that does not fit its layer."""
    found: set[tuple[str, tuple[int, ...], tuple[int, ...]]] = set()
    for name, layer in quantized_layers(model).items():
        state = getattr(layer.weight, "quant_state", None)  # None of one that is missing in the checkpoint
        wanted = layer.out_features, layer.in_features
        if state is not None and tuple(state.shape) != wanted:
            found.add((f"{name}.weight", tuple(state.shape), wanted))
    return found


def weight_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield all that a model's weights are made of: parameters, buffers, and the constants of what is packed."""
    yield from model.parameters()
    yield from model.buffers()
    for layer in quantized_layers(model).values():
        yield from constants(layer)


def constants(layer: Any) -> list[torch.Tensor]:
    """Return the tensors of a packed layer's ``quant_state``: constants, code books, mean; none of a planned one.

    Constants are (blocks,), fp32, or uint8 where they are quantized too, with fp32 ones of their own.
    """
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return []
    found = [state.absmax, state.code, state.offset]
    if state.state2 is not None:
        found += [state.state2.absmax, state.state2.code]
    return [one for one in found if one is not None]


def parameter_sizes(model: nn.Module) -> dict[int, int]:
    """Return the number of weights that each packed parameter stands for, by its ``id``; two of them lie in a byte."""
    return {id(one.weight): one.in_features * one.out_features for one in quantized_layers(model).values()}


def held_packed(model: nn.Module) -> dict[str, Any] | None:
    """Return how the packed layers of a model are held and what they take; None where there are none."""
    layers = list(quantized_layers(model).values())
    if not layers:
        return None
    return {
        "kind": layers[0].weight.quant_type,
        "double": layers[0].weight.compress_statistics,
        "num_layers": len(layers),
        "num_params": sum(one.in_features * one.out_features for one in layers),
        "packed_bytes": storage_bytes(one.weight for one in layers),
        "constants_bytes": storage_bytes(tensor for one in layers for tensor in constants(one)),
        "version": bitsandbytes().__version__,
    }


def packed_bytes(num_weights: int) -> int:
    """Return the bytes of so many weights of one layer, constants apart: two in a byte."""
    return -(-num_weights // 2)


def constants_bytes(num_weights: int, *, double: bool) -> int:
    """Return the bytes of the constants of one layer: 0.5 bits a weight, or 0.127 where they are quantized too.

    Code books and the mean are not in it.

    Source: QLoRA (arXiv 2305.14314), section 3: 32/64 = 0.5, and 8/64 + 32/(64 * 256) = 0.127.
    """
    blocks = -(-num_weights // BLOCK)
    return blocks + 4 * -(-blocks // BLOCK_OF_CONSTANTS) if double else 4 * blocks


def layer_bytes(num_weights: int, *, double: bool) -> int:
    """Return all bytes that one layer allocates: weights, constants, code books, mean."""
    rest = CODE_BYTES + (CODE_OF_CONSTANTS_BYTES + MEAN_BYTES if double else 0)
    return packed_bytes(num_weights) + constants_bytes(num_weights, double=double) + rest


def dequantize(model: nn.Module, names: Mapping[str, nn.Module]) -> None:
    """Turn packed layers of a model back into linear ones in the precision they compute in, in place.

    Args:
        model: Holds the layers.
        names: Of the layers, each with itself.
    """
    from torch.nn import Linear

    bnb = bitsandbytes()
    for name, layer in names.items():
        packed: Any = layer
        with torch.device("meta"):
            linear = Linear(packed.in_features, packed.out_features, bias=packed.bias is not None)
        values = bnb.functional.dequantize_4bit(packed.weight.data, packed.weight.quant_state)
        linear.weight = nn.Parameter(values.to(packed.compute_dtype), requires_grad=False)
        linear.bias = packed.bias
        model.set_submodule(name, linear)
