"""Weights that several processes of a machine have in common until each has taken its part: files in their memory.

A file that is mapped is read from the disk as it is needed, and its pages are one copy for all processes, which the
system lets go again when memory is short. So no process holds a model of its own:

- the files of a folder whose weights are in the wanted dtype are mapped by transformers itself (5.23, safetensors'
  storages): nothing is to be done;
- of another dtype one process writes a copy of them, a tensor at a time (:func:`convert`): the disk holds a model once
  more meanwhile, that process one tensor, in both dtypes;
- random values are drawn by one process, each tensor into a file of its own (:func:`build_in_files`), and taken from
  there by the others (:func:`build_from_files`): the disk holds a model, that process one tensor.

What a tensor below ``LEAST_BYTES`` takes is each process's own. Files can be removed once all have mapped them: their
storage goes when the last process lets go of it. Where transformers makes one weight of several as it loads (experts of
a mixture), what it makes is in the memory of every process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from harness.catalogue.models import BaseModelSpec
from harness.checkpoint_files import INDEX, WEIGHTS, weight_files
from harness.errors import HarnessError
from harness.files import make_folder
from harness.tensors.dtypes import DTYPES
from harness.tensors.loading import build_model
from harness.tensors.tensor_files import DTYPES as FILE_DTYPES
from harness.tensors.tensor_files import write_tensors

LEAST_BYTES = 1 << 20
"""Smaller tensors are no files of their own."""
OTHER_SHARE = 0.01
"""Of a folder's bytes that may be in another dtype without a copy of it being written."""
SMALL, PLACES = "small.safetensors", "places.json"
"""What is no file of its own, and which tensor lies in which file."""


def is_mapped_as(folder: Path, dtype: str) -> bool:
    """Return whether all but little of a folder's floating weights is in a dtype, so that loading it copies nothing.

    Args:
        folder: What ``save_pretrained`` wrote.
        dtype: ``fp32`` or ``bf16``.
    """
    total = other = 0
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in sorted(opened.keys()):
                part = opened.get_slice(name)
                found = FILE_DTYPES.get(part.get_dtype())
                if found is not None and found.is_floating_point:
                    size = torch.Size(part.get_shape()).numel() * found.itemsize
                    total += size
                    other += size if found != DTYPES[dtype] else 0
    return other <= OTHER_SHARE * total


def keeps_precision(folder: Path) -> bool:
    """Return whether a class of models leaves some of its weights in fp32 whatever dtype is asked for."""
    from transformers import AutoModelForCausalLM

    from harness.tensors.loading import config_in

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config_in(folder), trust_remote_code=False)
    return bool(getattr(model, "_keep_in_fp32_modules_strict", None))


def convert(folder: Path, dtype: str, target: Path) -> None:
    """Write a copy of a model's folder whose floating tensors are in a dtype, one tensor at a time.

    Raises:
        HarnessError: it cannot be read.
        OSError: it cannot be written.
    """
    make_folder(target)
    files = weight_files(folder)
    names = {"config.json", "generation_config.json", *([INDEX] if files and files[0].name != WEIGHTS else [])}
    for name in sorted(names):
        if (folder / name).is_file():
            (target / name).write_bytes((folder / name).read_bytes())
    for file in files:
        _convert_file(file, dtype, target / file.name)


def build_in_files(spec: BaseModelSpec, dtype: str, device: torch.device, folder: Path) -> nn.Module:
    """Return what ``build_model`` returns on a device, value by value, with its weights in files that host memory maps.

    The device holds one tensor at a time, and every operation on a weight takes place there.

    Args:
        spec: As :func:`build_model`.
        dtype: As there.
        device: Whose generator draws.
        folder: Where the files are made, with what :func:`build_from_files` needs.

    Raises:
        HarnessError: as :func:`build_model`.
        OSError: the disk does not hold them.
    """
    make_folder(folder)
    with _InFiles(folder, device) as made:
        model = build_model(spec, dtype, device)
    files = {name: made.file_of(p) for name, p in model.named_parameters()}
    small = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if files[name] is None}
    small |= {f"buffer {name}": b.detach().cpu().contiguous() for name, b in _buffers(model).items()}
    save_file(small, folder / SMALL)
    for file in made.files() - {file for file in files.values() if file is not None}:
        (folder / file).unlink()  # of a head that became its embedding
    (folder / PLACES).write_text(json.dumps(files), encoding="utf-8")
    return model


def build_from_files(spec: BaseModelSpec, dtype: str, folder: Path) -> nn.Module:
    """Return the model whose weights :func:`build_in_files` wrote, on the host.

    Raises:
        HarnessError: the model keeps tensors that are neither parameters nor buffers, so that nobody knows them.
    """
    model = build_model(spec, dtype, "meta")
    files: Mapping[str, str | None] = json.loads((folder / PLACES).read_text(encoding="utf-8"))
    small = load_file(folder / SMALL)
    taken = {id(p): _from(p, folder, files[name], small.get(name)) for name, p in model.named_parameters()}
    buffers = {id(b): small[f"buffer {name}"] for name, b in _buffers(model).items()}
    for path, module in model.named_modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = taken[id(p)]
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = buffers[id(b)]
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.is_meta:
                raise HarnessError(
                    f"model '{spec.name}': {path}.{name} is neither parameter nor buffer, so that processes cannot "
                    "share it: run it on one device"
                )
    return model


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_buffers(remove_duplicate=True))


def _convert_file(file: Path, dtype: str, target: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        shapes = {name: _shape(opened, name, dtype, file) for name in sorted(opened.keys())}
        write_tensors(target, shapes, lambda name: opened.get_tensor(name).to(shapes[name].dtype))


def _shape(opened: Any, name: str, dtype: str, file: Path) -> torch.Tensor:
    part = opened.get_slice(name)
    found = FILE_DTYPES.get(part.get_dtype())
    if found is None:
        raise HarnessError(f"{file}: {name} is of type {part.get_dtype()}, which is not known here")
    return torch.empty(part.get_shape(), dtype=DTYPES[dtype] if found.is_floating_point else found, device="meta")


def _from(p: nn.Parameter, folder: Path, file: str | None, small: torch.Tensor | None) -> nn.Parameter:
    tensor = small if file is None else _mapped(folder / file, p.shape, p.dtype)
    assert tensor is not None
    return nn.Parameter(tensor, p.requires_grad)


def _mapped(file: Path, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Return a contiguous tensor in a file, which is there and long enough."""
    storage: Any = torch.UntypedStorage.from_file(str(file), True, shape.numel() * dtype.itemsize)
    tensor: torch.Tensor = torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]
    return tensor


class _InFiles(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Puts what is allocated inside the ``with`` into files, and computes with it on a device, a tensor at a time."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._folder, self._device = folder, device
        self._names: dict[int, str] = {}
        self._held: list[torch.UntypedStorage] = []  # so that no other storage has the address of one

    def file_of(self, tensor: torch.Tensor) -> str | None:
        """Return the name of the file that a tensor lies in, or None."""
        return self._names.get(tensor.untyped_storage()._cdata)

    def files(self) -> set[str]:
        """Return the names of all files."""
        return set(self._names.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Allocate in a file, or compute on the device and bring back what was written."""
        kwargs = kwargs or {}
        if func is torch.ops.aten.empty.memory_format:
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            shape, device = torch.Size(args[0]), torch.device(kwargs.get("device") or "cpu")
            if device.type == self._device.type and shape.numel() * dtype.itemsize >= LEAST_BYTES:
                return self._allocate(shape, dtype)
        if func.is_view or not _is_apart(self._device):
            return func(*args, **kwargs)
        copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def on_device(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or self.file_of(value) is None:
                return value
            if id(value) not in copies:
                copies[id(value)] = value, value.to(self._device, copy=True)
            return copies[id(value)][1]

        result = func(*tree_map(on_device, args), **tree_map(on_device, kwargs))
        if not copies or not func._schema.is_mutable:
            return result
        written = [arg for arg, known in zip(args, func._schema.arguments, strict=False) if _is_written(known)]
        for value in written:
            if id(value) in copies:
                value.copy_(copies[id(value)][1])
        return next((value for value, copy in copies.values() if copy is result), result)

    def _allocate(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        name = f"{len(self._names)}.bin"
        with (self._folder / name).open("wb") as stream:
            # Where the disk is full writing into memory would end the process.
            os.posix_fallocate(stream.fileno(), 0, shape.numel() * dtype.itemsize)
        tensor = _mapped(self._folder / name, shape, dtype)
        self._held.append(tensor.untyped_storage())
        self._names[tensor.untyped_storage()._cdata] = name
        return tensor


def _is_apart(device: torch.device) -> bool:
    """Return whether a device has a memory of its own."""
    return device.type != "cpu"


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write
