"""Follows every tensor storage that is made and freed, and says what they were for: the breakdown of a memory peak.

A dispatch mode sees the results of every operation, on real tensors and on fake ones alike, so the same tracker serves
planning (fake tensors, no memory at all) and measurement (the first steps of a run). What an operation allocates inside
itself it cannot see: planning adds those from a table, and a test compares it with torch's own allocator events.

FSDP2 makes and frees gathered weights without any operation: it resizes their storages (torch 2.13,
torch/distributed/fsdp/_fully_shard/_fsdp_param.py, ``alloc_storage`` and ``free_storage``). So storages that are
resized are followed too, each time as a new one, and they are weights: nobody else resizes any. Gradients of gathered
weights are activations until they are summed over the processes: ``gradients`` are the parts that stay.

What a storage was for often shows only later (a matrix product becomes a gradient when it is accumulated), so events
are kept until :meth:`StorageTracker.take` and folded with the final category of each storage.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self, get_args

import torch
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from harness.tensors.placement import meant_for_host, meant_for_state
from harness.tensors.sharded import local

Category = Literal["weights", "gradients", "optimizer_state", "activations", "other"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
LOSS_MOMENTS = frozenset({"forward", "backward", "inference"})
"""Moments in which a new storage is an activation until something else shows."""

HOST = -1
"""Number of every storage that lies on the host."""


@dataclass(slots=True)
class _Storage:
    size: int
    category: Category


@dataclass(frozen=True)
class Event:
    """One storage made (``num_bytes`` > 0) or freed (< 0)."""

    storage: int
    """Number of the storage, the same when it is made and when it is freed."""
    num_bytes: int
    category: Category
    moment: str


@dataclass(frozen=True)
class Span:
    """What happened between two calls of :meth:`StorageTracker.take`."""

    start: dict[Category, int]
    """Bytes alive at the beginning."""
    events: tuple[Event, ...]
    peak: Peak


@dataclass(frozen=True)
class Peak:
    """The largest sum of live storages, in bytes, and what it was made of."""

    num_bytes: int
    by_category: dict[Category, int]
    moment: str
    position: int
    """Number of events before it."""


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts live device storages by category while it is entered. Host storages are left out: see ``placement``."""

    def __init__(self, device_type: str | None = None) -> None:
        """Begin with nothing known.

        Args:
            device_type: Storages elsewhere count as the host's; None: the place of a storage is not looked at.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._device_type = device_type
        self.moment = "start"
        """What is going on: ``resample``, ``forward``, ``backward``, ``clip``, ``optimizer``, or anything else."""
        self._known: dict[int, int] = {}
        self._references: dict[int, weakref.ref[Any]] = {}
        self._storages: dict[int, _Storage] = {}
        self._events: list[tuple[int, int, str]] = []
        self._next = 0
        self._alive_at_start: list[int] = []
        self._performs_itself = type(self).perform is not StorageTracker.perform

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave the calls as they are: what keeps torch's compiler out of them takes as long as they do."""
        return False

    def __enter__(self) -> Self:
        resize = self._resize = torch.UntypedStorage.resize_

        def resize_and_tell(storage: torch.UntypedStorage, size: int) -> Any:
            resized = resize(storage, size)
            self._note_resized(storage)
            return resized

        torch.UntypedStorage.resize_ = resize_and_tell  # type: ignore[method-assign, assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if types and any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # what it does to the parts of tensors comes by next
        # A step has tens of thousands of operations: no call in between that nothing asks for.
        if self._performs_itself:
            result = self.perform(func, types, args, kwargs)
        else:
            result = func(*args, **kwargs) if kwargs else func(*args)
        if type(result) is torch.Tensor:
            storage = result.untyped_storage()
            if storage._cdata not in self._known:
                self._note_new(storage, result)
        elif isinstance(result, torch.Tensor):
            self._note(result)
        elif result is not None:
            for value in pytree.tree_leaves(result):
                if isinstance(value, torch.Tensor):
                    self._note(value)
        return result

    def perform(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Return what an operation makes."""
        return func(*args, **(kwargs or {}))

    def adopt(self, tensors: Iterable[torch.Tensor], category: Category) -> None:
        """Count tensors that exist already."""
        kept = list(tensors)
        for tensor in kept:
            self._note(tensor)
        self.classify(kept, category)

    def classify(self, tensors: Iterable[torch.Tensor], category: Category) -> None:
        """Say what tensors are for; unknown ones, such as those on the host, are left out."""
        for tensor in tensors:
            index = self._known.get(local(tensor).untyped_storage()._cdata, HOST)
            if index != HOST:
                self._storages[index].category = category

    def note_hidden(self, num_bytes: int) -> None:
        """Count memory that an operation has just made and freed inside itself, beside its results."""
        index = self._next
        self._next += 1
        self._storages[index] = _Storage(num_bytes, "other")
        self._events += [(index, num_bytes, self.moment), (index, -num_bytes, self.moment)]

    def alive(self) -> dict[Category, int]:
        """Return the bytes alive now."""
        totals: dict[Category, int] = dict.fromkeys(CATEGORIES, 0)
        for index in self._known.values():
            if index != HOST:
                totals[self._storages[index].category] += self._storages[index].size
        return totals

    def take(self) -> Span:
        """Return what happened since the last call, and begin anew; live storages stay known."""
        start: dict[Category, int] = dict.fromkeys(CATEGORIES, 0)
        for index in self._alive_at_start:
            start[self._storages[index].category] += self._storages[index].size
        events = tuple(
            Event(index, size, self._storages[index].category, moment) for index, size, moment in self._events
        )
        self._events.clear()
        self._alive_at_start = [index for index in self._known.values() if index != HOST]
        self._storages = {index: self._storages[index] for index in self._alive_at_start}
        return Span(start, events, peak_of(start, events))

    def _note(self, tensor: torch.Tensor) -> None:
        storage = local(tensor).untyped_storage()
        if storage._cdata not in self._known:
            self._note_new(storage, tensor)

    def _note_new(self, storage: torch.UntypedStorage, tensor: torch.Tensor) -> None:
        elsewhere = self._device_type is not None and tensor.device.type != self._device_type
        category: Category = "activations" if self.moment in LOSS_MOMENTS else "other"
        self._begin(storage, "optimizer_state" if meant_for_state() else category, elsewhere or meant_for_host())

    def _note_resized(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        index = self._known.get(key)
        if index == HOST:
            return
        if index is not None:
            self._storages[index].category = "weights"
            self._events.append((index, -self._storages[index].size, self.moment))
        self._begin(storage, "weights", index is None and self._device_type not in (None, storage.device.type))

    def _begin(self, storage: torch.UntypedStorage, category: Category, on_host: bool) -> None:
        """Follow a storage from now on, by its present size."""
        key = storage._cdata
        if key not in self._known:
            # A storage keeps its Python object for as long as it lives, so the reference dies with the storage.
            self._references[key] = weakref.ref(storage, partial(self._forget, key))
        if on_host:
            self._known[key] = HOST
            return
        index = self._known[key] = self._next
        self._next += 1
        size = storage.nbytes()
        self._storages[index] = _Storage(size, category)
        self._events.append((index, size, self.moment))

    def _forget(self, key: int, _: Any) -> None:
        del self._references[key]
        index = self._known.pop(key)
        if index != HOST:
            self._events.append((index, -self._storages[index].size, self.moment))


def peak_of(start: dict[Category, int], events: Sequence[Event]) -> Peak:
    """Return the peak over events that begin with ``start`` bytes alive."""
    live = dict(start)
    total = largest = sum(live.values())
    best, moment, position = dict(live), events[0].moment if events else "start", 0
    rising = False
    for number, event in enumerate(events, 1):
        if rising and event.num_bytes < 0 and total > largest:
            largest, best, moment, position = total, dict(live), events[number - 2].moment, number - 1
        live[event.category] += event.num_bytes
        total += event.num_bytes
        rising = event.num_bytes > 0
    if total > largest:
        largest, best, moment, position = total, dict(live), events[-1].moment, len(events)
    return Peak(largest, best, moment, position)
