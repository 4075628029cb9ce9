"""The processes of one run, one a device: which of them this is, and what they tell each other.

They meet through a file in the run's work folder, tensors go by gloo on a CPU and by NCCL on CUDA, and words by the
same file. Whatever is decided from a number is decided from the same number in every process, so that all take the same
way: a process that raises alone leaves the others waiting for it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch

from harness.engine.environment import describe_environment
from harness.errors import HarnessError, Refused
from harness.record import Record
from harness.tensors.out_of_memory import is_out_of_memory
from harness.tensors.sharded import in_rank_order

T = TypeVar("T")

MADE, REFUSED, FAILED = "+", "-", "!"
"""Before what the first process tells the others."""

RENDEZVOUS = "rendezvous"
"""File in the work folder through which the processes of a run meet."""
MEETING_SECONDS = 600
"""How long processes wait for each other, at the start as later: one may load, compile or score blocks alone."""
PATIENCE_SECONDS = 7 * 24 * 3600
"""How long the others wait for what the first one does alone: whoever started them ends them where it ends."""
LAST_WORD_SECONDS = 30
"""How long processes whose run failed wait for each other."""
LOST = (
    "gloo",
    "NCCL",
    "nccl",
    "Connection closed by peer",
    "Connection reset by peer",
    "recvValue failed",
    "wait timeout",
)
"""In what torch raises where another process of a collective operation is gone."""


class Deserted(Exception):
    """This process could not go on because another one of the same run ended."""

    def __init__(self, record: Record | None) -> None:
        super().__init__("another process of the run ended")
        self.record = record
        """What the run was until then, of its first process."""


class FirstFailed(RuntimeError):
    """The first process of the run could not make what this one waits for; it says itself why."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run as one of them sees them."""

    rank: int = 0
    size: int = 1
    mesh: Any = None
    """torch's, of one dimension; None for one process."""
    _store: Any = None
    _letters: Iterator[int] = field(default_factory=count)

    @property
    def first(self) -> bool:
        """Return whether this is the process that writes what the run leaves."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Return whether there are others."""
        return self.size > 1

    def share(self, items: Sequence[T]) -> list[tuple[int, T]]:
        """Return this process's part of what is dealt out one by one, each with its number in the whole."""
        return list(enumerate(items))[self.rank :: self.size]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a small tensor over all processes, added up in their order: equal bits in each."""
        if not self.several:
            return tensor
        parts = in_rank_order(tensor)
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total

    def dealt(self, parts: torch.Tensor) -> torch.Tensor:
        """Return what every process has of :meth:`share`, (items,), in the order of the items."""
        return parts if not self.several else in_rank_order(parts).t().reshape(-1)

    def number_of_first(self, number: float, device: torch.device) -> float:
        """Return a number as the first process has it: one that each computed may differ in its last bit."""
        if not self.several:
            return number
        return float(in_rank_order(torch.tensor(number, dtype=torch.float64, device=device))[0])

    def exchange(self, words: str) -> list[str]:
        """Return what every process says, in their order; each waits for all."""
        if not self.several:
            return [words]
        number = next(self._letters)
        self._store.set(f"{number}/{self.rank}", words)
        return [self._store.get(f"{number}/{rank}").decode() for rank in range(self.size)]

    def of_first(self, words: str) -> str:
        """Return what the first process says; each waits for all."""
        return self.exchange(words)[0]

    def from_first(self, make: Callable[[], str]) -> str:
        """Return what the first process makes, alone; the others wait for it as long as it takes.

        Raises:
            FirstFailed: this is not the first process, which raised.
        """
        if not self.several:
            return make()
        key = f"{next(self._letters)}/first"
        if not self.first:
            self._store.wait([key], timedelta(seconds=PATIENCE_SECONDS))
            told = self._store.get(key).decode()
            if told.startswith(FAILED):
                raise FirstFailed(told.removeprefix(FAILED))
            return str(told.removeprefix(MADE))
        try:
            words = make()
        except BaseException as error:
            self._store.set(key, f"{FAILED}{type(error).__name__}: {error}")
            raise
        self._store.set(key, MADE + words)
        return words

    def refused_by_first(self, make: Callable[[], str]) -> str:
        """Return what :meth:`from_first` does, and let every process raise the first one's sentence.

        Raises:
            HarnessError: the first process did; ``Refused`` where it refused.
        """

        if not self.several:
            return make()

        def attempt() -> str:
            try:
                return MADE + make()
            except Refused as error:
                return REFUSED + str(error)
            except HarnessError as error:
                return FAILED + str(error)

        told = self.from_first(attempt)
        if told.startswith(MADE):
            return told.removeprefix(MADE)
        if told.startswith(REFUSED):
            raise Refused(told.removeprefix(REFUSED))
        raise HarnessError(told.removeprefix(FAILED))

    def can_still_gather(self, seconds: float = LAST_WORD_SECONDS) -> bool:
        """Return whether all processes are here and had the same collective operations, so that more can follow.

        It is for processes whose run failed, somewhere, and can be asked once.
        """
        if not self.several:
            return True
        group = self.mesh.get_group()
        self._store.set(f"ended/{self.rank}", str(group._get_sequence_number_for_group()))
        keys = [f"ended/{rank}" for rank in range(self.size)]
        try:
            self._store.wait(keys, timedelta(seconds=seconds))
        except RuntimeError:
            return False
        return len({self._store.get(key) for key in keys}) == 1

    def left(self, error: BaseException) -> bool:
        """Return whether an error says that another process is gone."""
        if not self.several or not isinstance(error, RuntimeError) or is_out_of_memory(error):
            return False
        return isinstance(error, FirstFailed | torch.distributed.DistError) or any(word in str(error) for word in LOST)


ALONE = Ranks()


@contextmanager
def joined(size: int, rank: int, folder: Path) -> Iterator[Ranks]:
    """Meet the other processes of a run.

    Args:
        size: Of them all; 1: nobody is met.
        rank: Number of this one, 0-based.
        folder: Where they meet: the run's work folder.
    """
    if size == 1:
        yield ALONE
        return
    from torch._C._distributed_c10d import FileStore, PrefixStore
    from torch.distributed.device_mesh import init_device_mesh

    describe_environment()  # while the device is not yet busy with the group; what it says is kept
    on_cuda = torch.cuda.is_available()
    if not on_cuda:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    store = FileStore(str(folder / RENDEZVOUS), size)
    store.set_timeout(timedelta(seconds=MEETING_SECONDS))
    torch.distributed.init_process_group(
        "nccl" if on_cuda else "gloo",
        store=PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=MEETING_SECONDS),
        device_id=torch.device("cuda", torch.cuda.current_device()) if on_cuda else None,
    )
    mesh = init_device_mesh("cuda" if on_cuda else "cpu", (size,))
    yield Ranks(rank, size, mesh, PrefixStore("words", store))
    # Not after an error: others may wait for this process, and to leave the group would wait for them.
    torch.distributed.destroy_process_group()


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name.startswith("lo")), names[0])
