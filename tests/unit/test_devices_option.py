"""``--devices``, ``--gpus-per-run`` and ``--busy``: what is run on, and what is said of the others."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from harness.commands import _executor as run
from harness.errors import HarnessError
from harness.record_environment import Environment
from tests.records import ENVIRONMENT

FOUND = {
    "0": {"device_type": "cuda", "device_name": "H100"},
    "1": {"device_type": "cuda", "device_name": "H100", "device_busy": "5 of 80 bytes in use before the run"},
    "2": {"device_type": "cuda", "device_name": "A100"},
    **{name: {"device_type": "cuda", "device_name": "H100"} for name in ("3", "4", "5", "GPU-a", "GPU-b")},
}
HERE = {"num_threads": 8}
"""What is there where no device is named."""


@pytest.fixture(autouse=True)
def _probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(variables: Mapping[str, str]) -> Environment:
        found = FOUND.get(variables.get("CUDA_VISIBLE_DEVICES", ""), HERE)
        threads = {"num_threads": int(variables["OMP_NUM_THREADS"])} if "OMP_NUM_THREADS" in variables else {}
        return ENVIRONMENT.model_copy(update=found | threads)

    monkeypatch.setattr(run, "probe_environment", probe)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def shown(*names: str) -> tuple[dict[str, str], ...]:
    return tuple({"CUDA_VISIBLE_DEVICES": name} for name in names)


def test_each_device_shows_a_run_itself_alone(capsys: pytest.CaptureFixture[str]) -> None:
    devices = run.devices_for(1, ["0", "1"], "use")
    assert [device.variables for device in devices] == [shown("0"), shown("1")]
    assert "device 1 is not idle: 5 of 80 bytes in use before the run; peaks" in capsys.readouterr().err
    assert [device.variables for device in run.devices_for(1)] == [({},)]


def test_a_busy_device_is_left_out_and_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    (device,) = run.devices_for(1, ["0", "1"], "skip")
    assert device.variables == shown("0")
    assert "device 1 is not idle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "said"),
    [(["1"], "every device is in use"), (["0", "7"], "no CUDA device '7'"), (["0", "2"], "of several kinds")],
)
def test_what_cannot_be_run_on_is_one_sentence(names: list[str], said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        run.devices_for(1, names, "skip")


def test_devices_are_taken_so_many_together_in_the_order_given(capsys: pytest.CaptureFixture[str]) -> None:
    devices = run.devices_for(2, ["3", "0", "GPU-a", "5"])
    assert [device.variables for device in devices] == [shown("3", "0"), shown("GPU-a", "5")]
    assert [device.environment.device for device in devices] == ["2 x H100"] * 2
    one = run.devices_for(1, ["0"])[0].environment
    assert one.environment_id != devices[0].environment.environment_id
    assert capsys.readouterr().err == ""


def test_of_devices_without_the_busy_ones_whole_groups_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    devices = run.devices_for(2, ["0", "1", "3", "4", "5", "GPU-a"], "skip")
    assert [device.variables for device in devices] == [shown("0", "3"), shown("4", "5")]
    said = capsys.readouterr().err
    assert "device 1 is not idle" in said and "1 of the devices stay idle, as a run takes 2" in said


def test_where_no_device_is_named_a_run_takes_the_first_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FOUND, "", FOUND["0"])
    monkeypatch.setitem(FOUND, "1", FOUND["0"])
    (device,) = run.devices_for(2)
    assert device.variables == shown("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-b,3")
    (device,) = run.devices_for(2)
    assert device.variables == shown("5", "GPU-b")
    with pytest.raises(HarnessError, match=r"a run takes 4 devices .* CUDA_VISIBLE_DEVICES=5,GPU-b,3 shows 3"):
        run.devices_for(4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(HarnessError, match=r"a run takes 8 devices .*: there is no CUDA device '6' here"):
        run.devices_for(8)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["0"], r"--devices names 1, and a run takes 2 \(gpus_per_run\): name 2 or a multiple of it"),
        (["0", "3", "4"], "--devices names 3, and a run takes 2"),
        (["0", "1"], "all but 1 of 2 devices are in use by others"),
        (["0", "2"], r"of several kinds \(device 0: H100, device 2: A100\)"),
        (["0", "7"], "--devices: there is no CUDA device '7' here"),
    ],
)
def test_devices_that_are_no_whole_groups_are_one_sentence(names: list[str], said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        run.devices_for(2, names, "skip")


@pytest.mark.parametrize(("ranks", "threads"), [(2, 4), (3, 2), (16, 1)])
def test_on_a_cpu_the_ranks_share_its_threads_out(ranks: int, threads: int) -> None:
    (device,) = run.devices_for(ranks)
    assert device.variables == ({"OMP_NUM_THREADS": str(threads)},) * ranks
    assert device.environment.device == f"{ranks} x a processor, {threads} threads"
    assert device.environment == run.environment_for(ranks)


def test_threads_that_the_user_sets_are_those_of_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    (device,) = run.devices_for(2)
    assert device.variables == ({}, {})
