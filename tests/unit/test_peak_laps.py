"""Peaks by lap, by moment and by phase, with a scripted allocator in the place of CUDA's."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.engine.memory import PhaseMeter
from harness.engine.peak_laps import CudaCounters, PeakLaps, Peaks
from harness.engine.step_memory import StepMemory
from harness.engine.stepwise import Stepwise
from harness.record_training import TrainResult
from tests.unit.test_training import build


class FakeAllocator:
    """Counts as CUDA's caching allocator does: reserved never falls, a reset sets the peaks to what is held now."""

    def __init__(self) -> None:
        self.allocated = self.reserved = self.retries = self.synchronized = 0
        self.peak = Peaks(0, 0)

    def use(self, change: int) -> None:
        self.allocated += change
        self.reserved = max(self.reserved, self.allocated)
        self.peak = self.peak.largest(Peaks(self.allocated, self.reserved))

    def peaks(self) -> Peaks:
        return self.peak

    def reset_peaks(self) -> None:
        self.peak = Peaks(self.allocated, self.reserved)

    def allocated_bytes(self) -> int:
        return self.allocated

    def reserved_bytes(self) -> int:
        return self.reserved

    def num_retries(self) -> int:
        return self.retries

    def release_unused(self) -> None:
        self.reserved = self.allocated

    def synchronize(self) -> None:
        self.synchronized += 1


CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(20))
def test_the_phase_peak_is_that_of_a_meter_without_laps(seed: int) -> None:
    draw = random.Random(seed)
    lapped, whole = FakeAllocator(), FakeAllocator()
    meters = [PhaseMeter(CPU, lapped), PhaseMeter(CPU, whole)]
    for phase in ("load", "train", "evaluate"):
        with meters[0].phase(phase), meters[1].phase(phase):
            for _ in range(30):
                change = draw.randint(-min(50, lapped.allocated), 60)
                lapped.use(change)
                whole.use(change)
                if draw.random() < 0.5 and meters[0].laps is not None:
                    meters[0].laps.lap()
    figures = [[(p.name, p.allocated_peak_bytes, p.reserved_peak_bytes) for p in meter.phases] for meter in meters]
    assert figures[0] == figures[1]


def test_the_largest_lap_counts_wherever_it_comes() -> None:
    allocator = FakeAllocator()
    laps = PeakLaps(allocator)
    allocator.use(1000)
    allocator.use(-1000)
    laps.begin()  # what came before is another phase's
    for height in (3, 7, 5):
        allocator.use(height)
        allocator.use(-height)
        assert laps.lap() == Peaks(height, 1000)
    assert laps.end() == Peaks(7, 1000)


def test_retries_are_the_phases_own_and_a_lap_waits_for_nothing() -> None:
    allocator = FakeAllocator()
    meter = PhaseMeter(CPU, allocator)
    allocator.retries = 2
    with meter.phase("train"):
        assert meter.laps is not None
        for _ in range(5):
            meter.laps.lap()
        allocator.retries = 5
    assert meter.phases[0].allocator_retries == 3
    assert allocator.synchronized == 2  # at both ends of the phase


def test_what_is_set_aside_is_in_no_figure_of_the_phase_it_interrupts() -> None:
    allocator = FakeAllocator()
    meter = PhaseMeter(CPU, allocator)
    with meter.phase("train"):
        assert meter.laps is not None
        allocator.use(10)
        for height in (50, 70):
            meter.laps.lap()
            with meter.aside("validate_during"):
                assert meter.current == "validate_during"
                allocator.use(height)
                allocator.retries += 1
                allocator.use(-height)
            assert meter.current == "train"
        allocator.use(5)
    train, during = meter.phases
    assert (train.name, train.allocated_peak_bytes, train.reserved_peak_bytes) == ("train", 15, 15)
    assert (during.name, during.allocated_peak_bytes, during.reserved_peak_bytes) == ("validate_during", 80, 80)
    assert (train.allocator_retries, during.allocator_retries) == (0, 2)


def test_an_interruption_that_fits_the_cache_leaves_it_as_it_is() -> None:
    allocator = FakeAllocator()
    meter = PhaseMeter(CPU, allocator)
    with meter.phase("train"):
        allocator.use(100)
        allocator.use(-90)
        with meter.aside("validate_during"):
            allocator.use(20)
            allocator.use(-20)
        assert allocator.reserved == 100
    assert meter.phases[0].reserved_peak_bytes == 100


def test_an_interruption_that_fails_is_the_phase_that_failed() -> None:
    meter = PhaseMeter(CPU, FakeAllocator())
    with pytest.raises(MemoryError), meter.phase("train"), meter.aside("validate_during"):
        raise MemoryError
    assert meter.current == "validate_during"
    assert [phase.name for phase in meter.phases] == ["train", "validate_during"]


def test_without_cuda_nothing_is_measured() -> None:
    meter = PhaseMeter(CPU)
    with meter.phase("train"):
        pass
    assert meter.laps is None
    phase = meter.phases[0].model_dump(exclude={"name", "seconds", "host_peak_bytes"})
    assert set(phase.values()) == {None}


def memory(allocator: FakeAllocator) -> StepMemory:
    model = torch.nn.Linear(2, 2)
    optimizer = Stepwise(torch.optim.SGD(model.parameters(), lr=1.0))
    return StepMemory(model, optimizer, tracked_steps=0, laps=PeakLaps(allocator))


@pytest.mark.parametrize("moment", ["resample", "forward", "backward", "clip", "optimizer"])
def test_the_peak_is_the_moments_in_which_it_came(moment: str) -> None:
    allocator = FakeAllocator()
    watched = memory(allocator)
    allocator.use(100)
    with watched.step(0):
        for name in ("resample", "forward", "backward", "forward", "backward", "clip", "optimizer"):
            watched.moment(name)
            height = 50 if name == moment else 20
            allocator.use(height)
            allocator.use(-height)
    assert watched.step_peak is not None
    assert (watched.step_peak.peaks.allocated_bytes, watched.step_peak.moment) == (150, moment)


def test_what_comes_between_steps_is_no_steps_but_the_phases() -> None:
    allocator = FakeAllocator()
    meter = PhaseMeter(CPU, allocator)
    model = torch.nn.Linear(2, 2)
    optimizer = Stepwise(torch.optim.SGD(model.parameters(), lr=1.0))
    with meter.phase("train"):
        watched = StepMemory(model, optimizer, tracked_steps=0, laps=meter.laps)
        for height in (500, 10):
            with watched.step(0):
                watched.moment("forward")
                allocator.use(30)
                allocator.use(-30)
            assert watched.step_peak is not None
            assert watched.step_peak.peaks.allocated_bytes == 30
            allocator.use(height)  # a checkpoint is written
            allocator.use(-height)
    assert meter.phases[0].allocated_peak_bytes == 500


class GrowingAllocator(FakeAllocator):
    """Holds one byte more at each reading: the n-th lap of a run is known by its figure."""

    def peaks(self) -> Peaks:
        self.use(1)
        return self.peak


def test_the_loop_records_a_peak_and_its_moment_for_every_step(tiny_llama: Path, tokenizer: Any) -> None:
    meter = PhaseMeter(CPU, GrowingAllocator())

    def watched(model: Any, optimizer: Any) -> StepMemory:
        return StepMemory(model, optimizer, tracked_steps=1, laps=meter.laps)

    loop, _, data = build("full", tiny_llama, tokenizer, num_steps=4, max_grad_norm=1.0, watched=watched)
    with meter.phase("train"):
        loop.run(data.step_batches(), lambda done, loss: None)
    result: TrainResult = loop.result()
    # A lap between the steps, then one each: before resample, resample, forward, backward, clip, optimizer.
    assert result.curve.allocated_peak_bytes == (7, 14, 21, 28)
    assert result.curve.reserved_peak_bytes == (7, 14, 21, 28)
    assert result.curve.peak_moments == ("optimizer",) * 4
    assert meter.phases[0].allocated_peak_bytes == 29
    assert result.tracked_peak is not None and result.tracked_peak.steps == (0,)


def test_on_a_cpu_the_curve_has_no_allocator_peaks(tiny_llama: Path, tokenizer: Any) -> None:
    loop, _, data = build("full", tiny_llama, tokenizer, num_steps=2)
    loop.run(data.step_batches(), lambda done, loss: None)
    curve = loop.result().curve
    assert (curve.allocated_peak_bytes, curve.reserved_peak_bytes, curve.peak_moments) == ((), (), ())


def test_the_device_counters_are_torchs_own_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """``max_memory_allocated`` and ``max_memory_reserved``, from one reading of the statistics."""
    stats = {
        "allocated_bytes": {"all": {"current": 5, "peak": 9}, "small_pool": {"current": 5, "peak": 7}},
        "reserved_bytes": {"all": {"current": 20, "peak": 30}, "small_pool": {"current": 2, "peak": 2}},
        "num_alloc_retries": 4,
    }
    for module in (torch.cuda, torch.cuda.memory):
        monkeypatch.setattr(module, "memory_stats_as_nested_dict", lambda device=None: stats)
    device = torch.device("cuda", 0)
    counters = CudaCounters(device)
    assert counters.peaks() == Peaks(torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device))
    assert counters.peaks() == Peaks(9, 30)
    assert (counters.allocated_bytes(), counters.num_retries()) == (5, 4)
