"""A model that is never there whole: its tensors stay in the files of its checkpoint and come a module at a time.

The model is laid out on ``meta`` by transformers' own ``from_pretrained``, which checks names and shapes and settles
the dtype of every tensor. A module is then filled for as long as it is used: its tensors are read from the safetensors
files and converted as transformers does it (:func:`StreamedModel.filled`). What is in the files' own dtype is mapped,
not copied, and no mapping outlives the module's use, so that the process holds the pages of one module at a time.

Source of what transformers does: transformers 5.23.0, core_model_loading.py, ``_materialize_copy`` (``.to`` of the
dtype that the laid out tensor has); modeling_utils.py, ``_move_missing_keys_from_meta_to_device`` and ``_init_weights``
(buffers that are in no checkpoint, as rotary frequencies, are made by the latter).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from harness.catalogue.models import BaseModelSpec
from harness.checkpoint_files import weight_files
from harness.errors import HarnessError
from harness.method import Decoder
from harness.tensors.decoder import find_decoder
from harness.tensors.loading import config_in, load_on_meta

ONE_AFTER_THE_OTHER = frozenset({"gemma", "gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3"})
"""``model_type`` of the decoders whose code was read, transformers 5.23.0, models/<type>/modeling_<type>.py: the
forward pass calls embedding, blocks, final norm and head, each block once and in order with the hidden states that the
one before it returned, and else with masks and positions, which follow from the shape of the input ids alone."""


class CannotStream(Exception):
    """Why a model has to be loaded whole, as the end of a sentence."""


class StreamedModel:
    """A model on ``meta`` whose modules can be filled from its checkpoint, one after the other."""

    def __init__(self, model: nn.Module, decoder: Decoder, device: torch.device, places: Mapping[int, _Place]) -> None:
        self.model = model
        """All its parameters are on ``meta``; buffers that no checkpoint holds have their values, on the device."""
        self.decoder = decoder
        self.device = device
        self._places = places

    @contextmanager
    def filled(self, module: nn.Module) -> Iterator[None]:
        """Give the tensors of a module their values inside, on the device.

        Raises:
            HarnessError: a file cannot be read.
        """
        kept = [(table, name, tensor) for table, name, tensor in _tensors(module) if id(tensor) in self._places]
        read = _read({id(tensor): tensor for _, _, tensor in kept}, self._places, self.device)
        for table, name, tensor in kept:
            table[name] = read[id(tensor)]
        del read
        try:
            yield
        finally:
            for table, name, tensor in kept:
                table[name] = tensor


def stream_model(folder: Path, dtype: str, device: torch.device, spec: BaseModelSpec) -> StreamedModel:
    """Return the model in a folder, to be filled a module at a time.

    Args:
        folder: As ``load_model``.
        dtype: ``fp32`` or ``bf16``.
        device: Where what is filled goes.
        spec: Its entry, which says where its parts are.

    Raises:
        CannotStream: it has to be loaded whole.
        HarnessError: as ``load_model`` and ``find_decoder``.
    """
    kind = config_in(folder).model_type
    if kind not in ONE_AFTER_THE_OTHER:
        raise CannotStream(f"no one has read whether the blocks of a '{kind}' model can be run one by one")
    model: Any = load_on_meta(folder, dtype)
    if not type(model).__module__.startswith(f"transformers.models.{kind}."):
        raise CannotStream(f"{type(model).__name__} is no class of transformers whose code was read")
    if getattr(model, "_weight_conversions", None) != []:
        raise CannotStream("transformers renames or joins tensors of its checkpoint as it loads them")
    decoder = find_decoder(model, spec)
    if model.config.get_text_config().tie_word_embeddings and not decoder.tied_head:
        raise CannotStream("its checkpoint holds a head beside the embedding, although they share their weights")
    places = _places(model, folder)
    _make_buffers(model, places, device)
    return StreamedModel(model, decoder, device, places)


class _Place:
    """Where a tensor lies in a checkpoint."""

    __slots__ = ("file", "name")

    def __init__(self, file: Path, name: str) -> None:
        self.file, self.name = file, name


def _places(model: Any, folder: Path) -> dict[int, _Place]:
    """Return where each tensor of a model's state lies, by its id.

    Raises:
        CannotStream: one lies under another name.
        HarnessError: a file cannot be read.
    """
    files: dict[str, Path] = {}
    for file in weight_files(folder):
        with _opened(file) as opened:
            files |= dict.fromkeys(opened.keys(), file)
    prefix = f"{model.base_model_prefix}."
    found: dict[int, _Place] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        for there in (name, name.removeprefix(prefix), prefix + name):  # of a model that was saved without its head
            if there in files:
                found[id(tensor)] = _Place(files[there], there)
                break
    if absent := [name for name, tensor in state.items() if id(tensor) not in found]:
        raise CannotStream(f"{absent[0]} stands under another name in its checkpoint")
    return found


def _make_buffers(model: Any, places: Mapping[int, _Place], device: torch.device) -> None:
    """Make the buffers that are in no checkpoint, as ``from_pretrained`` does on the host, and put them on a device."""
    for module in model.modules():
        made = [name for name, buffer in module._buffers.items() if buffer is not None and id(buffer) not in places]
        if not made:
            continue
        for name in made:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
        with torch.no_grad():
            model._init_weights(module)  # what of it is on meta stays so
        for name in made:
            module._buffers[name] = module._buffers[name].to(device)


def _tensors(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    """Yield the parameters and buffers of a module and those inside it, each with the table that it stands in."""
    for one in module.modules():
        tables: tuple[dict[str, Any], ...] = (one._parameters, one._buffers)
        for table in tables:
            yield from ((table, name, tensor) for name, tensor in table.items() if tensor is not None)


def _read(
    wanted: Mapping[int, torch.Tensor], places: Mapping[int, _Place], device: torch.device
) -> dict[int, torch.Tensor]:
    """Return tensors with their values, by the ids of those on ``meta``."""
    found: dict[int, torch.Tensor] = {}
    for file in dict.fromkeys(places[key].file for key in wanted):
        with _opened(file) as opened:
            for key, laid_out in wanted.items():
                if places[key].file == file:
                    values = opened.get_tensor(places[key].name).to(dtype=laid_out.dtype).to(device)
                    parameter = isinstance(laid_out, nn.Parameter)
                    found[key] = nn.Parameter(values, requires_grad=False) if parameter else values
    return found


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a file of weights.

    Raises:
        HarnessError: it cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (OSError, SafetensorError) as error:
        raise HarnessError(f"{file}: the weights cannot be read: {error}") from error
