"""Runs on Ray while a node is lost, and when the user stops them."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import RANDOM
from tests.ray_cluster import arguments, outcomes, start, two_workers, wait_until

pytest.importorskip("ray")
pytestmark = pytest.mark.long
SEEDS = range(1, 11)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(RANDOM)
    return tmp_path


@pytest.mark.timeout(900)
def test_twenty_runs_are_all_recorded_once_though_a_worker_is_lost_midway(folder: Path, tiny_llama: Path) -> None:
    more = ["--label", "full", "--label", "lisa", *(word for seed in SEEDS for word in ("--seed", str(seed)))]
    with (
        two_workers() as (address, workers, cluster),
        start(arguments(tiny_llama, *more, "--ray-address", address), folder, folder / "cache") as harness,
    ):
        wait_until(lambda: sum(outcomes(folder).values()) >= 6, 300)
        cluster.remove_node(workers[0], allow_graceful=False)
        said, _ = harness.communicate(timeout=500)
    assert harness.returncode == 0, said
    assert outcomes(folder) == Counter({(label, seed, "ok"): 1 for label in ("full", "lisa") for seed in SEEDS})


@pytest.mark.timeout(180)
def test_ctrl_c_keeps_what_ended_records_what_ran_and_leaves_no_process(folder: Path, tiny_llama: Path) -> None:
    long = folder / "tiny.toml"
    long.write_text(RANDOM.replace("num_steps = 6", "num_steps = 100000"))
    with start(arguments(tiny_llama), folder, folder / "cache") as harness:
        parent = psutil.Process(harness.pid)

        def children() -> list[psutil.Process]:
            found = []
            for process in parent.children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it has ended
                    found += [process] * ("harness.runs.child" in process.cmdline())
            return found

        wait_until(lambda: any(child.cpu_times().user > 4 for child in children()), 90)
        family = parent.children(recursive=True)
        harness.send_signal(signal.SIGINT)
        said, _ = harness.communicate(timeout=90)
    assert harness.returncode == 130, said
    assert set(outcomes(folder)) <= {(label, 1, "interrupted") for label in ("full", "lisa", "galore")}
    assert sum(outcomes(folder).values()) >= 1
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
