"""Tensors that are shared out over the processes of one run, and the model whose parameters are: FSDP2.

Every parameter lies on each process as a part of itself: by rows, or by columns where the rows of a matrix must stay
whole. What a method does to numbers it does to these parts, plain tensors (:func:`local`); where it needs all of one it
gathers that one (:func:`whole`). A tensor that nobody shared out is its own part, so that one process needs no
other code.

Source of the layout: torch 2.13, torch/distributed/fsdp: parts are those of ``torch.chunk``, the last ones shorter or
without an element; columns have to divide.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from harness.errors import Refused
from harness.method import Decoder


@dataclass(frozen=True)
class Place:
    """Which part of a tensor a process holds."""

    dim: int
    """Along which it is cut: 0 by rows, 1 by columns."""
    start: int
    length: int
    whole: torch.Size
    """Of all of it."""

    def cut(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the part of a whole tensor that belongs here; a view."""
        return tensor.narrow(self.dim, self.start, self.length)

    def shape_of_whole(self, part: torch.Size) -> torch.Size:
        """Return the shape of all of a tensor that lies as this one, given that of the part that belongs here."""
        return torch.Size([*part[: self.dim], self.whole[self.dim], *part[self.dim + 1 :]])


Apart = Literal["apart"]
APART: Apart = "apart"
"""Of what a process holds that is no part of a tensor which another number of processes could cut anew."""
MOST_SECONDS_HELD = 1.0
"""Until a tensor that is still held after a collective is taken to be held by somebody else."""
Lying = Place | Apart | None
"""How a tensor lies: which part of it a process holds; ``APART``; None: each process holds all of it."""


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this process holds, in the same storage; of a plain tensor all of it."""
    if not is_sharded(tensor):
        return tensor
    part: torch.Tensor = tensor._local_tensor  # type: ignore[attr-defined]
    return part


def is_sharded(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is shared out over processes."""
    return hasattr(tensor, "_local_tensor")


def place_of(tensor: torch.Tensor) -> Place | None:
    """Return which part of a tensor this process holds, or None for a plain one, of which it holds all."""
    if not is_sharded(tensor):
        return None
    mesh, (placement,) = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    dim = placement.dim
    size, rank = _part_length(tensor.shape[dim], mesh.size()), mesh.get_local_rank()
    start = min(rank * size, tensor.shape[dim])
    return Place(dim, start, min(size, tensor.shape[dim] - start), tensor.shape)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor, gathered from every process; a plain one is itself."""
    return gathered(local(tensor), tensor)


def gathered(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return all of what every process holds a part of, parts lying as those of ``like`` do.

    Args:
        part: This process's, plain, any dtype.
        like: A tensor of the whole shape; where it is plain, ``part`` is all there is.
    """
    place = place_of(like)
    if place is None:
        return part
    group, number = like.device_mesh.get_group(), like.device_mesh.size()  # type: ignore[attr-defined]
    total, size = place.whole[place.dim], _part_length(place.whole[place.dim], like.device_mesh.size())  # type: ignore[attr-defined]
    shape = list(part.shape)
    shape[place.dim] = size
    if place.length < size:
        padded = part.new_zeros(shape)
        padded.narrow(place.dim, 0, place.length).copy_(part)
        part = padded
    together = part.new_empty([number * shape[0], *shape[1:]])
    _all_gather(together, part.contiguous(), group)
    if place.dim == 0:
        return together if number * size == total else together[:total].clone()
    return torch.cat(together.chunk(number), dim=place.dim).narrow(place.dim, 0, total)


def in_rank_order(tensor: torch.Tensor, group: Any = None) -> torch.Tensor:
    """Return what every process holds of a small tensor, (processes, *shape), in the order of their numbers."""
    number = torch.distributed.get_world_size(group)
    together = tensor.new_empty([number * max(tensor.numel(), 1)])
    _all_gather(together, tensor.contiguous().view(-1), group)
    return together.view(number, *tensor.shape)


def _all_gather(together: torch.Tensor, part: torch.Tensor, group: Any) -> None:
    """Fill ``together`` with the parts of all processes, in their order."""
    gather = _collective("all_gather_single", "all_gather_into_tensor")
    _let_go(lambda: gather(together, part, group=group), together, part)


def _collective(name: str, before: str) -> Callable[..., Any]:
    """Return a function of torch.distributed, which had another name before torch 2.13."""
    distributed: Any = torch.distributed
    found: Callable[..., Any] = getattr(distributed, name, None) or getattr(distributed, before)
    return found


def _let_go(act: Callable[[], Any], *tensors: torch.Tensor) -> Any:
    """Return what a collective returns, once gloo's threads have let go of its tensors on a CPU.

    They hold them a moment longer than the wait for it takes, on a busy machine a long one: memory that is freed then
    would be counted, or not, as threads happen to run.

    Source: torch 2.13, torch/csrc/distributed/c10d/ProcessGroupGloo.cpp, ``runLoop``.
    """
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    held = [_holders(storage) for storage in storages]
    result = act()
    until = time.monotonic() + MOST_SECONDS_HELD
    while any(_holders(one) > before for one, before in zip(storages, held, strict=True)) and time.monotonic() < until:
        time.sleep(0)
    return result


def _holders(storage: torch.UntypedStorage) -> int:
    count: int = torch._C._storage_Use_Count(storage._cdata)
    return count


class _Collective:
    """Of FSDP2's on a CPU, after which nobody else holds its tensors."""

    def __init__(self, name: str, before: str) -> None:
        self._act = _collective(name, before)

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, **how: Any) -> Any:
        if how.get("async_op"):
            return self._act(output_tensor, input_tensor, **how)
        return _let_go(lambda: self._act(output_tensor, input_tensor, **how), output_tensor, input_tensor)


def parts_begin_at(multiple: int, part: torch.Size, like: torch.Tensor) -> bool:
    """Return whether every process's part is a run of numbers of the whole that begins at a multiple of so many.

    Args:
        multiple: Of numbers.
        part: Shape of what one process holds of a tensor whose parts lie as those of ``like`` do.
        like: A tensor.
    """
    place = place_of(like)
    if place is None:
        return True
    rows = _part_length(place.whole[0], like.device_mesh.size())  # type: ignore[attr-defined]
    return place.dim == 0 and (rows >= place.whole[0] or rows * math.prod(part[1:]) % multiple == 0)


def _part_length(total: int, number: int) -> int:
    return -(-total // number)


def class_of(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module as it was before :func:`shard`, which gives it a class that is derived from it."""
    if not hasattr(module, "set_requires_gradient_sync"):
        return type(module)
    found: type[nn.Module] = type(module).__mro__[2]  # (derived, FSDPModule, its own, ...)
    return found


def base_of(model: nn.Module) -> nn.Module:
    """Return the model that is called: the base model inside peft's, else itself."""
    inside: Any = getattr(model, "get_base_model", None)
    base: nn.Module = model if inside is None else inside()
    return base


def shard(model: nn.Module, decoder: Decoder, mesh: Any, by_columns: Collection[torch.Tensor] = ()) -> Decoder:
    """Share the parameters of a model out over the processes of a mesh; return the decoder with its new parameters.

    Each block is a group whose parameters are gathered together for its forward and its backward pass, so are the
    embedding, and final norm with head; all three are one where head and embedding share their weight. Gradients are
    summed, not averaged. No group stays gathered after a forward pass, not even the outermost: else a pass without a
    backward pass would leave plain parameters in the model's place for whoever asks for them by name next.

    Args:
        model: As ``prepare`` returned it; values on any device, which are moved to the mesh's a group at a time.
        decoder: Of it.
        mesh: Of one dimension.
        by_columns: Matrices to be cut by columns; all else is by rows.

    Raises:
        Refused: the columns of one cannot be shared out evenly, or a group would be trained in more than one dtype.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import Shard

    base, number = base_of(model), mesh.size()
    columns = {id(p) for p in by_columns}
    for name, p in base.named_parameters():
        if id(p) in columns and p.shape[1] % number:
            raise Refused(
                f"{name} is shared out by columns, and its {p.shape[1]} columns are not a multiple of {number} "
                "processes: choose another number"
            )
    own = [
        (module, name, decoder.names[id(p)])
        for module in base.modules()
        for name, p in module.named_parameters(recurse=False)
        if id(p) in decoder.names
    ]

    def placement(p: nn.Parameter) -> Any:
        return Shard(1) if id(p) in columns else None

    settings: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True, "shard_placement_fn": placement}
    ends = [one for one in (decoder.final_norm, decoder.head) if any(True for _ in one.parameters())]
    groups = [[decoder.embedding, *ends]] if decoder.tied_head else [[decoder.embedding], ends]
    for modules in (*([block] for block in decoder.blocks), *groups):
        _refuse_mixed(modules)
    for block in decoder.blocks:
        fully_shard(block, **settings)
    for group in groups:
        fully_shard(group if len(group) > 1 else group[0], **settings)
    fully_shard(base, **settings)
    gather: Any = _Collective("all_gather_single", "all_gather_into_tensor")
    scatter: Any = _Collective("reduce_scatter_single", "reduce_scatter_tensor")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The factor alone makes gradients in bf16 zero on NCCL: github.com/pytorch/pytorch/issues/190745.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
            if mesh.device_type == "cpu":
                module.set_custom_all_gather(gather)
                module.set_custom_reduce_scatter(scatter)
    return dataclasses.replace(decoder, names={id(getattr(module, name)): known for module, name, known in own})


def _refuse_mixed(modules: Sequence[nn.Module]) -> None:
    """Refuse a group whose gradients cannot be summed together."""
    by_dtype = {p.dtype: name for module in modules for name, p in module.named_parameters() if p.requires_grad}
    if len(by_dtype) > 1:
        kinds = " and ".join(f"{name} in {str(dtype).removeprefix('torch.')}" for dtype, name in by_dtype.items())
        raise Refused(f"{kinds} would be trained in one group, which shared-out training cannot: run it on one device")


def reshard(model: nn.Module) -> None:
    """Let go of parameters that a forward or backward pass gathered and, ending early, left so."""
    for module in model.modules():
        if hasattr(module, "set_requires_gradient_sync"):
            module.reshard()  # type: ignore[operator]
