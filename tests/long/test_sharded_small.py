"""The packaged suite for several devices, run whole: the embedded model on two processes is that on one."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.record import Record
from harness.store import Store
from tests.cli.conftest import command

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]


def losses(record: Record) -> tuple[object, ...]:
    assert record.train is not None
    return record.train.curve.loss, record.train.loss_first, record.train.loss_last


def checksums(record: Record) -> tuple[tuple[str, ...] | dict[str, str], ...]:
    proof = record.proof
    assert proof is not None and len(proof.block_checksums_after) == 30
    return (
        *(proof.block_checksums_before, proof.block_checksums_after),
        *(proof.other_checksums_before, proof.other_checksums_after),
    )


def test_full_fine_tuning_of_the_embedded_model_by_two_processes_is_that_by_one(tmp_path: Path) -> None:
    for number in ("2", "1"):
        done = command(
            *("run", "--suite", "sharded-small", "--label", "full", "--offline", "--gpus-per-run", number),
            cwd=tmp_path,
            timeout=1000,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    two, one = Store(tmp_path / "results" / "records").read("sharded-small").records
    assert (two.environment.num_ranks, one.environment.num_ranks) == (2, 1)
    assert two.run_id == one.run_id
    assert losses(two) == losses(one)
    assert checksums(two) == checksums(one)
    before, after = checksums(one)[:2]
    assert all(old != new for old, new in zip(before, after, strict=True)), "every block has moved"
    assert [(score.task, score.metric, score.value) for score in two.scores] == [
        (score.task, score.metric, score.value) for score in one.scores
    ]
