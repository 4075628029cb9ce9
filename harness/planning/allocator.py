"""What torch's caching allocator makes of a sequence of allocations: rounding, unsplit blocks, and reserved segments.

``torch.cuda.max_memory_allocated`` counts blocks, not requests. The rules are those of the default configuration, one
stream, memory never short (then the allocator frees cached segments, which changes what is reserved and nothing else).

Source: pytorch/pytorch, c10/cuda/CUDACachingAllocator.cpp, functions round_size, get_pool, get_allocation_size,
get_free_block, should_split and free_block. Not calibrated on a device yet.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

MIN_BLOCK = 512
"""kMinBlockSize: every size is rounded up to a multiple of it."""
SMALL_SIZE = 1 << 20
"""kSmallSize: requests up to it come from segments of SMALL_SEGMENT."""
SMALL_SEGMENT = 2 << 20
"""kSmallBuffer."""
LARGE_SEGMENT = 20 << 20
"""kLargeBuffer: segment of requests below MIN_LARGE."""
MIN_LARGE = 10 << 20
"""kMinLargeAlloc."""
ROUND_LARGE = 2 << 20
"""kRoundLarge: larger requests get a segment of their own, rounded up to a multiple of it."""


@dataclass(eq=False)
class _Block:
    address: int
    size: int
    small: bool
    free: bool = False
    before: _Block | None = None
    after: _Block | None = None


class CachingAllocator:
    """Replays allocations and frees; counts allocated and reserved bytes and their peaks."""

    def __init__(self) -> None:
        self.allocated = self.peak_allocated = 0
        self.reserved = self.peak_reserved = 0
        self._blocks: dict[int, _Block] = {}
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._by_address: dict[int, _Block] = {}
        self._next_address = 0

    def allocate(self, key: int, num_bytes: int) -> None:
        """Make an allocation that is later freed by the same key."""
        size = -(-max(num_bytes, 1) // MIN_BLOCK) * MIN_BLOCK
        small = size <= SMALL_SIZE
        block = self._cached(size, small) or self._segment(size, small)
        rest = block.size - size
        if rest >= MIN_BLOCK if small else rest > SMALL_SIZE:
            self._split(block, size)
        self._blocks[key] = block
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)

    def free(self, key: int) -> None:
        """Free the allocation made under a key."""
        block = self._blocks.pop(key)
        self.allocated -= block.size
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                self._take(neighbour)
                block = self._merge(block, neighbour)
        self._put(block)

    def _cached(self, size: int, small: bool) -> _Block | None:
        pool = self._free[small]
        position = bisect.bisect_left(pool, (size, -1))
        if position == len(pool):
            return None
        block = self._by_address[pool[position][1]]
        self._take(block)
        return block

    def _segment(self, size: int, small: bool) -> _Block:
        if small:
            total = SMALL_SEGMENT
        elif size < MIN_LARGE:
            total = LARGE_SEGMENT
        else:
            total = -(-size // ROUND_LARGE) * ROUND_LARGE
        block = _Block(self._next_address, total, small)
        self._next_address += total + 1  # never adjacent to another segment
        self._by_address[block.address] = block
        self.reserved += total
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return block

    def _split(self, block: _Block, size: int) -> None:
        rest = _Block(block.address + size, block.size - size, block.small, before=block, after=block.after)
        if rest.after is not None:
            rest.after.before = rest
        block.after, block.size = rest, size
        self._by_address[rest.address] = rest
        self._put(rest)

    def _merge(self, block: _Block, neighbour: _Block) -> _Block:
        first, second = (neighbour, block) if neighbour.address < block.address else (block, neighbour)
        first.size += second.size
        first.after = second.after
        if first.after is not None:
            first.after.before = first
        del self._by_address[second.address]
        return first

    def _put(self, block: _Block) -> None:
        block.free = True
        bisect.insort(self._free[block.small], (block.size, block.address))

    def _take(self, block: _Block) -> None:
        block.free = False
        pool = self._free[block.small]
        del pool[bisect.bisect_left(pool, (block.size, block.address))]
