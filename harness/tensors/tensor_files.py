"""Files of safetensors written one tensor at a time, so that no more than one of them is in memory.

Format: github.com/safetensors/safetensors, README: eight bytes with the header's length, little-endian; the header in
JSON, filled up with spaces to a multiple of eight bytes; the tensors' bytes. Tensors stand as the library puts them:
larger types first, names in order among each.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

import torch

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}
"""By the names that safetensors has for them."""
ORDER = ("BOOL", "U8", "I8", "I16", "F16", "BF16", "I32", "F32", "F64", "I64")
"""Of types, the last ones first in a file. Source: safetensors/src/tensor.rs, ``enum Dtype`` and ``prepare``."""
METADATA = {"format": "pt"}
"""As transformers writes it."""


class TensorFile:
    """A file that takes its tensors one after the other."""

    def __init__(self, file: Path, shapes: Mapping[str, torch.Tensor]) -> None:
        """Begin it.

        Args:
            file: What is made; what is there is overwritten.
            shapes: What it is to hold, by name: shape and dtype are asked, so that tensors on ``meta`` do.

        Raises:
            OSError: it cannot be written.
        """
        self.names = self.order(shapes)
        """In the order in which :meth:`add` takes them."""
        self._shapes, self._taken = shapes, 0
        header: dict[str, object] = {"__metadata__": METADATA}
        begin = 0
        for name in self.names:
            tensor = shapes[name]
            end = begin + tensor.numel() * tensor.element_size()
            header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
            begin = end
        spelled = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        spelled += b" " * (-len(spelled) % 8)
        self._stream: IO[bytes] = file.open("wb")
        try:
            self._stream.write(struct.pack("<Q", len(spelled)) + spelled)
        except OSError:
            self.abandon()
            raise

    @staticmethod
    def order(shapes: Mapping[str, torch.Tensor]) -> list[str]:
        """Return the names of tensors, of which dtypes alone are asked, in the order in which a file has them."""
        return sorted(shapes, key=lambda name: (-ORDER.index(NAMES[shapes[name].dtype]), name))

    def add(self, tensor: torch.Tensor) -> None:
        """Write the next tensor, on any device.

        Raises:
            OSError: it cannot be written.
        """
        wanted = self._shapes[self.names[self._taken]]
        assert (tensor.shape, tensor.dtype) == (wanted.shape, wanted.dtype), self.names[self._taken]
        self._taken += 1
        self._stream.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def close(self) -> None:
        """Close it.

        Raises:
            OSError: what was written last cannot be.
        """
        assert self._taken == len(self.names), f"{self.names[self._taken]} is missing"
        self._stream.close()

    def abandon(self) -> None:
        """Close it as it is, whether or not what was written last can be."""
        with suppress(OSError):
            self._stream.close()


def write_tensors(file: Path, shapes: Mapping[str, torch.Tensor], read: Callable[[str], torch.Tensor]) -> None:
    """Write a file of tensors, each read as its turn comes.

    Raises:
        OSError: it cannot be written.
    """
    made = TensorFile(file, shapes)
    try:
        for name in made.names:
            made.add(read(name))
        made.close()
    finally:
        made.abandon()
