"""Rotary positions that are scaled by the length of what a model reads, so that rows of one batch touch each other.

Reference: transformers 5.23.0, modeling_rope_utils.py, ``dynamic_rope_update``. Under ``dynamic`` (NTK) frequencies are
computed anew when a row is longer than ``max_position_embeddings``, kept for shorter ones that follow, and set back by
one that is shorter than that; under ``longrope`` another set of frequencies is taken beyond
``original_max_position_embeddings``. Both judge by the largest position of the whole batch. ``rope_type`` is one for
all layers, or one for each type of layer. Every other type (``default``, ``linear``, ``llama3``, ``yarn``) rotates a
position alike in every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn


def rotation_limit(model: nn.Module) -> int | None:
    """Return the most tokens of a row whose positions are rotated as in any shorter one; None: there is no such end."""
    limits = []
    for module, layer_type, rope_type in _scaled(model):
        if "dynamic" in rope_type:
            limits.append(int(module.original_max_seq_len))
        else:
            parameters = module.config.rope_parameters
            own = parameters if layer_type is None else parameters[layer_type]
            limits.append(int(own["original_max_position_embeddings"]))
    return min(limits, default=None)


def reset_rotation(model: nn.Module) -> None:
    """Rotate what comes next as a model does that has read nothing yet."""
    for module, layer_type, rope_type in _scaled(model):
        if "dynamic" not in rope_type:
            continue
        prefix = "" if layer_type is None else f"{layer_type}_"
        held = getattr(module, f"{prefix}inv_freq")
        original = getattr(module, f"{prefix}original_inv_freq").to(held.device)
        module.register_buffer(f"{prefix}inv_freq", original.clone(), persistent=False)
        setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def hold_rotation(model: nn.Module) -> None:
    """Have a model rotate rows of every length as it stands, for planning: the choice by length asks a tensor's value.

    Tensors keep their sizes: only the values of the frequencies would be others.
    """
    for module, layer_type, _ in list(_scaled(model)):
        if layer_type is None:
            module.rope_type = "default"
        else:
            module.rope_type = {**module.rope_type, layer_type: "default"}


def _scaled(model: nn.Module) -> Iterator[tuple[Any, str | None, str]]:
    """Yield (module, type of layer or None for all, rope type) wherever the rotation depends on the length."""
    for module in model.modules():
        rope_type: Any = getattr(module, "rope_type", None)
        kinds = rope_type if isinstance(rope_type, Mapping) else {None: rope_type}
        for layer_type, kind in kinds.items():
            if isinstance(kind, str) and ("dynamic" in kind or kind == "longrope"):
                yield module, layer_type, kind
