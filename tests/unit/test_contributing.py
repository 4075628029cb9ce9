"""What stands beside the code: the workflow, pre-commit, the citation, the commands that the documents name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import harness

ROOT = Path(__file__).parents[2]
COMMANDS = ["tox -e quickstart", "tox"]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    return f"{package}=={found[1]}"


def test_the_workflow_runs_the_two_commands_of_ci_run() -> None:
    ci_run = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in ci_run if line.startswith("tox")] == COMMANDS
    job = read(".github/workflows/ci.yml")["jobs"]["test"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["python -m pip install tox", *COMMANDS]


def test_the_workflow_tests_every_python_that_the_package_names() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
    named = [entry.rsplit(" ", 1)[-1] for entry in classifiers if re.search(r"Python :: 3\.\d+$", entry)]
    assert read(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"] == named


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_the_documents_name_the_two_commands(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert "python -m pip install tox" in text
    assert all(re.search(rf"^{command}\b", text, re.MULTILINE) or f"`{command}`" in text for command in COMMANDS)


def test_pre_commit_runs_the_pinned_ruff_and_mypy() -> None:
    hooks = {hook["id"]: hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}
    assert hooks["ruff-check"]["additional_dependencies"] == [pinned("ruff")]
    assert hooks["ruff-format"]["additional_dependencies"] == [pinned("ruff")]
    assert hooks["mypy"]["additional_dependencies"] == [pinned("tox")]
    assert hooks["mypy"]["entry"].endswith("-e types")


def test_no_document_and_no_message_installs_from_an_index_what_is_on_none() -> None:
    texts = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "harness").rglob("*.py"),
    ]
    assert len(texts) > 100
    for file in texts:
        assert "finetune-harness[" not in file.read_text(encoding="utf-8"), file


def test_every_extra_is_of_packages_that_the_harness_imports_and_documents_name_extras_that_there_are() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name != "dev"}
    modules = {
        "fschat": "fastchat",
        "ray": "ray",
        "nvidia-ml-py": "pynvml",
        "bitsandbytes": "bitsandbytes",
        "submitit": "submitit",
    }
    modules |= {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow-skinny": "mlflow", "trackio": "trackio"}
    sources = (*(ROOT / "harness").rglob("*.py"), *(ROOT / "methods").glob("*.py"))
    code = "".join(file.read_text(encoding="utf-8") for file in sources)
    for wanted in extras.values():
        for package in (re.split(r"[<>=~!\[; ]", entry)[0] for entry in wanted):
            assert re.search(rf"^\s*(import|from) {modules[package]}\b", code, re.MULTILINE), package
    named = set()
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for found in re.findall(r"'\.\[([a-z,-]+)\]'", file.read_text(encoding="utf-8")):
            named |= set(found.split(","))
    assert {"ray", "mt-bench", "quantized"} <= named <= set(extras)


def test_the_trackers_constraints_are_the_project_s_but_for_what_two_of_them_refuse() -> None:
    """mlflow-skinny 3.17 refuses cachetools 8, trackio 0.43 pillow 13; all else is pinned alike."""
    pinned = [
        dict(line.split("==") for line in (ROOT / file).read_text(encoding="utf-8").split())
        for file in ("constraints.txt", "tests/loggers/constraints.txt")
    ]
    assert {name for name, version in pinned[0].items() if pinned[1][name] != version} == {"cachetools", "pillow"}


def test_the_citation_is_of_this_version_and_license() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = read("CITATION.cff")
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert harness.__version__ == project["version"]
    assert citation["title"].startswith(project["name"])
    assert citation["authors"]


def test_every_planted_fault_stands_once_in_its_file() -> None:
    faults = tomllib.loads((ROOT / "tests" / "long" / "mutations.toml").read_text(encoding="utf-8"))["fault"]
    folders = {"harness/methods/": "methods/", "harness/suites/": "suites/"}
    stale = []
    for fault in faults:
        place = next((fault["file"].replace(a, b, 1) for a, b in folders.items() if fault["file"].startswith(a)), None)
        if (ROOT / (place or fault["file"])).read_text(encoding="utf-8").count(fault["old"]) != 1:
            stale.append(fault["id"])
    assert len(faults) > 400 and not stale
