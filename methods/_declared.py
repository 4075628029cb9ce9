"""What trained methods declare of a run: parameters, bytes of state and projected matrices of each part. No torch.

Everything here follows from settings and shapes. The optimizer is not asked, and what it is asked for elsewhere is not
used either: a fault there must show against this.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.declaration import DeclaredPart
from harness.method import Decoder
from harness.methods._settings import AdamWSettings, ProjectionSettings

if TYPE_CHECKING:
    import torch

BYTES = {"bf16": 2, "fp32": 4}
FULL_PRECISION = "float32"
FEWEST_IN_8_BITS, BLOCK_IN_8_BITS = 4096, 256
"""Numbers of a tensor from which on bitsandbytes holds their moments in 8 bits, and those that share a constant."""


@dataclass(frozen=True)
class Trained:
    """One parameter that will be trained, known by its shape."""

    name: str
    """Of the base model; of an adapter that of the matrix it stands beside."""
    part: str | int
    """Index of its block, or embedding, final_norm, head or rest."""
    shape: tuple[int, ...]
    dtype: str
    """``float32``, ``bfloat16``."""
    projected: bool = False
    extra_bytes: int = 0
    """State beside moments, projector and master."""

    @property
    def size(self) -> int:
        """Return the number of its elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size


def part_by_id(decoder: Decoder) -> dict[int, str | int]:
    """Return the part of every parameter of the base model by its ``id``; a tied head's matrix is the embedding's."""
    others = {"head": decoder.head, "final_norm": decoder.final_norm, "embedding": decoder.embedding}
    parts: dict[int, str | int] = dict.fromkeys(decoder.names, "rest")
    for role, module in others.items():
        parts |= {id(p): role for p in module.parameters()}
    for index, block in enumerate(decoder.blocks):
        parts |= {id(p): index for p in block.parameters() if id(p) in parts}
    return parts


def trained_of(
    named: Iterable[tuple[str, torch.nn.Parameter]], decoder: Decoder, projected: Collection[int]
) -> list[Trained]:
    """Return parameters of the base model as what will be trained; ``projected`` are ids."""
    parts = part_by_id(decoder)
    return [
        Trained(name, parts[id(p)], tuple(p.shape), str(p.dtype).removeprefix("torch."), id(p) in projected)
        for name, p in named
    ]


@dataclass
class _Sum:
    num_params: int = 0
    num_vector_params: int = 0
    dtypes: set[str] = field(default_factory=set)
    state_bytes: int = 0
    projected: list[str] = field(default_factory=list)


def declared_parts(
    trained: Iterable[Trained],
    num_blocks: int,
    config: AdamWSettings,
    projection: ProjectionSettings | None,
    *,
    num_ranks: int = 1,
) -> tuple[tuple[DeclaredPart, ...], dict[str, DeclaredPart]]:
    """Return what is declared of every block in order, and of the other parts that are trained.

    Parameters are those of the whole model, bytes of state those of the first of ``num_ranks`` processes that share it
    out, which holds as much as any.
    """
    sums: dict[str | int, _Sum] = {index: _Sum() for index in range(num_blocks)}
    for one in trained:
        found = sums.setdefault(one.part, _Sum())
        found.num_params += one.size
        found.num_vector_params += one.size if len(one.shape) < 2 else 0
        found.dtypes.add(one.dtype)
        found.state_bytes += state_bytes(one, config, projection, num_ranks)
        if one.projected:
            found.projected.append(one.name)
    parts = {
        part: DeclaredPart(
            num_params=found.num_params,
            num_vector_params=found.num_vector_params,
            dtypes=tuple(sorted(found.dtypes)),
            state_bytes=found.state_bytes,
            projected=tuple(found.projected),
        )
        for part, found in sums.items()
    }
    others = {part: declared for part, declared in parts.items() if isinstance(part, str)}
    return tuple(parts[index] for index in range(num_blocks)), others


def state_bytes(one: Trained, config: AdamWSettings, projection: ProjectionSettings | None, num_ranks: int = 1) -> int:
    """Return the bytes that the settings say are held for a parameter once it was updated.

    They are two moments, as :func:`moment_bytes` has them, and, of a bf16 weight, its fp32 master; of a projected
    (rows, columns) matrix the projector and the moments of its low-rank gradient: (rank, columns) and (rows, rank) on
    the right, else the other way round. What a projection keeps beside these, or in the place of its projector, its
    settings say.

    Of a parameter that is shared out, by rows or, where it is projected on the left, by columns, moments and master are
    those of the first part, ``ceil(length / num_ranks)`` long, and the rest is whole.
    """
    length = one.shape[0] if one.shape else 1
    part = one.size // max(length, 1) * -(-length // num_ranks)
    moments, of, beside = part, one.size, 0
    if one.projected:
        assert projection is not None and projection.rank is not None and projection.projector_dtype is not None
        rows, columns = one.shape
        rank = min(projection.rank, rows, columns)
        tall = rows > columns
        right = rows == columns or tall == (projection.projection_side == "reference")
        if not right:
            part = rows * -(-columns // num_ranks)
        moments = -(-rows // num_ranks) * rank if right else rank * -(-columns // num_ranks)
        of = rank * (rows if right else columns)
        projector = (rank * columns if right else rows * rank) * BYTES[projection.projector_dtype]
        beside = projection.bytes_beside_moments(projector)
    master = part * 4 if config.master_weights and one.dtype != FULL_PRECISION else 0
    return 2 * moment_bytes(moments, config.moment_dtype, of) + beside + master + one.extra_bytes


def moment_bytes(numbers: int, dtype: str, of: int) -> int:
    """Return the bytes of one moment of so many numbers: in 8 bits a byte each and 4 for each block that is begun.

    Args:
        numbers: Those of the part that is held.
        dtype: Of the settings.
        of: Numbers of the whole, which decide whether it is held in 8 bits.
    """
    if dtype != "int8":
        return numbers * BYTES[dtype]
    if of < FEWEST_IN_8_BITS:
        return numbers * BYTES["fp32"]
    return numbers + 4 * -(-numbers // BLOCK_IN_8_BITS)
