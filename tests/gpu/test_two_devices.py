"""Training that two CUDA devices share. Without two of them nothing here runs: NCCL was never run in this project."""

from __future__ import annotations

import psutil
import pytest
import torch

from harness.calibration.conductor import Order, conduct
from harness.calibration.parts import all_parts
from harness.calibration_log import PartResult
from harness.commands._executor import devices_for
from harness.runs.process import probe_environment

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="it takes two CUDA devices"),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def answers() -> dict[str, PartResult]:
    """Ask everything that two devices share."""
    (pair,) = devices_for(2)
    before = set(psutil.Process().children())
    kept: list[PartResult] = []
    order = Order("smoke", probe_environment(), part_seconds=300.0, shared_by=pair.variables)
    assert conduct([part for part in all_parts(2) if part.shared], order, lambda part: None, kept.append) == ()
    assert set(psutil.Process().children()) <= before, "a process is left"
    return {one.part.removesuffix(", 2 devices"): one for one in kept}


@pytest.mark.parametrize(
    "kind", ["every weight", "adapters", "drawn blocks", "projections, usual side", "projections, other side"]
)
def test_losses_and_weights_are_those_of_one_device(kind: str, answers: dict[str, PartResult]) -> None:
    found = answers[kind]
    assert found.outcome == "ok", found.sentence
    assert all(reading.reached for reading in found.readings)


def test_bf16_gradients_are_sums_and_not_zero(answers: dict[str, PartResult]) -> None:
    found = answers["gradients in bf16"]
    assert found.outcome == "ok", found.sentence
    least, most = (reading.value for reading in found.readings)
    assert 0.9 <= least <= most <= 1.1


def test_each_device_has_its_peaks_beside_the_prediction(answers: dict[str, PartResult]) -> None:
    found = answers["memory"]
    assert found.outcome == "ok", found.sentence
    assert sum("allocated" in reading.name for reading in found.readings) == 4
    assert all(reading.expected is not None for reading in found.readings)
