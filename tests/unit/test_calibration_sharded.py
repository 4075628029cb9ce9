"""What several devices share of a calibration, by two processes on a CPU: equal to one, and what it catches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import torch

from harness.calibration import sharded, tiny
from harness.calibration.bench import Bench
from harness.calibration.conductor import Order, conduct
from harness.calibration.parts import all_parts
from harness.calibration_log import PartResult
from harness.engine.ranks import ALONE, Ranks
from harness.errors import HarnessError
from tests.ranks import on_ranks
from tests.records import ENVIRONMENT


@pytest.mark.slow
def test_each_process_needs_what_is_predicted_of_the_first() -> None:
    """Of two takes the lower one counts, as in test_sharded_prediction."""
    before = psutil.Process().children()
    kept: list[PartResult] = []
    order = Order("smoke", ENVIRONMENT, part_seconds=500.0, shared_by=({"OMP_NUM_THREADS": "1"},) * 2)
    parts = [part for part in all_parts(2) if part.shared and part.where == "sharded.memory"]
    for _ in range(2):
        assert conduct(parts, order, lambda part: None, kept.append) == ()
    assert psutil.Process().children() == before
    memory, again = kept
    assert (memory.outcome, memory.sentence) == ("ok", None)
    assert memory.environment_id == ENVIRONMENT.environment_id
    assert [reading.name for reading in memory.readings] == [
        f"{kind}, tracked peak of rank {rank}" for kind in ("every weight", "drawn blocks") for rank in (0, 1)
    ]
    for reading, other in zip(memory.readings, again.readings, strict=True):  # one process alone needs nearly twice it
        assert reading.value is not None and other.value is not None
        assert reading.expected == pytest.approx(min(reading.value, other.value), rel=1e-3)


@dataclass(frozen=True)
class Met(Bench):
    """A bench of a process that has met the other already."""

    ranks: Ranks = ALONE

    @contextmanager
    def joined(self, name: str) -> Iterator[Ranks]:
        yield self.ranks


def steps(ranks: Ranks, kind: str) -> Any:
    """Return how far losses and weights are from one process's, and what is asked of them."""
    bench = Met(torch.device("cpu"), "smoke", ranks.rank, ranks.size, ranks=ranks)
    return [(reading.value, reading.at_most) for reading in sharded.steps_of(bench, kind).readings]


@pytest.mark.parametrize("kind", ["drawn blocks", "other side"])
def test_two_processes_take_the_steps_of_one_to_the_bit(kind: str) -> None:
    assert on_ranks(2, steps, kind) == [[(0.0, 0.0)] * 2] * 2


def answered(ranks: Ranks, factor: float) -> Any:
    """Return the least and the most of bf16 gradients to one process's, or what is said of them.

    Args:
        ranks: The processes.
        factor: By which gradients are divided on their way between them.
    """
    share = tiny.shard

    def spoilt(model: Any, *args: Any) -> Any:
        decoder = share(model, *args)
        for module in model.modules():
            if hasattr(module, "set_gradient_divide_factor"):
                module.set_gradient_divide_factor(factor)
        return decoder

    tiny.shard = spoilt  # type: ignore[attr-defined]
    bench = Met(torch.device("cpu"), "smoke", ranks.rank, ranks.size, ranks=ranks)
    try:
        return [reading.value for reading in sharded.gradients_in_bf16(bench, None).readings]
    except HarnessError as error:
        return str(error)


def test_gradients_are_sums_to_the_bit() -> None:
    assert on_ranks(2, answered, 1.0) == [[1.0, 1.0]] * 2


@pytest.mark.parametrize(("factor", "least"), [(2.0, "0.5"), (math.inf, "0")])
def test_means_and_zeros_in_place_of_sums_are_said_by_the_first_process(factor: float, least: str) -> None:
    first, _ = on_ranks(2, answered, factor)
    said = f"2 processes: largest gradients, to one process's, least: {least}, which should be at least 0.9"
    assert first == said


def test_every_kind_of_training_is_found_by_its_settings() -> None:
    labels = [kind.label for kind in sharded.KINDS.values()]
    assert labels == ["full", "lora", "lisa", "galore", "galore"]
