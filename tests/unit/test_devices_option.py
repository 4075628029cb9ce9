"""``--devices`` and ``--busy``: which devices are run on, and what is said of the others."""

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
}


@pytest.fixture(autouse=True)
def _probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(variables: Mapping[str, str]) -> Environment:
        return ENVIRONMENT.model_copy(update=FOUND.get(variables.get("CUDA_VISIBLE_DEVICES", ""), {}))

    monkeypatch.setattr(run, "probe_environment", probe)


def test_each_device_shows_a_run_itself_alone(capsys: pytest.CaptureFixture[str]) -> None:
    devices = run._devices(["0", "1"], "use")
    assert [device.variables for device in devices] == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert "device 1 is not idle: 5 of 80 bytes in use before the run; peaks" in capsys.readouterr().err
    assert [device.variables for device in run._devices((), "use")] == [{}]


def test_a_busy_device_is_left_out_and_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    (device,) = run._devices(["0", "1"], "skip")
    assert device.variables == {"CUDA_VISIBLE_DEVICES": "0"}
    assert "device 1 is not idle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "said"),
    [(["1"], "every device is in use"), (["0", "7"], "no CUDA device '7'"), (["0", "2"], "of several kinds")],
)
def test_what_cannot_be_run_on_is_one_sentence(names: list[str], said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        run._devices(names, "skip")
