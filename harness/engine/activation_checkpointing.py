"""Activation checkpointing: what a block's forward pass makes is computed again in the backward pass, not kept.

``block`` keeps the input of every decoder block (transformers' own way, torch's checkpoint without re-entrance).
``nested`` checkpoints inside each block too, around each child module that holds linear layers (attention, MLP), so
that recomputing a block holds what one of them makes, not both, at the price of one more forward pass through all but
the last of them (where the last begins, recomputing the block stops).
Modules stay where they are: only ``forward`` of an instance is covered, so no parameter changes its name.

transformers and peft let the embedding's output require gradients under checkpointing, which re-entrance needs. Without
it nothing does, and where the embedding is frozen every block below the lowest trained one would be computed again and
differentiated for nothing: here the backward pass ends where nothing below is trained, as without checkpointing.

With :class:`CheckpointOffload` the kept inputs lie in host memory between the two passes. The copies are made on the
device's own stream, so that they are exact without further synchronisation and take time of the step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, noop_context_fn

from harness.errors import Refused
from harness.method import Decoder
from harness.settings import TrainSettings
from harness.tensors.linear import linear_layers
from harness.tensors.placement import on_host

ContextFn = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]
"""Gives what is entered around the first computation and around the second, as in torch.utils.checkpoint."""


def enable_checkpointing(
    model: nn.Module, decoder: Decoder, settings: TrainSettings, context_fn: ContextFn = noop_context_fn
) -> None:
    """Checkpoint the blocks of ``model`` as the settings say; nothing is done where they say nothing."""
    if not settings.gradient_checkpointing:
        return
    # Covered, not taken back: peft asks for it again as it wraps the model.
    model.enable_input_require_grads = _leave_inputs_alone  # type: ignore[assignment]
    options = {"use_reentrant": False, "context_fn": context_fn}
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)  # type: ignore[operator]
    if settings.checkpoint_granularity == "nested":
        for child in nested_modules(decoder.blocks):
            child.forward = partial(_checkpointed, child.forward, context_fn)  # type: ignore[method-assign]


def disable_checkpointing(model: nn.Module, decoder: Decoder, settings: TrainSettings) -> None:
    """Undo :func:`enable_checkpointing`."""
    if not settings.gradient_checkpointing:
        return
    model.activation_checkpointing_disable()  # type: ignore[operator]
    for module in model.modules():  # peft's wrapper holds the one that was covered
        vars(module).pop("enable_input_require_grads", None)
    if settings.checkpoint_granularity == "nested":
        for child in nested_modules(decoder.blocks):
            del child.forward


def _leave_inputs_alone() -> None:
    """Stand in for transformers' enable_input_require_grads."""


def nested_modules(blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the children of blocks that hold linear layers, such as attention and MLP.

    Raises:
        Refused: a block has none.
    """
    found = [
        [child for child in block.children() if any(layer is not child for layer in linear_layers(child))]
        for block in blocks
    ]
    if not all(found):
        raise Refused("checkpoint_granularity = 'nested' finds nothing inside a block to checkpoint: use 'block'")
    return [child for children in found for child in children]


def _checkpointed(forward: Callable[..., Any], context_fn: ContextFn, *args: Any, **kwargs: Any) -> Any:
    # The outer checkpoint sees tensors that the inner one takes by position; by name they would be kept for ever.
    names = [name for name, value in kwargs.items() if isinstance(value, torch.Tensor)]
    rest = {name: value for name, value in kwargs.items() if name not in names}

    count = len(args)  # not args itself in what follows: the checkpoint keeps what its function refers to

    def positional(*values: Any) -> Any:
        named = dict(zip(names, values[count:], strict=True))
        return forward(*values[:count], **named, **rest)

    tensors = (kwargs[name] for name in names)
    return checkpoint(positional, *args, *tensors, use_reentrant=False, context_fn=context_fn)


class CheckpointOffload:
    """Keeps the inputs of checkpointed blocks in host memory: pinned for a CUDA device, a real copy on a CPU too."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks = blocks
        self._entering: torch.Tensor | None = None
        self._held = 0
        self.peak_bytes = 0
        """The most that lay on the host at once."""

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Send the inputs of the blocks to the host inside the ``with``; the backward pass fetches each.

        Raises:
            Refused: the inputs of the blocks could not be told from other tensors.
        """
        handles = [block.register_forward_pre_hook(self._note, with_kwargs=True) for block in self._blocks]
        try:
            with saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self._entering = None
            for handle in handles:
                handle.remove()
        if not self.peak_bytes:
            raise Refused("offload_checkpoints found no input of a decoder block that is kept: leave it out")

    def _note(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._entering = args[0] if args else kwargs["hidden_states"]

    def _pack(self, tensor: torch.Tensor) -> Any:
        entering = self._entering
        if entering is None or tensor.untyped_storage()._cdata != entering.untyped_storage()._cdata:
            return tensor
        self._entering = None
        with on_host():
            copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        copy.copy_(tensor, non_blocking=True)
        self._hold(copy.nbytes)
        weakref.finalize(copy, self._hold, -copy.nbytes)
        return copy, tensor.device

    def _hold(self, num_bytes: int) -> None:
        self._held += num_bytes
        self.peak_bytes = max(self.peak_bytes, self._held)

    def _unpack(self, packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        copy, device = packed
        fetched: torch.Tensor = copy.to(device, non_blocking=True, copy=True)
        return fetched
