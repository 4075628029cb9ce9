"""``--executor``: what cannot be is one sentence, before anything is started."""

from __future__ import annotations

import argparse
import socket
import sys

import pytest

from harness.commands._executor import _threads, executor
from harness.errors import HarnessError


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(
        **{"executor": "ray", "ray_address": None, "cpus_per_run": None, "devices": None, "busy": "use", **given}
    )


@pytest.mark.parametrize("given", [{"ray_address": "auto"}, {"cpus_per_run": 2}])
def test_options_of_ray_without_it_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(HarnessError, match="is of --executor ray"), executor(options(executor="local", **given)):
        pass


def test_devices_are_not_for_ray() -> None:
    with pytest.raises(HarnessError, match="--devices is of --executor local"), executor(options(devices=["0"])):
        pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HarnessError, match=r"finetune-harness\[ray\]"), executor(options()):
        pass


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(HarnessError, match="nobody answers"), executor(options(ray_address=f"127.0.0.1:{port}")):
            pass


@pytest.mark.parametrize("address", ["somewhere:x", "ray://:", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(HarnessError, match="--ray-address"), executor(options(ray_address=address)):
        pass


@pytest.mark.parametrize(("asked", "threads"), [(None, 1), ("", 1), ("4", 4), ("4,2", 4), ("many", 1), ("0", 1)])
def test_threads_are_those_that_openmp_is_asked_for(
    asked: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if asked is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert _threads() == threads
