"""When a Slurm job is over, how that is recorded, and what a call leaves of the notes of an earlier one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.runs import slurm_jobs
from harness.runs.claims import Claims
from harness.runs.slurm import SlurmCluster
from harness.runs.slurm_files import Answer, SlurmFiles, Submission
from harness.runs.slurm_jobs import Followed
from harness.runs.slurm_settings import slurm_settings


class Job:
    """As much of a job as is asked for."""

    job_id = "12"

    def __init__(self, state: str = "RUNNING", log: str | None = None) -> None:
        self.state, self.log, self.cancelled = state, log, 0
        self.paths = SimpleNamespace()

    def get_info(self, mode: str = "force") -> dict[str, str]:
        return {}

    def cancel(self, check: bool = True) -> None:
        self.cancelled += 1

    def stderr(self) -> str | None:
        return self.log


@pytest.mark.parametrize("state", ["PENDING", "CONFIGURING", "SUSPENDED", "COMPLETING", "REQUEUED", "UNKNOWN", ""])
def test_a_job_that_may_still_do_something_is_not_over(state: str) -> None:
    assert not Followed(Job(state)).is_over(0.0)


@pytest.mark.parametrize(
    ("state", "status", "reason"),
    [
        ("OUT_OF_MEMORY", "failed", "its job 12 ran out of host memory: ask for more with --slurm mem_gb=N"),
        ("TIMEOUT", "timed_out", "its job 12 reached its time limit: --slurm timeout_min=N sets it"),
        ("CANCELLED by 1000", "interrupted", "its job 12 was cancelled"),
        ("NODE_FAIL", "failed", "its job 12 lost its node"),
        ("FAILED", "failed", "its job 12 ended (FAILED) and left no record"),
        ("COMPLETED", "failed", "its job 12 ended (COMPLETED) and left no record"),
    ],
)
def test_how_a_job_ended_that_left_no_record(state: str, status: str, reason: str) -> None:
    one = Followed(Job(state))
    assert one.is_over(0.0)
    assert one.ending == (status, reason)


def test_what_this_call_cancelled_was_interrupted_whatever_slurm_says() -> None:
    one = Followed(Job("RUNNING"))
    one.cancel()
    one.job.state = "FAILED"  # type: ignore[misc]
    assert (one.ending, one.job.cancelled) == (("interrupted", "interrupted"), 1)  # type: ignore[attr-defined]


def test_a_preempted_job_is_over_once_it_has_not_been_queued_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(slurm_jobs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    job = Job("PREEMPTED")
    one = Followed(job)
    assert not one.is_over(0.0)
    now[0] += 100
    job.state = "PENDING"
    assert not one.is_over(0.0)
    job.state = "PREEMPTED"
    assert not one.is_over(0.0)
    now[0] += slurm_jobs.PREEMPTED_SECONDS
    assert one.is_over(0.0)


def test_what_a_job_wrote_last_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(slurm_jobs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    one = Followed(Job("COMPLETED"))
    assert not one.is_over(15.0)
    now[0] += 15
    assert one.is_over(15.0)


def test_the_log_of_a_job_is_cut_to_its_last_lines() -> None:
    tail = Followed(Job(log="".join(f"line {i}\n" for i in range(1000)))).log_tail
    assert tail is not None and tail.endswith("line 999\n") and tail.count("\n") == slurm_jobs.LOG_LINES
    assert Followed(Job()).log_tail is None


def test_notes_of_jobs_that_have_answered_go_and_those_of_others_stay(tmp_path: Path) -> None:
    files = SlurmFiles(tmp_path)
    files.make()
    for name in ("answered", "waits", "followed", "preempted"):
        files.note(name, Submission(job="1", cluster="slurm", run_id="r", uuid=name, submitted_at=datetime.now(UTC)))
    for name in ("answered", "followed", "preempted"):
        said = Answer(uuid=None, interrupted=name == "preempted")
        files.answer_file(name).write_text(said.model_dump_json())
    asked: dict[str, Any] = {"cpus": 1, "num_ranks": 1, "work": print, "told": print}
    submitit = SimpleNamespace(AutoExecutor=lambda **_: None)
    cluster = SlurmCluster(submitit, slurm_settings(["timeout_min=1"], 1), tmp_path, **asked)
    with Claims(files.folder) as others, Claims(files.folder) as mine:
        assert others.take("followed", "w")
        cluster._sweep(mine)
    assert set(files.submissions()) == {"waits", "followed", "preempted"}
    assert not files.answer_file("answered").exists()


def test_what_is_pickled_there_is_the_users_alone(tmp_path: Path) -> None:
    files = SlurmFiles(tmp_path)
    files.make()
    assert files.jobs.stat().st_mode & 0o077 == 0
