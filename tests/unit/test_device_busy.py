"""A device that others use is noticed when a run begins, and sampled as a whole."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import cli
from harness.commands import _executor, run
from harness.engine import environment
from harness.engine.memory import _DeviceSampler
from tests.records import ENVIRONMENT

GB = 10**9


@pytest.mark.parametrize(("free", "busy"), [(79 * GB + 1, None), (50 * GB, "30000000000 of 80000000000 bytes")])
def test_more_than_an_idle_context_in_use_is_busy(free: int, busy: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * GB))
    found = environment._busy(torch.device("cuda", 0))
    assert found is None if busy is None else found is not None and found.startswith(busy)


@pytest.mark.parametrize("busy", [None, "30 of 80 bytes in use before the run"])
def test_run_warns_once_of_a_busy_device(
    busy: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ENVIRONMENT.model_copy(update={"device_type": "cuda", "device_busy": busy})
    monkeypatch.setattr(_executor, "probe_environment", lambda variables: where)
    monkeypatch.setattr(run._Wanted, "__call__", lambda self, spec: False)
    assert cli.main(["run", "--suite", "quickstart", "--results", str(tmp_path)]) == 0
    sentence = "harness: warning: the device is not idle: 30 of 80 bytes in use before the run; peaks and times may be"
    assert capsys.readouterr().err.count(sentence) == (0 if busy is None else 1)


class Nvml:
    """The part of pynvml that is used."""

    class NVMLError(Exception):
        pass

    def __init__(self, used: int | None) -> None:
        self.used = used
        self.asked: list[str] = []
        self.nvmlInit = lambda: None
        self.nvmlDeviceGetHandleByUUID = self._handle
        self.nvmlDeviceGetMemoryInfo = self._info

    def _handle(self, uuid: str) -> str:
        self.asked.append(uuid)
        return uuid

    def _info(self, handle: str) -> Any:
        if self.used is None:
            raise self.NVMLError("the device is lost")
        return SimpleNamespace(used=self.used)


def sampled(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> tuple[int | None, bool]:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2-3"))
    sampler = _DeviceSampler(torch.device("cuda", 0))
    return sampler.stop(), sampler.available


def test_the_sampler_takes_the_whole_devices_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml(7 * GB)
    assert sampled(nvml, monkeypatch) == (7 * GB, True)
    assert nvml.asked == ["GPU-1-2-3"]


def test_a_sampler_that_fails_on_the_way_gives_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sampled(Nvml(None), monkeypatch) == (None, False)
