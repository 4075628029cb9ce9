"""harness calibrate without its processes: what is asked, what is left, what is told, and with which exit code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.calibration.conductor import Order
from harness.calibration.parts import Part, all_parts
from harness.calibration_log import PartResult, append_result
from harness.commands import calibrate
from harness.planning.questions import PlanAnswer
from harness.suite import RunSpec, load_suite
from tests.comparing import make
from tests.fuzz_calibration import part
from tests.unit.test_calibration_log import CUDA

PREDICTION = make.make_prediction("full", "cuda")


class Device:
    """Stands for the processes that are asked: answers parts until one that it leaves, and notes what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.ran: list[RunSpec] = []
        self.leaves = ""
        self.fails = ""
        self.peaks: dict[str, int] = {}
        self.run_code = 0
        monkeypatch.setattr(calibrate, "probe_environment", lambda: CUDA)
        monkeypatch.setattr(calibrate, "conduct", self.conduct)
        monkeypatch.setattr(calibrate, "execute", self.execute)
        monkeypatch.setattr(calibrate, "predictions", self.predictions)

    def conduct(self, parts: Sequence[Part], order: Order, begins: Any, keep: Any) -> tuple[Part, ...]:
        for number, one in enumerate(parts):
            if one.name == self.leaves:
                return tuple(parts[number:])
            begins(one)
            self.asked.append(one.name)
            keep(answer(one, "failed" if one.name == self.fails else "ok", order.sizes))
        return ()

    def execute(self, args: Any, chosen: Any) -> int:
        self.ran = list(chosen().specs)
        return self.run_code

    def predictions(self, selection: Any, environment: Any, display: Any) -> dict[str, PlanAnswer]:
        return {
            spec.run_id: PlanAnswer(
                prediction=PREDICTION.model_copy(update={"peak_bytes": self.peaks.get(spec.label, 1)})
            )
            for spec in selection.specs
        }

    def calibrate(self, *arguments: str) -> int:
        self.asked.clear()
        return cli.main(["calibrate", "--results", str(self.folder), *arguments])


def answer(one: Part, outcome: str, sizes: str) -> PartResult:
    where = {"environment": CUDA.model_dump(mode="json"), "environment_id": CUDA.environment_id}
    return PartResult.model_validate(part(one.name, one.group, {}, outcome=outcome, sizes=sizes, **where))


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return Device(monkeypatch, tmp_path / "results")


def names(group: str) -> list[str]:
    return [one.name for one in all_parts() if one.group == group]


def test_parts_that_the_budget_left_are_told_and_asked_next_time(
    device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = names("constants")
    device.leaves = wanted[3]
    assert device.calibrate("--part", "constants") == 3
    assert device.asked == wanted[:3]
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("not reached: the budget ended") == len(wanted) - 3
    assert "the same command goes on" in said
    device.leaves = ""
    assert device.calibrate("--part", "constants") == 0
    assert device.asked == wanted[3:]


def test_what_failed_is_told_by_the_exit_code_and_asked_again(device: Device) -> None:
    wanted = names("constants")
    device.fails = wanted[2]
    assert device.calibrate("--part", "constants") == 1
    assert device.asked == wanted
    device.fails = ""
    assert device.calibrate("--part", "constants") == 0
    assert device.asked == [wanted[2]]
    assert device.calibrate("--part", "constants", "--again") == 0
    assert device.asked == wanted


def test_an_answer_at_tiny_sizes_or_of_another_device_answers_nothing(device: Device) -> None:
    for one in all_parts():
        append_result(device.folder, answer(one, "ok", "smoke"))
        elsewhere = answer(one, "ok", "full").model_copy(update={"environment_id": "elsewhere"})
        append_result(device.folder, elsewhere)
    assert device.calibrate("--part", "constants") == 0
    assert device.asked == names("constants")


def test_the_ladder_runs_in_the_order_of_its_rungs_without_what_the_device_does_not_hold(
    device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    assert device.calibrate("--part", "ladder") == 3  # nothing was recorded
    everything = [(spec.model_name, spec.label) for spec in device.ran]
    ladder = load_suite("calibration").ladder
    assert everything == [(model, label) for rung in ladder for model in rung.models for label in rung.labels]
    assert CUDA.device_memory_bytes is not None
    device.peaks = {everything[1][1]: CUDA.device_memory_bytes - 100_000_000}
    capsys.readouterr()
    device.calibrate("--part", "ladder")
    assert [(spec.model_name, spec.label) for spec in device.ran] == [
        pair for pair in everything if pair[1] != everything[1][1]
    ]
    assert "not run: 85.8 GB predicted, the device has 85.9" in " ".join(capsys.readouterr().out.split())


def test_a_failed_run_of_the_ladder_is_told_and_a_budget_that_is_over_runs_none(device: Device) -> None:
    device.run_code = 1
    assert device.calibrate("--part", "ladder") == 3
    device.ran = []
    assert device.calibrate("--part", "ladder", "--budget-seconds", "0.0001") == 3
    assert device.ran == []
