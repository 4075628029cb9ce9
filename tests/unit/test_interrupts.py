"""Ctrl-C, SIGTERM and a second one reach the runs under way, with children that are small programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from harness.catalogue.models import BaseModelSpec, load_models
from harness.errors import HarnessError
from harness.record import Record
from harness.runs import children
from harness.runs import process as launch
from harness.runs.executor import Runs, Tally
from harness.runs.local import Device, LocalMachine
from harness.runs.settling import work_folder
from harness.store import Store
from harness.task import RunTask
from tests.records import ENVIRONMENT, make_spec

POLITE = "import sys, time\nprint('{}', flush=True)\ntry:\n  time.sleep(60)\nexcept KeyboardInterrupt:\n  sys.exit(3)"
DEAF = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('{}', flush=True)\ntime.sleep(60)"
HUNGRY = "data = bytearray(300_000_000)\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


class Watcher:
    """Counts, and signals this process when a run has begun."""

    def __init__(self, *signals: int) -> None:
        self.ended: list[Record] = []
        self._signals = signals

    def run_begins(self, task: RunTask) -> None:
        def send() -> None:
            for number in self._signals:
                time.sleep(0.4)
                os.kill(os.getpid(), number)

        threading.Thread(target=send, daemon=True).start()

    def progress(self, what: str, done: int, total: int | None) -> None:
        pass

    def run_ended(self, record: Record) -> None:
        self.ended.append(record)

    def waits(self, num_runs: int) -> None:
        pass


def make_task(folder: Path, seed: int) -> RunTask:
    model: BaseModelSpec = load_models()["smollm2-135m"]
    return RunTask(
        spec=make_spec(seed=seed),
        uuid=str(seed),
        model=model,
        model_folder=None,
        rows_folder=None,
        cache_folder=folder,
        work_folder=work_folder(Store(folder), "run", str(seed)),
        run_id=make_spec(seed=seed).run_id,
    )


def run(
    folder: Path,
    program: str,
    monkeypatch: pytest.MonkeyPatch,
    watcher: Watcher,
    devices: Sequence[Device] = (),
) -> Tally:
    """Run two tasks whose process is a program."""
    store = Store(folder)
    popen = launch.subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        return popen([sys.executable, "-c", program], **options)

    monkeypatch.setattr(launch.subprocess, "Popen", start)
    tasks = [make_task(folder, seed) for seed in (1, 2)]
    return LocalMachine(devices or [Device(ENVIRONMENT)]).run(Runs(tasks, store), watcher)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_the_run_under_way_with_a_record_and_starts_no_other(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally = run(tmp_path, POLITE, monkeypatch, Watcher(number))
    assert tally.exit_code == 130
    (record,) = Store(tmp_path).read().records
    assert (record.status, record.reason) == ("interrupted", "interrupted")
    assert record.process is not None
    assert 0 < record.process.seconds < 30


def test_a_second_one_does_not_wait_for_a_child_that_will_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    tally = run(tmp_path, DEAF, monkeypatch, Watcher(signal.SIGINT, signal.SIGINT))
    assert time.monotonic() - began < children.GRACE_SECONDS / 2
    assert [record.status for record in tally.records] == ["interrupted"]
    assert tally.interrupted


def test_what_a_killed_process_used_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = run(tmp_path, HUNGRY, monkeypatch, Watcher())
    assert [record.status for record in tally.records] == ["failed", "failed"]
    for record in tally.records:
        assert "ended by SIGKILL; the system may have run out of memory" in str(record.reason)
        assert record.process is not None
        assert record.process.host_peak_bytes > 300_000_000


MEET = """
import os, pathlib, time
folder = pathlib.Path(os.environ["MEETING"])
(folder / os.environ["CUDA_VISIBLE_DEVICES"]).touch()
while len(list(folder.iterdir())) < 2:
    time.sleep(0.01)
"""

FIRST_ENDS = "import os, time\ntime.sleep(0 if os.environ['CUDA_VISIBLE_DEVICES'] == 'GPU-a' else 60)"


def two_devices(folder: Path) -> list[Device]:
    folder.mkdir()
    return [
        Device(
            ENVIRONMENT.model_copy(update={"device_name": name}),
            ({"CUDA_VISIBLE_DEVICES": name, "MEETING": str(folder)},),
        )
        for name in ("GPU-a", "GPU-b")
    ]


def test_two_devices_run_at_a_time_each_with_its_own_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally = run(tmp_path / "results", MEET, monkeypatch, Watcher(), two_devices(tmp_path / "meeting"))
    assert len(tally.records) == 2
    assert {record.environment.device_name for record in tally.records} == {"GPU-a", "GPU-b"}


def test_one_signal_ends_the_runs_of_all_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = run(tmp_path / "results", POLITE, monkeypatch, Watcher(signal.SIGTERM), two_devices(tmp_path / "meeting"))
    assert [record.status for record in tally.records] == ["interrupted"] * 2
    assert tally.exit_code == 130


def test_a_record_that_cannot_be_stored_ends_the_other_device_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise HarnessError("no space left")

    monkeypatch.setattr(Store, "append", full)
    began = time.monotonic()
    with pytest.raises(HarnessError, match="no space left"):
        run(tmp_path / "results", FIRST_ENDS, monkeypatch, Watcher(), two_devices(tmp_path / "meeting"))
    assert time.monotonic() - began < 30


def test_a_run_goes_to_the_device_that_holds_its_peak() -> None:
    small, large = (
        Device(ENVIRONMENT.model_copy(update={"device_memory_bytes": size})) for size in (8 * 2**30, 80 * 2**30)
    )
    task = SimpleNamespace(prediction=SimpleNamespace(peak_bytes=20 * 2**30))
    assert (small.holds(task), large.holds(task)) == (False, True)
    assert small.holds(SimpleNamespace(prediction=None))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word to a child is Linux's")
def test_a_child_within_a_long_call_that_holds_the_interpreter_ends_with_its_parent() -> None:
    child = "from harness.runs.child import die_with_parent; die_with_parent(); import ctypes, os; "
    child += "print(os.getpid(), flush=True); ctypes.PyDLL(None).sleep(100)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert psutil.pid_exists(pid)
        process.kill()
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_clock_that_is_set_back_makes_no_run_end_before_it_began(tmp_path: Path) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    record = make_task(tmp_path, 1).record(ENVIRONMENT, later, "ok", None)
    assert record.finished_at == record.started_at == later
