"""Runs as jobs: of submitit's own local cluster, and of a stand-in for Slurm's programs that submitit's real Slurm
executor calls. The records are those of the local executor.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.store import Store
from tests import slurm_programs
from tests.cli.conftest import RANDOM, command

pytest.importorskip("submitit")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LOCAL = ("--executor", "slurm", "--slurm", "cluster=local", "--slurm", "timeout_min=5")
SLURM = ("--executor", "slurm", "--slurm", "timeout_min=5", "--slurm", "gpus_per_node=0")
VOLATILE = {"uuid", "started_at", "finished_at", "process"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(RANDOM)
    return tmp_path


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Give the environment variables of a machine with Slurm's programs."""
    return slurm_programs.install(tmp_path / "slurm")


def arguments(model: Path, *more: str, results: str = "results/records") -> tuple[str, ...]:
    return (
        *("run", "--suite", "tiny.toml", "--model", f"smollm2-135m={model}", "--offline"),
        *("--results", results, *more),
    )


def started(folder: Path, variables: Mapping[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "harness", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HARNESS_CACHE": str(folder / "cache"), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcomes(folder: Path, results: str = "results/records") -> Counter[tuple[str, str]]:
    found = Store(folder / results).read("tiny")
    assert found.warnings == ()
    return Counter((record.spec.label, record.status) for record in found.records)


def wait_until(true: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.1)


def without_times(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a record another run of the same repeats: no clock, no process, nothing the device was doing."""

    def timed(key: str) -> bool:
        return (
            key in VOLATILE
            or "seconds" in key
            or key.startswith("host_")
            or key.endswith(("_per_second", "_bytes_per_s"))
            or key == "busy"
        )

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(inner) for key, inner in value.items() if not timed(key)}
        return [kept(inner) for inner in value] if isinstance(value, list) else value

    return dict(kept(record))


def test_records_are_those_of_the_local_executor_and_a_second_call_skips_them(folder: Path, tiny_llama: Path) -> None:
    here = command(*arguments(tiny_llama, results="here"), cwd=folder)
    assert here.returncode == 0, here.stderr
    jobs = command(*arguments(tiny_llama, *LOCAL, results="jobs"), cwd=folder)
    assert jobs.returncode == 0, jobs.stderr
    assert "[3/3]" in jobs.stderr and "other processes" not in jobs.stderr
    by_label = [
        {
            record.spec.label: without_times(record.model_dump(mode="json"))
            for record in Store(folder / name).read().records
        }
        for name in ("here", "jobs")
    ]
    assert set(by_label[0]) == {"full", "lisa", "galore"}
    for label, record in by_label[0].items():
        assert by_label[1][label].keys() == record.keys()
        for key, value in record.items():
            assert by_label[1][label][key] == value, (label, key)
    again = command(*arguments(tiny_llama, *LOCAL, results="jobs"), cwd=folder)
    assert (again.returncode, "3 of 3 runs skipped" in again.stdout) == (0, True), again.stdout
    left = [file for file in (folder / "jobs" / ".slurm").rglob("*") if file.is_file() and file.name != "lock"]
    assert left == []


def test_a_run_that_fails_and_one_whose_job_is_killed_are_recorded_as_such(folder: Path, tiny_llama: Path) -> None:
    (folder / "tiny.toml").write_text(RANDOM.replace("num_steps = 6", "num_steps = 100000"))
    words = arguments(tiny_llama, *LOCAL, "--label", "full")
    timed = command(*words, "--timeout", "8", cwd=folder)
    assert (timed.returncode, outcomes(folder)) == (1, Counter({("full", "timed_out"): 1})), timed.stdout
    (record,) = Store(folder / "results/records").read().records
    assert record.reason == "timed out after 8.0 s"
    with started(folder, {}, *words) as run:
        wait_until(lambda: bool(job_processes(run.pid)))
        time.sleep(1)
        for process in job_processes(run.pid):
            process.send_signal(signal.SIGKILL)
        said, _ = run.communicate(timeout=180)
    assert run.returncode == 1, said
    record = Store(folder / "results/records").read().records[-1]
    assert (record.status, "and left no record" in str(record.reason)) == ("failed", True), record.reason


def job_processes(parent: int) -> list[Any]:
    """Return the process that does a run, of submitit's local cluster: not its controller, not the run's child."""
    import psutil

    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            children = [" ".join(child.cmdline()) for child in process.children()]
        except psutil.Error:
            continue
        if any("harness.runs.child" in child for child in children):
            found.append(process)
    return found


def test_the_submission_asks_for_what_was_asked_and_the_job_does_the_run(
    folder: Path, tiny_llama: Path, slurm: dict[str, str]
) -> None:
    asked = (
        "partition=gpu",
        "account=lab",
        "qos=long",
        "mem_gb=4",
        "constraint=a100|h100",
        "sbatch.reservation=week 3",
    )
    words = [word for one in (*asked, "setup=export FOUND=yes") for word in ("--slurm", one)]
    run_of_one = arguments(tiny_llama, *SLURM, "--label", "full", "--cpus-per-run", "2", *words)
    done = command(*run_of_one, cwd=folder, environment=slurm)
    assert done.returncode == 0, done.stderr
    assert outcomes(folder) == Counter({("full", "ok"): 1})
    probe, run = slurm_programs.jobs(folder / "slurm").values()
    assert probe["state"] == run["state"] == "COMPLETED"
    lines = run["script"].splitlines()
    for line in (
        *("--job-name=smollm2-135m/full/1", "--time=5", "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=2"),
        *("--gpus-per-node=0", "--partition=gpu", "--account=lab", "--qos=long", "--mem=4GB"),
        *("--constraint='a100|h100'", "--reservation='week 3'", "--signal=USR2@90", "--open-mode=append"),
    ):
        assert f"#SBATCH {line}" in lines, run["script"]
    assert "export FOUND=yes" in lines
    assert [line for line in lines if line.startswith("srun")]
    (record,) = Store(folder / "results/records").read().records
    assert record.environment.num_threads == 2


def test_status_tells_queued_and_running_and_two_calls_do_a_run_once(
    folder: Path, tiny_llama: Path, slurm: dict[str, str]
) -> None:
    place, model = folder / "slurm", ("--model", f"smollm2-135m={tiny_llama}")
    (folder / "tiny.toml").write_text(RANDOM.replace("num_steps = 6", "num_steps = 400"))
    words = arguments(tiny_llama, *SLURM, "--label", "full")

    def status() -> str:
        told = command("status", "--suite", "tiny.toml", *model, "--label", "full", "--json", cwd=folder)
        (row,) = json.loads(told.stdout)
        return str(row["state"])

    with started(folder, slurm, *words) as first:
        wait_until(lambda: len(slurm_programs.jobs(place)) == 1)
        wait_until(lambda: (place / "100.job").exists() and slurm_programs.state_of(place, "100") == "RUNNING")
        (place / "hold").touch()
        wait_until(lambda: len(slurm_programs.jobs(place)) == 2)
        wait_until(lambda: status() == "queued as job 101")
        (place / "hold").unlink()
        wait_until(lambda: status() == "running as job 101")
        # Another call, on this machine: the job has the run.
        beside = command(*arguments(tiny_llama, "--label", "full"), cwd=folder, environment=slurm)
        said, _ = first.communicate(timeout=300)
    assert (first.returncode, beside.returncode) == (0, 0), (said, beside.stdout, beside.stderr)
    assert outcomes(folder) == Counter({("full", "ok"): 1})
    assert "1 of 1 runs were done by other processes meanwhile" in beside.stdout
    assert status() == "ok"


def test_what_a_killed_parent_had_submitted_is_followed_by_the_next_call(
    folder: Path, tiny_llama: Path, slurm: dict[str, str]
) -> None:
    place, words = folder / "slurm", arguments(tiny_llama, *SLURM, "--label", "full")
    with started(folder, slurm, *words) as first:
        wait_until(lambda: (place / "100.job").exists() and slurm_programs.state_of(place, "100") == "RUNNING")
        (place / "hold").touch()
        wait_until(lambda: bool(list((folder / "results/records/.slurm/submissions").glob("*.json"))))
        first.kill()
    with started(folder, slurm, *words) as second:
        wait_until(lambda: len(slurm_programs.jobs(place)) == 3)
        (place / "hold").unlink()
        said, _ = second.communicate(timeout=300)
    assert second.returncode == 0, said
    scripts = [job["script"] for job in slurm_programs.jobs(place).values()]
    assert ["smollm2-135m/full/1" in script for script in scripts] == [False, True, False]
    assert outcomes(folder) == Counter({("full", "ok"): 1})


@pytest.mark.parametrize(
    ("fate", "status", "said"),
    [
        ("OUT_OF_MEMORY", "failed", "its job 101 ran out of host memory: ask for more with --slurm mem_gb=N"),
        ("TIMEOUT", "interrupted", "interrupted"),  # it was told first, and left its own word
    ],
)
def test_how_slurm_ends_a_job_is_recorded(
    folder: Path, tiny_llama: Path, slurm: dict[str, str], fate: str, status: str, said: str
) -> None:
    place = folder / "slurm"
    (folder / "tiny.toml").write_text(RANDOM.replace("num_steps = 6", "num_steps = 100000"))
    with started(folder, slurm, *arguments(tiny_llama, *SLURM, "--label", "full")) as run:
        wait_until(lambda: len(slurm_programs.jobs(place)) == 1)
        wait_until(lambda: slurm_programs.state_of(place, "100") == "RUNNING")
        (place / "fate").write_text(fate)
        told, _ = run.communicate(timeout=300)
    assert run.returncode == 1, told
    (record,) = Store(folder / "results/records").read().records
    assert (record.status, record.reason) == (status, said)


def test_a_preempted_job_that_begins_anew_ends_its_run(folder: Path, tiny_llama: Path, slurm: dict[str, str]) -> None:
    place = folder / "slurm"
    (folder / "tiny.toml").write_text(RANDOM.replace("num_steps = 6", "num_steps = 800"))
    words = arguments(tiny_llama, *SLURM, "--label", "full", "--checkpoint-every", "50")
    with started(folder, slurm, *words) as run:
        wait_until(lambda: len(slurm_programs.jobs(place)) == 1)
        wait_until(lambda: slurm_programs.state_of(place, "100") == "RUNNING")
        (place / "fate").write_text("REQUEUED")
        told, _ = run.communicate(timeout=200)
    assert run.returncode == 0, told
    assert outcomes(folder) == Counter({("full", "interrupted"): 1, ("full", "ok"): 1})
    assert slurm_programs.jobs(place)["101"]["requeued"] == 1


def test_ctrl_c_cancels_the_jobs_records_what_ran_and_leaves_what_was_queued(
    folder: Path, tiny_llama: Path, slurm: dict[str, str]
) -> None:
    place = folder / "slurm"
    (folder / "tiny.toml").write_text(RANDOM.replace("num_steps = 6", "num_steps = 100000"))
    words = arguments(tiny_llama, *SLURM, "--label", "full", "--label", "lisa")
    with started(folder, slurm, *words) as run:
        wait_until(lambda: len(slurm_programs.jobs(place)) == 3)
        wait_until(lambda: all(slurm_programs.state_of(place, job) == "RUNNING" for job in ("101", "102")))
        wait_until(lambda: any(is_child(one) for one in slurm_programs.processes("101")))
        time.sleep(3)
        run.send_signal(signal.SIGINT)
        told, _ = run.communicate(timeout=300)
    assert run.returncode == 130, told
    found = outcomes(folder)
    assert {status for _, status in found} == {"interrupted"} and sum(found.values()) >= 1
    assert {job["state"] for number, job in slurm_programs.jobs(place).items() if number != "100"} == {"CANCELLED by 0"}
    assert not any(slurm_programs.processes(job) for job in ("101", "102"))
    assert not list((folder / "results/records/.claims").glob("*.lease"))


def is_child(process: Any) -> bool:
    """Return whether a process is a run's child."""
    import psutil

    try:
        return "harness.runs.child" in " ".join(process.cmdline())
    except psutil.Error:
        return False
