"""The mutation check: faults planted one at a time in a copy of the package; the named tests must fail on each.

The faults are in ``mutations.toml``. A fault that survives is a finding: a test is missing. A fault whose old text does
not stand exactly once in its file is stale and fails too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[2]
PACKAGE = {"harness": "harness", "harness/methods": "methods", "harness/suites": "suites"}
"""Folders of the installed package and of the repository, as pyproject.toml maps them."""
TIMEOUT_SECONDS = 300
TESTS_FAILED = 1
"""Exit status of pytest; 2 to 5 are interrupts, its own errors, wrong usage and nothing collected."""


@dataclass(frozen=True)
class Fault:
    """One replacement of one text, and the tests that must notice it."""

    id: str
    says: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read_faults() -> list[Fault]:
    text = Path(__file__).with_name("mutations.toml").read_text(encoding="utf-8")
    return [Fault(**{**entry, "tests": tuple(entry["tests"])}) for entry in tomllib.loads(text)["fault"]]


FAULTS = read_faults()


class Copy:
    """The package under ``site`` and the tests under ``checkout``, where no folder called harness hides the package."""

    def __init__(self, folder: Path) -> None:
        self.site, self.checkout = folder / "site", folder / "checkout"
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        for inside, source in PACKAGE.items():
            shutil.copytree(REPOSITORY / source, self.site / inside, ignore=ignored)
        shutil.copytree(REPOSITORY / "tests", self.checkout / "tests", ignore=ignored)
        shutil.copy(REPOSITORY / "pyproject.toml", self.checkout)

    def plant(self, fault: Fault) -> None:
        file = self.site / fault.file
        text = file.read_text(encoding="utf-8")
        count = text.count(fault.old)
        assert count == 1, f"{fault.id} is stale: its old text stands {count} times in {fault.file}"
        file.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        compile(file.read_text(encoding="utf-8"), fault.file, "exec")

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python where ``import harness`` finds the copy."""
        own = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.checkout,
            env={**own, "PYTHONPATH": str(self.site), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )

    def pytest(self, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
        found = self.python("-c", "import harness.methods as m, harness as h; print(h.__file__, m.__file__)")
        files = (self.site / "harness/__init__.py", self.site / "harness/methods/__init__.py")
        assert found.stdout.split() == [str(file) for file in files], found.stdout + found.stderr
        return self.python("-m", "pytest", "-x", "-q", "-rf", "-p", "no:cacheprovider", "-p", "no:xdist", *tests)


def failed_test(output: str) -> str:
    """Return the node id of the test that failed first, from pytest's short summary."""
    found = re.search(r"^FAILED (\S+::.+?)(?: - |$)", output, re.MULTILINE)
    assert found, output
    return found[1]


def test_every_fault_is_one_of_its_own():
    assert len(FAULTS) >= 20
    assert len({fault.id for fault in FAULTS}) == len({(fault.file, fault.old, fault.new) for fault in FAULTS})
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)


def test_the_copy_without_a_fault_passes_every_selected_test(tmp_path):
    done = Copy(tmp_path).pytest(sorted({test for fault in FAULTS for test in fault.tests}))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_a_planted_fault_is_caught(fault: Fault, tmp_path: Path, record_property: Any) -> None:
    copy = Copy(tmp_path)
    copy.plant(fault)
    start = time.perf_counter()
    done = copy.pytest(fault.tests)
    seconds = time.perf_counter() - start
    assert done.returncode == TESTS_FAILED, f"{fault.id} survived: {fault.says}\n{done.stdout[-4000:]}{done.stderr}"
    caught = failed_test(done.stdout)
    assert any(caught == test or caught.startswith(f"{test}[") for test in fault.tests), caught
    record_property("fault", fault.id)
    record_property("caught_by", caught)
    record_property("seconds", f"{seconds:.1f}")
