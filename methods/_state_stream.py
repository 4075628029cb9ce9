"""The state of one block at a time on the device: brought over for its update and written back behind it.

Paper: GRASS (arXiv 2604.07808), its layer-wise offload of optimizer state; no code was released. Here it is a setting
of every layer sampling (``active_state``), and moves bytes alone: no number changes.

On CUDA copies run on a stream of their own, between device and pinned host memory. What orders them:

- a block is updated after the compute stream has waited for the event behind its copies to the device;
- its copies to the host begin after the copy stream has waited for the compute stream, so for its update;
- copies do not overtake each other: they are on one stream. So a host buffer is read after it was written, and
  memory that was freed behind a copy to the host is filled again by a later copy, without a wait of the host's.

Tensors that are brought over come from the copy stream's own pool, and are held until they have been written back: the
allocator may then give their memory to the next block's at once. What an update makes for the first time comes from
the compute stream's pool, and is marked as used by the copy stream (``record_stream``) before it is let go. Host and
device meet at the end of every step, where the loop synchronises the device, and before a checkpoint is taken.

On other devices the same calls are made one after the other, without stream and pinning. The part for CUDA, the class
``_Copies``, has been read and not run: the project was built on machines without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from harness.tensors.placement import on_host, optimizer_state

State = dict[str, Any]


class _Copies:
    """Copies between host and device, beside what is computed where the device has streams."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def issued(self) -> AbstractContextManager[Any]:
        """Let what is copied and allocated inside be the copy stream's."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def done(self) -> torch.cuda.Event | None:
        """Return an event behind all copies so far."""
        return None if self._stream is None else self._stream.record_event()

    def before_updates(self, event: torch.cuda.Event | None) -> None:
        """Let what is computed from now on wait for an event of :meth:`done`."""
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def after_updates(self) -> None:
        """Let copies from now on wait for what was computed so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def to_device(self, host: torch.Tensor) -> torch.Tensor:
        """Return a copy on the device of a tensor on the host; to be called inside :meth:`issued`."""
        with optimizer_state():
            value = torch.empty_like(host, device=self._device)
        return value.copy_(host, non_blocking=True)

    def to_host(self, value: torch.Tensor, host: torch.Tensor | None) -> torch.Tensor:
        """Return a copy on the host, in ``host`` where it fits; to be called inside :meth:`issued`."""
        with on_host():
            if host is None or host.shape != value.shape or host.dtype != value.dtype:
                host = torch.empty_like(value, device="cpu", pin_memory=self._stream is not None)
            host.copy_(value, non_blocking=True)
        if self._stream is not None:
            value.record_stream(self._stream)  # no effect on what is of the copy stream's own pool
        return host

    def pinned(self, host: torch.Tensor) -> torch.Tensor:
        """Return a tensor on the host as copies want it."""
        return host if self._stream is None else host.pin_memory()

    def wait(self) -> None:
        """Let the host wait for all copies."""
        if self._stream is not None:
            self._stream.synchronize()


class StateStream:
    """Keeps the state of blocks on the host, but for the one that is updated and, if asked, the next."""

    def __init__(
        self,
        blocks: Sequence[Sequence[torch.Tensor]],
        state: dict[torch.Tensor, State],
        names: dict[torch.Tensor, str],
        offloaded: set[str],
        *,
        ahead: bool,
        descending: bool,
    ) -> None:
        """Take the parameters of each block.

        Args:
            blocks: Of the decoder; state of other parameters stays where it is.
            state: The optimizer's; its tensors are exchanged here, those on the host for those on the device.
            names: Of the parameters.
            offloaded: The names of those whose state is on the host, kept up to date here.
            ahead: Bring the next block's state over while one is updated.
            descending: Blocks are updated from the last to the first, as in a backward pass.
        """
        self._blocks = [list(block) for block in blocks]
        self._block_of = {p: index for index, block in enumerate(self._blocks) for p in block}
        self._state, self._names, self._offloaded = state, names, offloaded
        self._ahead, self._descending = ahead, descending
        self._copies = _Copies(self._blocks[0][0].device)
        self._open: int | None = None
        self._left: set[torch.Tensor] = set()
        self._arrived: dict[int, torch.cuda.Event | None] = {}
        self._held: dict[torch.Tensor, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = {}

    def in_order(self, params: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Return parameters that are updated together block by block; those of no block come last."""
        end = len(self._blocks)
        order = {p: self._block_of.get(p, end) for p in params}
        return sorted(order, key=lambda p: -order[p] if self._descending and order[p] < end else order[p])

    def begin(self, p: torch.Tensor) -> None:
        """Have the state of a parameter that is updated next on the device."""
        block = self._block_of.get(p)
        if block is None or block == self._open:
            return
        self._close()
        self._fetch(block)
        self._open, self._left = block, {q for q in self._blocks[block] if q.requires_grad}
        self._copies.before_updates(self._arrived[block])
        following = self._following(block) if self._ahead else None
        if following is not None:
            self._fetch(following)

    def end(self, p: torch.Tensor) -> None:
        """Hear that a parameter was updated: behind the last of its block the state goes back."""
        self._left.discard(p)
        if self._block_of.get(p) is not None and not self._left:
            self._close()

    def flush(self) -> None:
        """Write back all that is on the device: a step is over."""
        self._close()
        for block in list(self._arrived):
            self._write_back(block)

    def wait(self) -> None:
        """Let the host wait until what was written back can be read."""
        self._copies.wait()

    def restart(self) -> None:
        """Take the state that was loaded: all of it of blocks on the host."""
        self._open, self._left = None, set()
        self._arrived.clear()
        self._held.clear()
        for p in self._block_of:
            for key, value in _tensors(self._state.get(p, {})).items():
                self._state[p][key] = self._copies.pinned(value)

    def _following(self, block: int) -> int | None:
        """Return the block that is updated after one, or None behind the last."""
        others = range(block - 1, -1, -1) if self._descending else range(block + 1, len(self._blocks))
        return next((other for other in others if any(p.requires_grad for p in self._blocks[other])), None)

    def _fetch(self, block: int) -> None:
        """Copy the state of a block to the device, as far as it has some on the host and is not there already."""
        if block in self._arrived:
            return
        with self._copies.issued():
            for p in self._blocks[block]:
                if self._names[p] in self._offloaded and p in self._state:
                    hosts = _tensors(self._state[p])
                    values = {key: self._copies.to_device(host) for key, host in hosts.items()}
                    self._state[p].update(values)
                    self._held[p] = hosts, values
                    self._offloaded.discard(self._names[p])
            self._arrived[block] = self._copies.done()

    def _close(self) -> None:
        if self._open is not None:
            self._write_back(self._open)
            self._open, self._left = None, set()

    def _write_back(self, block: int) -> None:
        """Copy the state of a block to the host, and let go of it on the device."""
        del self._arrived[block]
        self._copies.after_updates()
        with self._copies.issued():
            for p in self._blocks[block]:
                hosts, _ = self._held.pop(p, ({}, {}))
                if self._names[p] not in self._offloaded and p in self._state:
                    for key, value in _tensors(self._state[p]).items():
                        self._state[p][key] = self._copies.to_host(value, hosts.get(key))
                    self._offloaded.add(self._names[p])


def _tensors(state: State) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
