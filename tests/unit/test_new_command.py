"""``harness new`` writes what runs as it is, takes good names alone, and never writes over anything."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from harness.catalogue.tasks import TaskPlaces
from harness.cli import main
from harness.evaluation.own_tasks import OwnTasks
from harness.expansion import load_suite
from harness.method import METHODS
from harness.suite import labels_of
from tests.plug_ins import install, look_again


def test_a_new_suite_is_valid_by_the_harness_and_by_the_schema_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "suite", "mine", "--out", str(tmp_path / "a b")]) == 0
    file = tmp_path / "a b" / "mine.toml"
    suite = load_suite(str(file))
    assert (suite.name, labels_of(suite, "smollm2-135m")) == ("mine", ("base", "lora", "galore"))
    schema = json.loads((tmp_path / "a b" / "suite.schema.json").read_text())
    assert list(Draft7Validator(schema).iter_errors(tomllib.loads(file.read_text()))) == []
    assert file.read_text().startswith("#:schema ./suite.schema.json\n")
    said = capsys.readouterr().out
    assert f"harness check '{file}'" in said and f"harness run --suite '{file}'" in said


def test_every_alternative_of_a_new_suite_is_valid_once_it_is_uncommented(tmp_path: Path) -> None:
    """What stands in comments is read as well: tables and keys are taken in, one after the other."""
    main(["new", "suite", "mine", "--out", str(tmp_path)])
    main(["new", "task", "my-task", "--out", str(tmp_path)])
    file = tmp_path / "mine.toml"
    lines = []
    for line in file.read_text().splitlines():
        key = line.removeprefix("# ").split(" ", 1)
        is_key = line.startswith("# ") and len(key) == 2 and key[1].startswith("= ")
        is_table = line.startswith("# [") and line.endswith("]")
        lines.append(line.removeprefix("# ") if is_key or is_table else line)
    text = "\n".join(lines).replace(
        'labels = ["base", "lora", "galore"]', 'labels = ["base", "lora", "galore", "lora-small"]'
    )
    text = text.replace("hub_id = ", "# hub_id = ")
    file.write_text(text)
    suite = load_suite(str(file))
    assert set(suite.base_models) == {"my-model"} and set(suite.datasets) == {"my-rows"}
    assert set(suite.sweep) == {"lora"} and set(suite.methods) == {"lora-small"}
    assert suite.tasks.include_path == (tmp_path / "my-task",)
    assert suite.train["gradient_checkpointing"] is True


def test_a_new_method_is_a_distribution_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    METHODS.names()
    assert main(["new", "method", "fast-sign", "--out", str(tmp_path)]) == 0
    project = tomllib.loads((tmp_path / "fast-sign" / "pyproject.toml").read_text())
    ((name, value),) = project["project"]["entry-points"]["finetune_harness.methods"].items()
    assert (name, value) == ("fast-sign", "fast_sign_method:FastSignMethod")
    text = (tmp_path / "fast-sign" / "fast_sign_method.py").read_text()
    assert 30 <= len(text.splitlines()) <= 60
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    install(tmp_path / "site", "fast-sign", "0.1.0", "fast_sign_method.py", text, entry=f"{name} = {value}")
    look_again(monkeypatch, "fast_sign_method")
    assert METHODS.get("fast-sign").Config().train_embedding is True
    test = (tmp_path / "fast-sign" / "test_fast_sign_method.py").read_text()
    assert 'check_method("fast-sign", only=[check])' in test
    assert {node.module for node in ast.walk(ast.parse(test)) if isinstance(node, ast.ImportFrom)} == {
        "harness.checking"
    }


@pytest.mark.slow
def test_a_new_method_is_installed_by_pip_and_passes_its_own_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_again(monkeypatch, "fast_sign_method")  # which the test above has imported
    assert main(["new", "method", "fast-sign", "--out", str(tmp_path)]) == 0
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    unbound = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}  # tox's own
    installed = subprocess.run(
        [*pip, "--target", str(tmp_path / "site"), str(tmp_path / "fast-sign")],
        env=unbound,
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr[-3000:]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_fast_sign_method.py"],
        cwd=tmp_path / "fast-sign",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "9 passed" in done.stdout


def test_a_new_task_is_one_that_can_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "task", "animals", "--out", str(tmp_path)]) == 0
    tasks = OwnTasks(TaskPlaces(include_path=(tmp_path / "animals",)))
    task = tasks.task("animals")
    assert task.config["output_type"] == "multiple_choice" and task.files
    rows = [json.loads(line) for line in (tmp_path / "animals" / "animals.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert all(0 <= row["answer"] < len(row["choices"]) == 3 for row in rows)
    assert len({row["answer"] for row in rows}) == 3
    commands = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  harness ")]
    assert main(commands[1].split()[1:]) == 0
    assert "animals" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["suite", "method", "task"])
@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "-x", "a b", "x\n", "x\x1b[31m", "é", "a=b", "n" * 5000])
def test_what_is_no_name_is_one_sentence(
    kind: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["new", "--out", str(tmp_path), kind, *(["--"] if name.startswith("-") else []), name])
    except SystemExit as error:  # argparse's own answer to what looks like an option
        code = int(str(error.code))
    said = capsys.readouterr().err
    assert code == 2 and len(said.splitlines()) == 1 and "\x1b" not in said and len(said) < 400
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("suite", "quickstart", "that is a packaged file's name"),
        ("suite", "models", "that is a packaged file's name"),
        ("suite", "mine.tuned", "hold learning rates that harness tune chose"),
        ("method", "full", "there is a method or label of that name already"),
        ("method", "owlore-code", "there is a method or label of that name already"),
        ("method", "Big", "expected small letters"),
        ("task", "boolq", "lm-eval has a task or group of that name"),
        ("task", "mmlu", "lm-eval has a task or group of that name"),
        ("task", "a.b", "expected letters"),
    ],
)
def test_a_name_that_is_taken_is_refused(
    kind: str, name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", kind, name, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "place"), [("suite", "x1.toml"), ("method", "x1"), ("task", "x1")])
@pytest.mark.parametrize("what", ["file", "folder", "broken link"])
def test_nothing_is_written_over(
    kind: str, place: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / place
    if what == "file":
        there.write_text("mine")
    elif what == "folder":
        there.mkdir()
    else:
        there.symlink_to(tmp_path / "gone")
    assert main(["new", kind, "x1", "--out", str(tmp_path)]) == 2
    assert f"{there} is there already and stays as it is" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [place]
    assert what != "file" or there.read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["new", "task", "x1", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written: " in capsys.readouterr().err


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "peft", "datasets"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from harness.cli import main
for kind in ("suite", "method", "task"):
    assert main(["new", kind, f"my-{kind}", "--out", sys.argv[1]]) == 0
assert main(["check", sys.argv[1] + "/my-suite.toml"]) == 0
assert main(["check", "--schema", "suite"]) == 0
"""


def test_it_works_without_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", BLOCKED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
