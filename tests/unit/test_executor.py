"""``--executor``: what cannot be is one sentence, before anything is started."""

from __future__ import annotations

import socket
import sys

import pytest

from harness.commands._executor import _threads, executor
from harness.commands.requests import WhereToRun
from harness.errors import HarnessError


@pytest.mark.parametrize("where", [WhereToRun(ray_address="auto"), WhereToRun(cpus_per_run=2)])
def test_options_of_ray_without_it_are_refused(where: WhereToRun) -> None:
    with pytest.raises(HarnessError, match="is of --executor ray"), executor(where):
        pass


def test_devices_are_not_for_ray() -> None:
    where = WhereToRun(executor="ray", devices=("0",))
    with pytest.raises(HarnessError, match="--devices is of --executor local"), executor(where):
        pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HarnessError, match=r"pip install '\.\[ray\]'"), executor(WhereToRun(executor="ray")):
        pass


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        where = WhereToRun(executor="ray", ray_address=f"127.0.0.1:{port}")
        with pytest.raises(HarnessError, match="nobody answers"), executor(where):
            pass


@pytest.mark.parametrize("address", ["somewhere:x", "ray://:", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    pytest.importorskip("ray")
    where = WhereToRun(executor="ray", ray_address=address)
    with pytest.raises(HarnessError, match="--ray-address"), executor(where):
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
