"""Tuning through the real command: trials apart, the choice in a file, runs that take it, a report that marks it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from harness.store import Store
from tests.cli.conftest import SUITE, command

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prepared")]

TUNED = (
    SUITE.replace('labels = ["base", "full", "lora", "galore", "lisa", "owlore"]', 'labels = ["base", "full", "lora"]')
    .replace("seeds = [1]", 'seeds = [1]\ntuned = "tiny.tuned.toml"')
    .partition("[settings.galore]")[0]
    + "[tune]\nlearning_rates = [1e-4, 3e-3]\nseeds = [11]\nmax_steps = 4\n"
)


def test_tune_run_report(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TUNED)
    chosen = ("--suite", "tiny.toml", "--model", f"smollm2-135m={tiny_llama}")
    early = command("run", *chosen, "--offline", cwd=tmp_path)
    assert early.returncode == 2
    assert "takes its learning rates from tiny.tuned.toml, which is not there: run harness tune" in early.stderr
    dry = command("tune", *chosen, "--dry-run", cwd=tmp_path)
    assert "4 runs of suite 'tiny-tune'" in dry.stdout
    assert not (tmp_path / "tiny.tuned.toml").exists()

    first = command("tune", *chosen, "--label", "full", "--offline", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    second = command("tune", *chosen, "--offline", cwd=tmp_path, environment={"COLUMNS": "200"})
    assert second.returncode == 0, second.stderr
    assert "2 of 4 runs skipped: their outcome is recorded" in second.stdout
    assert "of the grid: a better one may lie outside" in second.stdout
    trials = Store(tmp_path / "results" / "records").read("tiny-tune").records
    assert [record.status for record in trials] == ["ok"] * 4
    assert all(not record.scores and record.spec.max_steps == 4 for record in trials)
    choices = {c["label"]: c for c in tomllib.loads((tmp_path / "tiny.tuned.toml").read_text())["choices"]}
    assert {trial["run_id"] for c in choices.values() for trial in c["trials"]} == {r.run_id for r in trials}
    for choice in choices.values():
        losses = {trial["learning_rate"]: trial["validation_loss"] for trial in choice["trials"]}
        assert choice["learning_rate"] == min(losses, key=losses.__getitem__)

    ran = command("run", *chosen, "--offline", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    for record in Store(tmp_path / "results" / "records").read("tiny").records:
        if record.spec.train is not None:
            assert record.spec.train.learning_rate == choices[record.spec.label]["learning_rate"]
    report = command("report", "--suite", "tiny.toml", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert "full ‡" in report.stdout
    assert "base ‡" not in report.stdout
    assert "## Learning rates" in (tmp_path / "report-tiny" / "report.md").read_text()
