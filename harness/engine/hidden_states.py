"""Hidden states of many sequences between two blocks: in host memory, or in a file where they would take much of it.

64 sequences of 2048 tokens are 1 GiB of LLaMA-2-7B's states in bf16. The file has no name, so that it is gone with the
process. It is read and written, not mapped: what the system keeps of it in its cache is no part of the process.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch

from harness.files import make_folder, said_as

IN_MEMORY_BYTES = 1 << 28
"""Of all sequences together; more lies in a file."""


@dataclass(frozen=True)
class _Place:
    """Where one sequence's states are."""

    shape: torch.Size
    dtype: torch.dtype
    offset: int | None
    """In the file; None: they are in memory."""


class HiddenStates:
    """Keeps one tensor a sequence, each of which later ones of its size take the place of."""

    def __init__(self, scratch: Path, most_bytes: int = IN_MEMORY_BYTES) -> None:
        """Keep nothing yet.

        Args:
            scratch: Folder that a file is made in; made where it is not there.
            most_bytes: Of host memory.
        """
        self._scratch, self._most_bytes = scratch, most_bytes
        self._places: dict[int, _Place] = {}
        self._in_memory: dict[int, torch.Tensor] = {}
        self._memory_bytes = self._file_bytes = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> HiddenStates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._in_memory.clear()
        if self._file is not None:
            self._file.close()

    def put(self, index: int, states: torch.Tensor) -> None:
        """Keep a sequence's states.

        Args:
            index: Of the sequence.
            states: (1, tokens, width), any float dtype, on any device.

        Raises:
            HarnessError: the disk does not take them.
        """
        host = states.detach().cpu().contiguous()
        place = self._places.get(index)
        if place is None:
            place = self._places[index] = self._new_place(host)
        assert (place.shape, place.dtype) == (host.shape, host.dtype)
        if place.offset is None:
            self._in_memory[index] = host
        else:
            self._write(place.offset, host)

    def get(self, index: int, device: torch.device) -> torch.Tensor:
        """Return a sequence's states, on a device.

        Raises:
            HarnessError: they cannot be read.
        """
        place = self._places[index]
        if place.offset is None:
            return self._in_memory[index].to(device)
        states = torch.empty(place.shape, dtype=place.dtype)
        with said_as(self._sentence("be read")):
            file = self._opened()
            file.seek(place.offset)
            found = file.readinto(_bytes_of(states))  # type: ignore[attr-defined]
        assert found == states.nbytes
        return states.to(device)

    def _new_place(self, states: torch.Tensor) -> _Place:
        if self._memory_bytes + states.nbytes <= self._most_bytes:
            self._memory_bytes += states.nbytes
            return _Place(states.shape, states.dtype, None)
        offset = self._file_bytes
        self._file_bytes += states.nbytes
        return _Place(states.shape, states.dtype, offset)

    def _write(self, offset: int, states: torch.Tensor) -> None:
        with said_as(self._sentence("be kept"), "make room on that disk, or set HARNESS_CACHE to another"):
            file = self._opened()
            file.seek(offset)
            file.write(_bytes_of(states))
            file.flush()

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            make_folder(self._scratch)
            self._file = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115  # closed by __exit__
        return self._file

    def _sentence(self, what: str) -> str:
        return f"{self._scratch}: hidden states of the calibration samples cannot {what} there"


def _bytes_of(tensor: torch.Tensor) -> Any:
    """Return the memory of a contiguous tensor on the host."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
