"""Tensors of sizes alone: torch's meta device under a mode, in place of fake tensors, which take five times as long.

A fake tensor computes in Python, at every call, what its result will look like. The calls of a training step are few
kinds repeated thousands of times, so here the sizes of a result are worked out once by torch's own meta kernels and
remembered by the operator and what it was given: sizes, strides and dtypes of tensors, and every other argument. A view
is always left to torch, as it shares the storage of what it looks at. Who reads a value, or brings a tensor that is
neither made inside nor on meta, is told so (:class:`NeedsFakeTensors`), and the prediction is made anew with fake ones.

What differs is the name of the device, ``meta`` where fake tensors say ``cpu``; so this is taken only for decoders
whose code was read, whose attention is planned by this project. A test compares both, number by number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from harness.tensors.placement import meant_for_host

META = torch.device("meta")
_LEFT_OUT = frozenset({"generator", "pin_memory"})
"""Arguments that say from which stream and for which copies: of sizes there are none."""
_UNKNOWN: Any = object()


class NeedsFakeTensors(Exception):
    """Something was asked of a tensor that is more than its sizes."""


class _Made(NamedTuple):
    """What a new tensor is like."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


_Result = _Made | tuple[_Made, ...]


class SizesMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs every operation on meta while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[Any, _Result | None] = {}
        """What calls make; None: nothing new, the first argument is changed and returned."""
        self._kinds: dict[Any, tuple[str, bool]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave the calls as they are: what keeps torch's compiler out of them takes as long as they do."""
        return False

    def from_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the same sizes."""
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what an operation would, as far as sizes go."""
        found = self._kinds.get(func)
        if found is None:
            found = self._kinds[func] = _kind(func), any(one.name == "device" for one in func._schema.arguments)
        kind, has_place = found
        if kind == "reads":
            raise NeedsFakeTensors(str(func))
        if kind == "lifts":
            return self.from_tensor(args[0])
        if kwargs:
            if kind == "copies" and _to_the_host(args[0], kwargs):
                raise NeedsFakeTensors(f"{func} to a place that is not told apart")
            kwargs = {name: None if name in _LEFT_OUT else value for name, value in kwargs.items()}
        else:
            kwargs = {}
        if has_place:
            kwargs["device"] = META
        if kind == "view":
            return func(*args, **kwargs)
        key = (func, _described(args), *((name, _described(value)) for name, value in kwargs.items()))
        try:
            known = self._known.get(key, _UNKNOWN)
        except TypeError:  # an argument that cannot be looked up
            return func(*args, **kwargs)
        if known is _UNKNOWN:
            result = func(*args, **kwargs)
            if kind == "makes" and _shares(result, args):
                self._kinds[func] = "view", has_place
            else:
                self._learn(key, kind, args, result)
            return result
        if known is None:
            return args[0]
        if isinstance(known, _Made):
            return _make(known)
        return tuple(_make(one) for one in known)

    def _learn(self, key: Any, kind: str, args: tuple[Any, ...], result: Any) -> None:
        """Remember what a call made, if it can be made again from its sizes."""
        if kind == "changes":
            if result is args[0]:
                self._known[key] = None
        elif isinstance(result, torch.Tensor):
            if _is_plain(result):
                self._known[key] = _made(result)
        elif isinstance(result, tuple) and len(_storages(result)) == len(result) and all(map(_is_plain, result)):
            self._known[key] = tuple(_made(one) for one in result)


@contextmanager
def sizes_are_fake() -> Iterator[None]:
    """Let transformers take tensors on meta for what it takes fake ones for: without values to look at."""
    from transformers.utils import import_utils

    before = import_utils.is_fake_tensor
    import_utils.is_fake_tensor = lambda x: (isinstance(x, torch.Tensor) and x.is_meta) or before(x)
    try:
        yield
    finally:
        import_utils.is_fake_tensor = before


def _kind(func: Any) -> str:
    """Return how an operator is treated, by its schema."""
    if func is torch.ops.aten._local_scalar_dense.default:
        return "reads"
    if func in (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift.default):
        return "lifts"
    if func is torch.ops.aten._to_copy.default:
        return "copies"
    returned = [one.alias_info for one in func._schema.returns]
    if not any(returned):
        return "makes" if func._schema.returns else "view"
    first = func._schema.arguments[0].alias_info if func._schema.arguments else None
    if len(returned) == 1 and returned[0].is_write and first is not None and first.is_write:
        return "changes" if not func._schema.name.startswith(_RESIZING) else "view"
    return "view"


_RESIZING = ("aten::set_", "aten::resize", "aten::squeeze_", "aten::unsqueeze_", "aten::transpose_", "aten::t_")
"""Operators that change the sizes of what they are given, not its numbers alone."""


def _to_the_host(tensor: torch.Tensor, kwargs: dict[str, Any]) -> bool:
    """Return whether a copy leaves the device for a host that is not told apart from it.

    Among fake tensors, all of which are the CPU's, it would be no copy at all, unless one is asked for, which cannot
    be seen here.
    """
    device = kwargs.get("device")
    if device is None or torch.device(device).type == "meta" or meant_for_host():
        return False
    return kwargs.get("dtype") in (None, tensor.dtype)


def _shares(result: Any, args: tuple[Any, ...]) -> bool:
    """Return whether a result lies in the storage of an argument, whatever the schema says (``_unsafe_view``)."""
    return not _storages(pytree.tree_leaves(args)).isdisjoint(_storages(pytree.tree_leaves(result)))


def _storages(values: Iterable[Any]) -> set[int]:
    return {value.untyped_storage()._cdata for value in values if isinstance(value, torch.Tensor)}


def _described(value: Any) -> Any:
    """Return what stands for an argument in a key: equal for calls whose results are alike."""
    if isinstance(value, torch.Tensor):
        if not value.is_meta:
            raise NeedsFakeTensors("a tensor that was made outside")
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(_described(one) for one in value)
    return type(value), value


def _is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor takes all of its storage from its beginning, as one made of its sizes alone would."""
    made = tensor.storage_offset() == 0 and tensor.layout == torch.strided
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return made and tensor.untyped_storage().nbytes() == (reach * tensor.element_size() if tensor.numel() else 0)


def _made(tensor: torch.Tensor) -> _Made:
    return _Made(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)


def _make(made: _Made) -> torch.Tensor:
    return torch.empty_strided(made.shape, made.stride, dtype=made.dtype, device=META)
