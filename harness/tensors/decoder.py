"""Finds the parts of a causal language model once, before a method wraps it, and keeps them as module references."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from harness.errors import HarnessError
from harness.method import Decoder
from harness.models import BaseModelSpec

OTHERS = ("embedding", "final_norm", "head")
HASHING_THREADS = 8
"""Each holds one parameter in host memory at a time."""

Checksums = tuple[tuple[str, ...], dict[str, str]]
"""Of every block; of embedding, final_norm and head by role."""


def find_decoder(model: nn.Module, spec: BaseModelSpec) -> Decoder:
    """Return where the blocks, embedding, final norm and head of ``model`` are.

    Raises:
        HarnessError: the model has no module at one of the spec's paths.
    """
    parts = {role: _module_at(model, getattr(spec, role), role, spec.name) for role in ("blocks", *OTHERS)}
    blocks = tuple(parts["blocks"].children())
    if not blocks:
        raise HarnessError(f"model '{spec.name}': '{spec.blocks}' holds no decoder block")
    head, embedding = parts["head"], parts["embedding"]
    return Decoder(
        blocks=blocks,
        block_names=tuple(f"{spec.blocks}.{name}" for name, _ in parts["blocks"].named_children()),
        embedding=embedding,
        final_norm=parts["final_norm"],
        head=head,
        tied_head=getattr(head, "weight", None) is getattr(embedding, "weight", None),
        names={id(parameter): name for name, parameter in model.named_parameters()},
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
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        tensor = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checksums(decoder: Decoder) -> Checksums:
    """Return the checksum of every block, and those of embedding, final_norm and head by role.

    Threads share the work, as hashing and copying from a device let go of the interpreter: of 13.5 GB on a GPU one
    thread would make half a minute.
    """
    modules = [*decoder.blocks, *(getattr(decoder, role) for role in OTHERS)]
    with ThreadPoolExecutor(min(HASHING_THREADS, os.cpu_count() or 1)) as pool:
        found = list(pool.map(checksum, modules))
    number = len(decoder.blocks)
    return tuple(found[:number]), dict(zip(OTHERS, found[number:], strict=True))


def _module_at(model: nn.Module, path: str, role: str, name: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise HarnessError(
            f"model '{name}': there is no module '{path}' for its {role}; set '{role}' in its entry of models.toml"
        ) from error
