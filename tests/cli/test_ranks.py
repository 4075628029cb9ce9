"""Runs on two ranks through the real command: one record, the same figures, and one fate when a rank is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from harness.runs.settling import WORK
from harness.store import Store
from tests.cli.conftest import SUITE, command

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prepared")]
LONG_SECONDS = 120.0


def write_suite(folder: Path, num_steps: int) -> None:
    suite = SUITE.replace("num_steps = 8", f"num_steps = {num_steps}").replace("ranking", "gpus_per_run = 2\nranking")
    (folder / "tiny.toml").write_text(suite.replace('tasks = ["piqa", "winogrande"]', 'tasks = ["piqa"]'))


def arguments(model: Path, *more: str) -> list[str]:
    chosen = ["--suite", "tiny.toml", "--model", f"smollm2-135m={model}", "--label", "full", "--offline"]
    return ["run", *chosen, *more]


def test_a_run_on_two_ranks_has_one_record_and_the_figures_of_one(tmp_path: Path, tiny_llama: Path) -> None:
    write_suite(tmp_path, 4)
    for more in ([], ["--gpus-per-run", "1"]):
        done = command(*arguments(tiny_llama, *more), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    store = Store(tmp_path / "results" / "records")
    two, one = store.read("tiny").records
    assert (two.run_id, two.environment.num_ranks, one.environment.num_ranks) == (one.run_id, 2, 1)
    assert two.train is not None and one.train is not None
    assert two.train.curve.loss == pytest.approx(one.train.curve.loss, rel=1e-5)
    assert [score.value for score in two.scores] == [score.value for score in one.scores]


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_its_run_and_the_same_command_begins_it_again(
    victim: int, tmp_path: Path, tiny_llama: Path
) -> None:
    write_suite(tmp_path, 2000)
    store = Store(tmp_path / "results" / "records")
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "harness.cli", *arguments(tiny_llama)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as parent:
        wait_until(lambda: bool(list((store.folder / WORK).glob("*/rendezvous"))), parent)
        ranks = {int(one.environ()["HARNESS_RANK"]): one for one in psutil.Process(parent.pid).children()}
        assert set(ranks) == {0, 1}
        met = {rank: one.cpu_times().user for rank, one in ranks.items()}
        wait_until(lambda: all(one.cpu_times().user > met[rank] + 4 for rank, one in ranks.items()), parent)
        os.kill(ranks[victim].pid, signal.SIGKILL)
        assert parent.wait(timeout=LONG_SECONDS) == 1
    assert not [one.pid for one in ranks.values() if one.is_running()]
    (failed,) = store.read("tiny").records
    assert failed.reason == (
        f"rank {victim} of 2: the run's process was ended by SIGKILL; the system may have run out of memory"
    )
    if victim == 1:
        assert [phase.name for phase in failed.phases][:1] == ["load"], "what rank 0 had measured"
    again = command(*arguments(tiny_llama, "--max-steps", "2"), cwd=tmp_path, timeout=LONG_SECONDS)
    assert again.returncode == 0, again.stderr
    assert store.read("tiny").records[-1].status == "ok"


def wait_until(what: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LONG_SECONDS
    while not what():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
