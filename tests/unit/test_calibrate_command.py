"""harness calibrate without its processes: what is asked, what is left, what is told, and with which exit code."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from harness import cli
from harness.calibration import foretelling
from harness.calibration.conductor import Order
from harness.calibration.parts import Part, all_parts
from harness.calibration_log import PartResult, append_result
from harness.commands import calibrate
from harness.commands.requests import HowToRun
from harness.diagnosis import TorchDevice, TorchFacts
from harness.errors import HarnessError
from harness.expansion import load_suite
from harness.planning.questions import PlanAnswer, PlanTask
from harness.runs.executor import Tally
from harness.runs.local import Device as LocalDevice
from harness.spec import RunSpec
from harness.store import Store
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
        self.outcome = "failed"
        self.peaks: dict[str, int] = {}
        self.status = "ok"
        self.repeats: list[int | None] = []
        self.foretold: list[str] = []
        self.slowness = 0.0
        self.shared_by: Any = None
        monkeypatch.setattr(calibrate, "ask_torch", lambda: facts(1))
        monkeypatch.setattr(calibrate, "probe_environment", lambda: CUDA)
        monkeypatch.setattr(calibrate, "conduct", self.conduct)
        monkeypatch.setattr(calibrate, "executor", lambda where: nullcontext())
        monkeypatch.setattr(calibrate, "execute_on", self.execute_on)
        monkeypatch.setattr(foretelling, "Predictor", lambda checksum: self)

    def conduct(self, parts: Sequence[Part], order: Order, begins: Any, keep: Any) -> tuple[Part, ...]:
        self.shared_by = order.shared_by
        for number, one in enumerate(parts):
            if one.name == self.leaves:
                return tuple(parts[number:])
            begins(one)
            self.asked.append(one.name)
            keep(answer(one, self.outcome if one.name == self.fails else "ok", order.sizes))
        return ()

    def execute_on(
        self, chosen: Any, how: HowToRun, choose: Any, store: Store, *, stop_at: float, offline: bool
    ) -> tuple[Tally, int]:
        assert offline
        (spec,) = choose().specs
        self.ran.append(spec)
        self.repeats.append(how.repeat)
        record = make.make_record("full", environment=CUDA, status=self.status, spec=spec.model_dump())
        store.append(record.model_copy(update={"run_id": spec.run_id, "uuid": f"{spec.run_id}-{len(self.ran)}"}))
        return Tally((record,)), 1

    def answer(self, task: PlanTask) -> PlanAnswer:
        self.foretold.append(task.spec.label)
        time.sleep(self.slowness)
        peak = self.peaks.get(task.spec.label, 1)
        return PlanAnswer(prediction=PREDICTION.model_copy(update={"peak_bytes": peak}))

    def close(self) -> None: ...

    def calibrate(self, *arguments: str) -> int:
        self.asked.clear()
        self.ran.clear()
        return cli.main(["calibrate", "--results", str(self.folder), *arguments])


def facts(number: int) -> TorchFacts:
    """Return what torch says of a machine with so many devices."""
    one = TorchDevice.model_construct(name=CUDA.device_name)
    return TorchFacts(version="2", built_for="CUDA 13.0", num_threads=1).model_copy(update={"devices": (one,) * number})


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


def pairs(specs: Sequence[RunSpec]) -> list[tuple[str, str]]:
    return [(spec.model_name, spec.label) for spec in specs]


def everything() -> list[tuple[str, str]]:
    return [
        (model, label) for rung in load_suite("calibration").ladder for model in rung.models for label in rung.labels
    ]


def test_the_ladder_runs_in_the_order_of_its_rungs_without_what_the_device_does_not_hold(
    device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    assert CUDA.device_memory_bytes is not None
    large = everything()[1][1]
    device.peaks = {large: CUDA.device_memory_bytes - 100_000_000}
    assert device.calibrate("--part", "ladder") == 0
    assert pairs(device.ran) == [pair for pair in everything() if pair[1] != large]
    assert "not run: 85.8 GB predicted, the device has 85.9" in " ".join(capsys.readouterr().out.split())


def test_a_measured_context_decides_what_the_device_holds(device: Device) -> None:
    assert CUDA.device_memory_bytes is not None
    large = everything()[1]
    device.peaks = {large[1]: CUDA.device_memory_bytes - 100_000_000}
    context = next(one for one in all_parts() if one.name == "context")
    append_result(
        device.folder, answer(context, "ok", "full").model_copy(update={"facts": {"context_bytes": 99_000_000}})
    )
    assert device.calibrate("--part", "ladder") == 0
    assert large in pairs(device.ran)


def test_runs_that_are_recorded_are_skipped_unless_they_are_asked_again(device: Device) -> None:
    assert device.calibrate("--part", "ladder") == 0
    assert set(device.repeats) == {None}
    assert device.calibrate("--part", "ladder") == 0
    assert device.ran == []
    assert device.calibrate("--part", "ladder", "--again") == 0
    assert pairs(device.ran) == everything()
    assert device.repeats[-1] == 1


def test_a_failed_run_of_the_ladder_is_told_and_asked_again(device: Device) -> None:
    device.status = "failed"
    assert device.calibrate("--part", "ladder") == 1
    device.status = "ok"
    assert device.calibrate("--part", "ladder") == 0
    assert pairs(device.ran) == everything()


def test_predictions_end_with_the_budget(
    device: Device, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "CORES_FOR_TWO", 1_000)
    device.slowness = 0.3
    assert device.calibrate("--part", "ladder", "--budget-seconds", "1") == 3
    assert 0 < len(device.foretold) < 8
    assert len(device.ran) < len(everything())
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("not reached: the budget ended") == len(everything()) - len(device.ran)


def test_a_budget_that_is_over_runs_nothing(device: Device) -> None:
    assert device.calibrate("--part", "ladder", "--budget-seconds", "0.0001") == 3
    assert device.ran == []


def test_where_cores_are_to_spare_all_is_foretold_beside_the_checks(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "CORES_FOR_TWO", 1)
    assert device.calibrate("--part", "ladder") == 0
    assert device.foretold == [label for _, label in everything()]


def test_what_was_skipped_is_asked_again(device: Device) -> None:
    device.fails, device.outcome = names("constants")[2], "skipped"
    assert device.calibrate("--part", "constants") == 0
    assert device.calibrate("--part", "constants") == 0
    assert device.asked == [names("constants")[2]]


def test_two_calls_on_one_folder_do_not_disturb_each_other(device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    (device.folder / "calibration").mkdir(parents=True)
    with FileLock(device.folder / "calibration" / "calibrate.lock"):
        assert device.calibrate("--part", "constants") == 2
    assert "another harness calibrate is at work there" in capsys.readouterr().err
    assert device.asked == []


def shared(number: int) -> list[str]:
    return [one.name for one in all_parts(number) if one.shared]


def variables(number: int) -> list[LocalDevice]:
    return [LocalDevice(CUDA, tuple({"CUDA_VISIBLE_DEVICES": str(index)} for index in range(number)))]


def test_where_there_are_several_devices_all_of_them_share_training(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "devices_for", variables)
    monkeypatch.setattr(calibrate, "ask_torch", lambda: facts(4))
    assert device.calibrate("--part", "sharded") == 0
    assert device.asked == shared(4)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in device.shared_by] == ["0", "1", "2", "3"]
    assert device.calibrate("--part", "sharded", "--gpus", "2") == 0
    assert device.asked == shared(2), "another number has answers of its own"
    assert device.calibrate("--part", "sharded") == 0
    assert device.asked == []


def test_one_device_shares_nothing_and_is_said_where_it_was_asked(
    device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    assert device.calibrate("--part", "checks") == 0
    assert device.asked == names("checks")
    for more in ([], ["--gpus", "1"]):
        assert device.calibrate("--part", "sharded", *more) == 2
        assert "--gpus N takes N devices, on a CPU N processes" in capsys.readouterr().err


def test_devices_that_cannot_share_are_told_and_the_rest_is_asked(
    device: Device, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_two_kinds(number: int) -> list[LocalDevice]:
        raise HarnessError("these are of several kinds")

    monkeypatch.setattr(calibrate, "devices_for", of_two_kinds)
    monkeypatch.setattr(calibrate, "ask_torch", lambda: facts(2))
    assert device.calibrate("--part", "checks") == 0, "nobody asks how many there are"
    monkeypatch.setattr(calibrate, "_climb", lambda run, foreteller: None)
    assert device.calibrate() == 0
    assert "several kinds; nothing is asked of several devices together" in capsys.readouterr().err
    assert device.calibrate("--gpus", "2") == 2
