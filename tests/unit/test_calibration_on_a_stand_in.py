"""The parts of a calibration that ask CUDA, with a stand-in for the device: what they make of its answers.

The stand-in computes on the CPU; its allocator is the planner's replay fed with the storages that are made and freed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from harness.calibration import constants, rates
from harness.calibration.attention import needs
from harness.calibration.bench import Bench, Skip, Watched
from harness.device_profile import ASSUMED_CONTEXT_BYTES
from harness.engine.environment import describe_environment
from harness.engine.peak_laps import Peaks
from harness.errors import HarnessError
from harness.planning.cuda import LARGE_WORKSPACE

GIB = 1 << 30


class Counters:
    """Of an allocator that has reserved a gibibyte; ``grows`` is what it allocates between a reset and a reading."""

    def __init__(self, grows: int = 0, reserves: int = 0) -> None:
        self.grows, self.reserves = grows, reserves

    def synchronize(self) -> None: ...

    def reset_peaks(self) -> None: ...

    def allocated_bytes(self) -> int:
        return 1000

    def reserved_bytes(self) -> int:
        return GIB

    def peaks(self) -> Peaks:
        return Peaks(1000 + self.grows, GIB + self.reserves)


class StandIn(Bench):
    """A bench that says it is CUDA and computes on the CPU."""

    counted = Counters()
    watched = Watched()

    @property
    def cuda(self) -> bool:
        return True

    def synchronize(self) -> None: ...

    def counters(self) -> Any:
        return self.counted

    @contextmanager
    def watching(self) -> Iterator[Watched]:
        yield self.watched


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    gpu = describe_environment().model_copy(
        update={
            "device_type": "cuda",
            "device_name": "NVIDIA H200",
            "device_memory_bytes": 140 * GIB,
            "driver": "600",
            "compute_capability": "9.0",
        }
    )
    for module in (constants, rates):
        monkeypatch.setattr(module, "describe_environment", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (138 * GIB, 140 * GIB))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return StandIn(torch.device("cpu"), "smoke")


def test_the_device_is_told_with_its_data_sheet(bench: StandIn) -> None:
    found = rates.device(bench, None)
    assert found.facts["compute_capability"] == "9.0"
    assert found.readings[0].value == 140 * GIB
    assert found.readings[0].expected == 141e9
    assert found.sentence is not None
    assert "NVIDIA H200" in found.sentence


def test_rates_stand_beside_the_stated_peaks_of_their_dtype(bench: StandIn) -> None:
    for dtype, peak in (("bf16", 989e12), ("fp32", 67e12)):
        (reading,) = rates.matrix_products(bench, dtype).readings
        assert reading.expected == pytest.approx(peak, rel=0.01)
        assert reading.value > 0


def test_a_device_without_bf16_is_not_asked_for_it(bench: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    with pytest.raises(Skip, match="no bf16"):
        rates.matrix_products(bench, "bf16")


@pytest.mark.parametrize(
    ("by_nvml", "expected"),
    [
        ((None, None), GIB),  # without NVML what CUDA says is used, less what the allocator reserved
        ((GIB // 2, GIB // 2 + GIB + 600_000_000), 600_000_000),  # with what the driver keeps for itself in both
        ((3 * GIB, 4 * GIB + 500_000_000), 500_000_000),
    ],
)
def test_the_context_is_what_is_used_beside_the_allocator_and_others(
    by_nvml: tuple[int | None, int | None], expected: int, bench: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = list(by_nvml)
    monkeypatch.setattr(constants, "_used_by_nvml", lambda device: readings.pop(0))
    before = by_nvml[0]
    found = constants.context(bench, None)
    assert found.readings[0].value == found.facts["context_bytes"] == expected
    assert found.readings[0].expected == ASSUMED_CONTEXT_BYTES
    assert (found.sentence is None) is (before is not None)


def test_a_context_is_not_told_where_others_gave_memory_back(bench: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "_used_by_nvml", lambda device: 2 * GIB)
    with pytest.raises(HarnessError, match="other processes gave memory back meanwhile"):
        constants.context(bench, None)


def test_the_allocators_peaks_stand_beside_the_replay(bench: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "counted", Counters(grows=5_000, reserves=7_000))
    allocated, reserved = constants.allocator(bench, None).readings
    assert (allocated.value, reserved.value) == (5_000, 7_000)
    assert allocated.expected is not None
    assert reserved.expected is not None
    assert 1e8 < allocated.expected <= reserved.expected


def test_workspaces_are_what_stays_after_both_passes(bench: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "watched", Watched(left_bytes=33_554_432))
    found = constants.blas_workspaces(bench, None)
    assert found.facts == {"forward_bytes": 33_554_432, "backward_bytes": 33_554_432}
    assert found.readings[0].value == found.readings[0].expected == 2 * LARGE_WORKSPACE


def test_a_factorisations_work_space_is_told_in_matrices(bench: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, results = 96 * 96 * 4, 2 * 96 * 96 * 4 + 96 * 4
    monkeypatch.setattr(StandIn, "watched", Watched(peak_bytes=results + 3 * matrix))
    found = constants.solver(bench, "svd")
    assert found.facts["svd"] == pytest.approx(3.0)
    assert found.readings[0].expected == pytest.approx(3.0)


@pytest.mark.parametrize(("kind", "backward"), [("plain", 4 + 4 * 32), ("grouped", 4 + 4 * 32 + 2 * 2 * 16)])
def test_attention_stands_beside_what_is_planned(
    kind: str, backward: int, bench: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads_and_tokens, out = 4 * 64, 4 * 64 * 16 * 2
    gradients = out + 2 * (out if kind == "plain" else out // 4)
    watched = Watched(peak_bytes=gradients + 100 * heads_and_tokens, left_bytes=out + 4 * heads_and_tokens)
    monkeypatch.setattr(StandIn, "watched", watched)
    kept, needed = needs(bench, kind).readings
    assert (kept.value, needed.value) == (4.0, 100.0)
    assert kept.expected == 4.0
    # softmax_d of rows in multiples of 128, dq_accum of head sizes in multiples of 32, dk and dv of every head
    assert needed.expected == pytest.approx(backward + 4 + 4 * 32)


def test_a_cpu_is_asked_through_its_own_allocator() -> None:
    bench = Bench(torch.device("cpu"), "smoke")
    kept = torch.ones(1000)
    with bench.watching() as seen:
        doubled = kept + kept
        kept.add_(kept)
        del doubled
    assert (seen.peak_bytes, seen.left_bytes) == (4000, 0)
    with bench.watching() as seen:
        other = kept + kept
    assert (seen.peak_bytes, seen.left_bytes) == (4000, 4000)
    assert other.shape == kept.shape


def test_what_a_factorisation_makes_inside_itself_is_seen_on_a_cpu_too() -> None:
    found = constants.solver(Bench(torch.device("cpu"), "smoke"), "svd")
    assert found.readings[0].value > 0.9  # torch copies the matrix


def test_a_cpu_has_no_allocator_to_ask() -> None:
    bench = Bench(torch.device("cpu"), "smoke")
    for part in (constants.context, constants.allocator):
        with pytest.raises(Skip, match="no caching allocator"):
            part(bench, None)


@pytest.mark.parametrize("kind", ["plain", "grouped", "mask"])
def test_attention_is_measured_in_the_layout_of_models(kind: str) -> None:
    """Of tensors laid out otherwise transformers makes a copy of the output, which the graph keeps too."""
    found = needs(Bench(torch.device("cpu"), "smoke"), kind)
    assert found.readings[0].value == 4.0  # the logsumexp of the softmax, fp32
    assert found.facts["head_size"] == 16
