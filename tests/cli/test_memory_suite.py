"""Suites of memory and speed through the real command: random weights, no scores, no cache; and budgets of seconds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.record import Record
from harness.store import Store
from tests.cli.conftest import RANDOM, command

pytestmark = pytest.mark.slow


def environment(folder: Path) -> dict[str, str]:
    """Return an environment whose cache is empty: nothing prepared, nothing downloaded."""
    return {"HARNESS_CACHE": str(folder / "cache")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    (folder / "tiny.toml").write_text(RANDOM)
    return folder


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> str:
    return f"smollm2-135m={tiny_llama}"


@pytest.fixture(scope="module")
def ran(folder: Path, model: str) -> subprocess.CompletedProcess[str]:
    arguments = ("run", "--suite", "tiny.toml", "--model", model, "--offline")
    return command(*arguments, cwd=folder, environment=environment(folder))


@pytest.fixture(scope="module")
def records(ran: subprocess.CompletedProcess[str], folder: Path) -> dict[str, Record]:
    assert ran.returncode == 0, ran.stderr
    return {record.spec.label: record for record in Store(folder / "results" / "records").read("tiny").records}


def test_random_weights_train_without_a_cache_and_say_what_they_are(records: dict[str, Record]) -> None:
    assert {label: record.status for label, record in records.items()} == dict.fromkeys(
        ["full", "lisa", "galore"], "ok"
    )
    for record in records.values():
        assert record.spec.model["source"] == "random"
        assert record.spec.sources == {"train": "drawn:uniform:1024"}
        assert record.scores == ()
        assert record.items is None
        assert "evaluate" not in [phase.name for phase in record.phases]
        assert record.train is not None
        assert record.train.curve.tokens == (32,) * 6
        assert record.train.curve.trained_tokens == (30,) * 6


def test_all_labels_of_a_seed_start_from_the_same_weights(records: dict[str, Record]) -> None:
    starts = {record.proof.block_checksums_before for record in records.values() if record.proof}
    assert len(starts) == 1


def test_the_report_has_cost_and_no_empty_scores(folder: Path, model: str, records: dict[str, Record]) -> None:
    done = command("report", "--suite", "tiny.toml", "--out", "report", cwd=folder)
    assert done.returncode == 0, done.stderr
    text = (folder / "report" / "report.md").read_text()
    for absent in ("average", "not scored", "Scores", "accuracy", "tasks ="):
        assert absent not in text, absent
        assert absent not in done.stdout, absent
    for label in records:
        assert f"| {label} " in text
    assert "random weights" in text
    assert "tokens a second" in text
    status = command("status", "--suite", "tiny.toml", "--model", model, cwd=folder)
    assert "3 of 3 runs done" in status.stdout


def test_a_budget_cuts_a_suite_and_the_same_command_goes_on(tmp_path: Path, model: str) -> None:
    long = RANDOM[: RANDOM.index("[settings.galore]")] + "num_steps = 100000\n"
    (tmp_path / "tiny.toml").write_text(long.replace('"full", "lisa", "galore"', '"lisa", "full"'))
    arguments = ("run", "--suite", "tiny.toml", "--model", model, "--offline", "--checkpoint-every", "10")
    store = Store(tmp_path / "results" / "records")
    for _ in range(8):  # a call on a busy machine may spend its budget before training begins
        done = command(*arguments, "--budget-seconds", "20", cwd=tmp_path)
        assert done.returncode == 3, done.stderr
        assert "the budget has ended: 2 runs are still to do; the same command goes on with the rest" in done.stdout
        assert "failed" not in done.stdout
        assert "Traceback" not in done.stderr
        trained = [record for record in store.read("tiny").records if record.train is not None]
        if len(trained) == 2 and trained[0].train is not None and trained[0].train.num_steps >= 10:
            break
    before, after = trained
    for record in (before, after):
        assert (record.spec.label, record.status) == ("lisa", "interrupted")
        assert record.reason == "interrupted in phase train: the budget of seconds had ended"
    assert after.train is not None
    assert before.train is not None
    (resumed,) = after.train.resumed_at_steps
    assert 10 <= resumed <= before.train.num_steps
    rest = command(*arguments, "--label", "full", "--budget-seconds", "500", cwd=tmp_path)
    assert rest.returncode == 0, rest.stderr


def test_a_budget_that_is_over_at_once_starts_nothing(tmp_path: Path, model: str) -> None:
    (tmp_path / "tiny.toml").write_text(RANDOM)
    arguments = ("run", "--suite", "tiny.toml", "--model", model, "--offline", "--budget-seconds", "0.001")
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "nothing run" in done.stdout
    assert "3 runs are still to do" in done.stdout
    assert not list((tmp_path / "results").rglob("*.jsonl"))
