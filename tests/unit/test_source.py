"""The checksum of the harness's own source is of what it says, not of how it is laid out."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import source
from harness.source import RUN_ROOTS, checksum_of, closure, closure_checksum, module_files
from tests.records import ENVIRONMENT


def laid_out(harness: Path, methods: Path, suites: Path, published: Path) -> dict[str, Path]:
    texts = {harness / "a.py": "a", methods / "m.py": "m", suites / "s.toml": "s", published / "__init__.py": "p"}
    for file, text in texts.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return {"harness": harness, "harness.methods": methods, "harness.suites": suites}


def test_a_checkout_and_an_installation_have_one_checksum(tmp_path: Path) -> None:
    checkout, site = tmp_path / "checkout", tmp_path / "site" / "harness"
    apart = laid_out(checkout / "harness", checkout / "methods", checkout / "suites", checkout / "results" / "paper")
    inside = laid_out(site, site / "methods", site / "suites", site / "published")
    assert checksum_of(apart) == checksum_of(inside)
    (site / "methods" / "m.py").write_text("another")
    assert checksum_of(apart) != checksum_of(inside)


LOADS = """
import importlib, sys
import harness.runs.child, harness.engine.runner, harness.evaluation.scoring, harness.evaluation.mt_bench
from harness.method import METHODS
METHODS.names()
print(*(name for name in sys.modules if name.partition(".")[0] == "harness"))
"""


@pytest.fixture(scope="module")
def files() -> dict[str, Path]:
    return module_files(source._packages())


def test_every_module_that_a_run_loads_is_in_its_checksum(files: dict[str, Path]) -> None:
    done = subprocess.run([sys.executable, "-P", "-c", LOADS], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"harness.engine.training", "harness.methods.galore", "harness.evaluation.scoring"} <= loaded
    assert loaded <= closure(files, RUN_ROOTS)


def test_every_import_is_found_wherever_it_stands(files: dict[str, Path]) -> None:
    found = closure(files, RUN_ROOTS)
    assert {"harness.data.packaged", "harness.assets.mt_bench", "harness.assets.gguf", "harness.seams"} & found == {
        "harness.data.packaged",
        "harness.assets.mt_bench",
        "harness.assets.gguf",
    }
    assert not [name for name in found if name.startswith(("harness.report", "harness.cli", "harness.commands"))]
    assert not any(re.search(r"^\s*from \.", file.read_text(), re.MULTILINE) for file in files.values())


@pytest.fixture
def copied(tmp_path: Path) -> dict[str, Path]:
    packages = {}
    for package, folder in source._packages().items():
        packages[package] = tmp_path / package
        shutil.copytree(folder, packages[package], ignore=shutil.ignore_patterns("__pycache__"))
    return packages


@pytest.mark.parametrize(
    ("file", "run", "training"),
    [
        ("harness/report/units.py", False, False),
        ("harness/cli/__init__.py", False, False),
        ("harness/commands/show.py", False, False),
        ("harness/planning/predict.py", False, False),
        ("harness.suites/quickstart.toml", False, False),
        ("harness.suites/datasets.toml", False, False),
        ("harness/evaluation/language_model.py", True, False),
        ("harness/evaluation/groups.py", True, False),
        ("harness/engine/stepping.py", True, True),
        ("harness/data/wording.py", True, True),
        ("harness/tensors/seeding.py", True, True),
        ("harness.methods/_projection.py", True, True),
        ("harness.methods/lisa.py", True, True),
        ("harness/assets/gguf.py", True, True),
    ],
)
def test_an_edit_makes_runs_anew_only_where_a_run_goes(
    copied: dict[str, Path], file: str, run: bool, training: bool
) -> None:
    def checksums() -> tuple[str, str]:
        found = module_files(copied)
        return closure_checksum(found, RUN_ROOTS), closure_checksum(found, RUN_ROOTS, without=source.EVALUATION)

    before, whole = checksums(), checksum_of(copied)
    package, _, path = file.partition("/")
    with (copied[package] / path).open("a") as text:
        text.write("# more\n")
    after = checksums()
    assert (before[0] != after[0], before[1] != after[1]) == (run, training)
    assert checksum_of(copied) != whole


def test_an_edit_of_what_scores_blocks_is_in_the_key_of_kept_scores(files: dict[str, Path]) -> None:
    found = closure(files, source.BLOCK_SCORE_ROOTS)
    assert {
        "harness.engine.block_scores",
        "harness.data.examples",
        "harness.data.rows",
        "harness.tensors.loading",
    } <= found


def test_training_is_the_same_where_only_the_evaluation_is_another() -> None:
    told = ENVIRONMENT.model_copy(update={"training_checksum": "a" * 64})
    assert told.environment_id == ENVIRONMENT.environment_id, "an old record keeps its environment"
    assert ENVIRONMENT.training_id == ENVIRONMENT.environment_id
    other = told.model_copy(update={"source_checksum": "f" * 64, "packages": {**told.packages, "lm-eval": "0.5"}})
    assert other.environment_id != told.environment_id
    assert other.training_id == told.training_id
    for change in ({"training_checksum": "b" * 64}, {"num_threads": 7}, {"packages": {"torch": "2.14.0"}}):
        assert told.model_copy(update=change).training_id != told.training_id
