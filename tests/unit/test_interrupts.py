"""Ctrl-C, SIGTERM and a second one reach the runs under way, with children that are small programs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from harness.engine import launch
from harness.engine.executors import Tally, run_locally, work_folder
from harness.engine.task import RunTask
from harness.models import BaseModelSpec, load_models
from harness.record import Record
from harness.store import Store
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


def run(folder: Path, program: str, monkeypatch: pytest.MonkeyPatch, watcher: Watcher) -> Tally:
    """Run two tasks whose process is a program."""
    store = Store(folder)
    model: BaseModelSpec = load_models()["smollm2-135m"]
    popen = launch.subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        return popen([sys.executable, "-c", program], **options)

    monkeypatch.setattr(launch.subprocess, "Popen", start)
    tasks = [
        RunTask(
            spec=make_spec(seed=seed),
            uuid=str(seed),
            model=model,
            model_folder=None,
            rows_folder=None,
            cache_folder=folder,
            work_folder=work_folder(store, "run", str(seed)),
            run_id=make_spec(seed=seed).run_id,
        )
        for seed in (1, 2)
    ]
    return run_locally(tasks, store=store, environment=ENVIRONMENT, watcher=watcher)


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
    assert time.monotonic() - began < launch.GRACE_SECONDS / 2
    assert [record.status for record in tally.records] == ["interrupted"]
    assert tally.interrupted


def test_what_a_killed_process_used_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = run(tmp_path, HUNGRY, monkeypatch, Watcher())
    assert [record.status for record in tally.records] == ["failed", "failed"]
    for record in tally.records:
        assert "ended by SIGKILL; the system may have run out of memory" in str(record.reason)
        assert record.process is not None
        assert record.process.host_peak_bytes > 300_000_000
