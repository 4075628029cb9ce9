"""Finds the parts of a causal language model once, before a method wraps it, and keeps them as module references."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn

from harness.catalogue.models import BaseModelSpec
from harness.errors import HarnessError
from harness.method import Decoder
from harness.tensors.sharded import is_sharded, whole

OTHERS = ("embedding", "final_norm", "head")
HASHING_THREADS = 8
"""Each holds one parameter in host memory at a time."""

Checksums = tuple[tuple[str, ...], dict[str, str]]
"""Of every block; of embedding, final_norm and head by role."""


@dataclass(frozen=True)
class ModelChecksums:
    """SHA-256 over the parameters of every part."""

    blocks: tuple[str, ...]
    others: dict[str, str]
    """Of embedding, final_norm and head by role."""
    base_blocks: tuple[str, ...]
    """Of the blocks' own parameters alone; empty where nothing was added to any."""


def find_decoder(model: nn.Module, spec: BaseModelSpec) -> Decoder:
    """Return where the blocks, embedding, final norm and head of ``model`` are.

    Raises:
        HarnessError: the model has no module at one of the spec's paths.
    """
    return decoder_at(model, spec.places(), spec.name)


def decoder_at(model: nn.Module, places: Mapping[str, str], name: str) -> Decoder:
    """Return the decoder of a model whose parts are at these places.

    Args:
        model: Not wrapped yet.
        places: Names of modules by part: blocks, embedding, final_norm, head.
        name: Of the model, in a message.

    Raises:
        HarnessError: the model has no module at one of them.
    """
    parts = {role: _module_at(model, places[role], role, name) for role in ("blocks", *OTHERS)}
    blocks = tuple(parts["blocks"].children())
    if not blocks:
        raise HarnessError(f"model '{name}': '{places['blocks']}' holds no decoder block")
    head, embedding = parts["head"], parts["embedding"]
    return Decoder(
        blocks=blocks,
        block_names=tuple(f"{places['blocks']}.{child}" for child, _ in parts["blocks"].named_children()),
        embedding=embedding,
        final_norm=parts["final_norm"],
        head=head,
        tied_head=getattr(head, "weight", None) is getattr(embedding, "weight", None),
        names={id(parameter): path for path, parameter in model.named_parameters()},
    )


def active_blocks(decoder: Decoder) -> tuple[int, ...]:
    """Return the indices of the blocks that hold a parameter that requires grad."""
    return tuple(
        index
        for index, block in enumerate(decoder.blocks)
        if any(parameter.requires_grad for parameter in block.parameters())
    )


def active_others(decoder: Decoder) -> tuple[str, ...]:
    """Return which of embedding, final_norm and head hold a parameter that requires grad."""
    return tuple(role for role in OTHERS if any(p.requires_grad for p in getattr(decoder, role).parameters()))


def checksum(module: nn.Module) -> str:
    """Return the SHA-256 over a module's parameters: name, dtype, shape and bytes of each, sorted by name."""
    return _checksum(module, None)[0]


def checksums(decoder: Decoder) -> Checksums:
    """Return the checksum of every block, and those of embedding, final_norm and head by role."""
    found = model_checksums(decoder)
    return found.blocks, found.others


def model_checksums(decoder: Decoder) -> ModelChecksums:
    """Return the checksums of every part of a model in one reading of its parameters.

    Threads share the work, as hashing and copying from a device let go of the interpreter: of 13.5 GB on a GPU one
    thread would make half a minute.
    """
    modules = [*decoder.blocks, *(getattr(decoder, role) for role in OTHERS)]
    several = any(is_sharded(p) for module in modules for p in module.parameters())
    # What is gathered is gathered in the same order everywhere.
    with ThreadPoolExecutor(1 if several else min(HASHING_THREADS, os.cpu_count() or 1)) as pool:
        found = list(pool.map(lambda module: _checksum(module, decoder.names), modules))
    number = len(decoder.blocks)
    wholes, bases = [whole for whole, _ in found], tuple(base for _, base in found[:number])
    blocks = tuple(wholes[:number])
    return ModelChecksums(blocks, dict(zip(OTHERS, wholes[number:], strict=True)), () if bases == blocks else bases)


def _checksum(module: nn.Module, own: Mapping[int, str] | None) -> tuple[str, str]:
    """Return the checksums of all parameters and of its own: ids in ``own``, None for all; those come first."""
    named = sorted(module.named_parameters())
    digest = hashlib.sha256()
    for name, parameter in named:
        if own is None or id(parameter) in own:
            _update(digest, name, parameter)
    base = digest.hexdigest()
    for name, parameter in named:
        if own is not None and id(parameter) not in own:
            _update(digest, name, parameter)
    return digest.hexdigest(), base


def _update(digest: hashlib._Hash, name: str, parameter: torch.Tensor) -> None:
    tensor = whole(parameter.detach()).cpu().contiguous()
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _module_at(model: nn.Module, path: str, role: str, name: str) -> nn.Module:
    if role == "final_norm" and not path:  # blocks that end in a norm of their own
        return nn.Identity()
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise HarnessError(
            f"model '{name}': there is no module '{path}' for its {role}; set '{role}' in the model's entry: "
            "[base_models.NAME] of the suite or catalogue file, or models.toml"
        ) from error
