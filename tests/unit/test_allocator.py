"""The replay of torch's caching allocator: closed forms, and what must hold for any sequence."""

from __future__ import annotations

import itertools
import random

import pytest

from harness.planning.allocator import LARGE_SEGMENT, MIN_BLOCK, SMALL_SEGMENT, CachingAllocator

MIB = 1 << 20


def filled(*sizes: int) -> CachingAllocator:
    allocator = CachingAllocator()
    for key, size in enumerate(sizes):
        allocator.allocate(key, size)
    return allocator


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, SMALL_SEGMENT),
        (513, 1024, SMALL_SEGMENT),
        (MIB, MIB, SMALL_SEGMENT),
        (MIB + 1, MIB + 512, LARGE_SEGMENT),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),  # what is left of the segment, 1 MiB, is not split off
        (10 * MIB + 512, 10 * MIB + 512, 12 * MIB),
    ],
)
def test_one_allocation(size: int, allocated: int, reserved: int) -> None:
    allocator = filled(size)
    assert (allocator.allocated, allocator.reserved) == (allocated, reserved)


def test_small_requests_share_a_segment_and_middling_ones_another() -> None:
    assert filled(*[512] * 4096).reserved == SMALL_SEGMENT
    assert filled(*[512] * 4097).reserved == 2 * SMALL_SEGMENT
    assert filled(5 * MIB, 5 * MIB, 5 * MIB).reserved == LARGE_SEGMENT


def test_a_freed_block_is_used_again_and_neighbours_grow_together() -> None:
    allocator = filled(5 * MIB, 5 * MIB, 5 * MIB)
    allocator.free(0)
    allocator.free(1)
    allocator.allocate(9, 9 * MIB)
    assert allocator.reserved == LARGE_SEGMENT
    allocator.free(2)
    allocator.free(9)
    assert allocator.allocated == 0
    allocator.allocate(10, LARGE_SEGMENT)
    assert allocator.reserved == LARGE_SEGMENT


def test_the_smallest_block_that_fits_is_taken() -> None:
    allocator = filled(40 * MIB, 20 * MIB, 30 * MIB)
    for key in range(3):
        allocator.free(key)
    allocator.allocate(9, 19 * MIB + MIB // 2)
    assert allocator.allocated == 20 * MIB
    assert allocator.reserved == 90 * MIB


def test_for_any_sequence_nothing_overlaps_and_the_sums_hold() -> None:
    generator = random.Random(0)
    for _ in range(20):
        allocator, live = CachingAllocator(), {}
        for key in range(300):
            if live and generator.random() < 0.45:
                gone = generator.choice(list(live))
                allocator.free(gone)
                del live[gone]
            else:
                live[key] = generator.choice((3, 700, 40_000, 3 * MIB, 12 * MIB, 25 * MIB)) + generator.randrange(999)
                allocator.allocate(key, live[key])
            blocks = sorted((allocator._blocks[key].address, allocator._blocks[key].size) for key in live)
            assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(blocks))
            assert allocator.allocated == sum(size for _, size in blocks)
            assert sum(live.values()) <= allocator.allocated <= allocator.reserved
            assert all(size % MIN_BLOCK == 0 for _, size in blocks)
        for key in live:
            allocator.free(key)
        assert allocator.allocated == 0
        segments = [block for block in allocator._by_address.values() if block.before is None]
        assert sum(block.size for block in segments) == allocator.reserved
