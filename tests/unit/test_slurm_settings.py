"""What is asked of Slurm: every key of submitit's has its place here, and a wrong one is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.runs import slurm
from harness.runs.slurm_settings import KINDS, OURS, slurm_settings

LIMIT = "timeout_min=60"


def test_every_parameter_of_submitit_is_the_users_or_the_harnesss() -> None:
    pytest.importorskip("submitit")
    from submitit.auto.auto import AutoExecutor
    from submitit.slurm.slurm import _get_default_parameters

    theirs = set(_get_default_parameters()) | set(AutoExecutor._typed_parameters())
    assert set(KINDS) | set(OURS) == theirs | {"map_count"}
    assert not set(KINDS) & set(OURS)


@pytest.mark.parametrize(
    ("given", "ranks", "gpus"),
    [((), 1, 1), ((), 4, 4), (("gpus_per_node=0",), 4, 0), (("gres=gpu:a100:4",), 4, None), (("cluster=local",), 2, 0)],
)
def test_a_run_has_as_many_gpus_as_it_takes(given: tuple[str, ...], ranks: int, gpus: int | None) -> None:
    asked = slurm_settings((LIMIT, *given), ranks)
    assert asked.gpus == gpus
    assert asked.parameters("run", 1).get("gpus_per_node") == gpus


def test_a_job_ends_its_run_before_slurm_ends_the_job() -> None:
    assert slurm_settings(["timeout_min=60"], 1).seconds_of_a_run == 60 * 60 - 90
    assert slurm_settings(["timeout_min=1"], 1).seconds_of_a_run == 54


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), r"needs the time limit of a run's job: --slurm timeout_min=N"),
        (("partition",), "--slurm partition: expected KEY=VALUE, such as partition=gpu"),
        (("partition=",), "expected KEY=VALUE"),
        (("partitoin=gpu",), "submitit has no such parameter; did you mean 'partition'"),
        (("partition=a", "partition=b"), "--slurm partition is given twice"),
        (("timeout_min=soon",), "--slurm timeout_min=soon: expected a whole number of at least 1"),
        (("timeout_min=0",), "expected a whole number of at least 1"),
        (("mem_gb=nan",), "--slurm mem_gb=nan: expected a number above 0"),
        (("gpus_per_node=-1",), "expected a number of GPUs"),
        ((LIMIT, "gpus_per_node=8"), r"--slurm gpus_per_node=8: a run takes 2 \(gpus_per_run\), or 0 on a CPU"),
        (("exclusive=yes",), "expected true or false"),
        (("cluster=debug",), "expected slurm, or local to try it on this machine"),
        (("nodes=2",), "--slurm nodes cannot be set: a run stays on one node"),
        (("time=60",), r"--slurm time cannot be set: say timeout_min=N"),
        (("sbatch.output=x",), "--slurm sbatch.output cannot be set: the harness sets it"),
        (("sbatch.partition=x",), "cannot be set: say partition=x"),
        (("sbatch.=x",), "such as sbatch.reservation=NAME"),
    ],
)
def test_a_wrong_setting_is_one_sentence(given: tuple[str, ...], said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        slurm_settings(given, 2)


def test_without_submitit_the_sentence_has_the_line_of_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    with pytest.raises(
        HarnessError, match=r"needs submitit: pip install submitit, in a checkout pip install '\.\[slurm\]'"
    ):
        _cluster(tmp_path, "cluster=local")


def test_without_slurm_that_is_said_and_what_there_is_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HarnessError, match=r"sbatch, srun, scancel, sacct not found: .* --slurm cluster=local"):
        _cluster(tmp_path)


def test_a_slurm_that_tells_of_no_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    for name in slurm.PROGRAMS:
        (tmp_path / name).write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HarnessError, match="how jobs end, says: Slurm accounting storage is disabled"):
        _cluster(tmp_path)


def _cluster(results: Path, *given: str) -> Any:
    settings = slurm_settings((LIMIT, *given), 1)
    return slurm.slurm_cluster(settings, results, cpus=1, num_ranks=1, work=print, told=print)
