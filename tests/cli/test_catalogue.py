"""Base models and data sets of the user's own, through the real command: in the suite's file, and in a catalogue."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.assets.cache import file_checksum, folder_checksum
from harness.record import Record
from harness.store import Store
from tests.cli.conftest import SUITE, called, command

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prepared")]

OWN = """
[base_models.my-llama]
architecture = "LlamaForCausalLM"
folder = "models/tiny"
[datasets.my-rows]
layout = "questions"
file = "rows.jsonl"
"""
SMALL = (
    SUITE[: SUITE.index("[settings.full]")]
    .replace('models = ["smollm2-135m"]', 'models = ["my-llama"]')
    .replace('"base", "full", "lora", "galore", "lisa", "owlore"', '"full"')
    .replace('data = "packaged-commonsense"', 'data = "my-rows"')
)


@pytest.fixture
def folder(tmp_path: Path, tiny_llama: Path) -> Path:
    """A folder with a model, rows, and a folder beside it to start commands in."""
    suites = tmp_path / "suites"
    suites.mkdir()
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(tiny_llama, suites / "models" / "tiny")
    rows = [{"question": f"What is {i} plus {i}?", "answer": str(2 * i)} for i in range(60)]
    (suites / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def record_in(folder: Path) -> Record:
    (record,) = Store(folder / "elsewhere" / "results" / "records").read().records
    return record


def test_a_suite_brings_its_own_model_and_rows(folder: Path) -> None:
    (folder / "suites" / "mine.toml").write_text(SMALL + OWN)
    arguments = ("--suite", "../suites/mine.toml", "--offline")
    planned = command("plan", *arguments[:2], "--json", cwd=folder / "elsewhere")
    assert planned.returncode == 0, planned.stderr
    prepared = command("prepare", *arguments, cwd=folder / "elsewhere")
    assert prepared.returncode == 0, prepared.stderr
    done = command("run", *arguments, cwd=folder / "elsewhere")
    assert done.returncode == 0, done.stderr
    record = record_in(folder)
    suites = folder / "suites"
    assert record.status == "ok"
    checksum = folder_checksum(suites / "models" / "tiny")
    assert record.spec.model == {"name": "my-llama", "source": "folder", "checksum": checksum}
    assert record.spec.sources["train"] == f"file:{file_checksum(suites / 'rows.jsonl')}:questions"
    again = command("run", *arguments, cwd=folder / "elsewhere")
    assert "1 of 1 runs skipped" in again.stdout
    shown = command("show-data", *arguments, "--n", "1", cwd=folder / "elsewhere")
    assert "What is" in shown.stdout
    assert command("report", *arguments[:2], "--format", "csv", cwd=folder / "elsewhere").returncode == 0


def test_a_catalogue_of_ones_own_serves_every_suite_and_asks_the_same(folder: Path) -> None:
    suites = folder / "suites"
    (suites / "plain.toml").write_text(SMALL)
    (suites / "names.toml").write_text(OWN)
    named = ("--catalogue", "../suites/names.toml")
    listed = command("list", "models", *named, "--json", cwd=folder / "elsewhere")
    assert {"model": "my-llama", "source": f"folder:{suites / 'models' / 'tiny'}"}.items() <= next(
        row.items() for row in json.loads(listed.stdout) if row["model"] == "my-llama"
    )
    (suites / "mine.toml").write_text(SMALL + OWN)
    ids = []
    for arguments in (("../suites/mine.toml",), ("../suites/plain.toml", *named)):
        status = command("status", "--suite", *arguments, "--json", cwd=folder / "elsewhere")
        assert status.returncode == 0, status.stderr
        ids.append([row["run_id"] for row in json.loads(status.stdout)])
    assert ids[0] == ids[1]
    without = command("run", "--suite", "../suites/plain.toml", "--dry-run", cwd=folder / "elsewhere")
    assert without.returncode == 2
    assert "there is no model 'my-llama'" in without.stderr
    kept = command(
        "run", "--suite", "../suites/plain.toml", *named, "--keep-weights", "--offline", cwd=folder / "elsewhere"
    )
    assert kept.returncode == 0, kept.stderr
    scored = ("evaluate", record_in(folder).run_id, "--benchmark", "boolq", "--limit", "2", "--offline")
    nameless = command(*scored, cwd=folder / "elsewhere")
    assert nameless.returncode == 0, "the record says where the model's weights lie, and its parts"
    done = command(*scored, *named, cwd=folder / "elsewhere")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [("run", "--dry-run"), ("run", "--offline"), ("prepare", "--offline")])
def test_a_task_without_packaged_rows_is_refused_before_anything_is_trained(
    folder: Path, arguments: tuple[str, ...]
) -> None:
    suite = (SMALL + OWN).replace('"piqa", "winogrande"', '"piqa", "pubmedqa"').replace("packaged-scored", "packaged")
    (folder / "suites" / "mine.toml").write_text(suite)
    done = called(arguments[0], "--suite", "../suites/mine.toml", *arguments[1:], cwd=folder / "elsewhere")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "[evaluation]: there are no packaged rows of task 'pubmedqa'; set rows = 'hub'" in done.stderr
    assert not (folder / "elsewhere" / "results").exists()
