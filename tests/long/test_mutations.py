"""The mutation check: faults planted one at a time in a copy of the package; the named tests must fail on each.

The faults are in ``mutations.toml``. A fault that survives is a finding: a test is missing. A fault whose old text does
not stand exactly once in its file is stale and fails too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[2]
PACKAGE = {"harness": "harness", "harness/methods": "methods", "harness/suites": "suites"}
"""Folders of the installed package and of the repository, as pyproject.toml maps them."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # none is needed, and loading them takes longer than most tests here
    "PYTHONDONTWRITEBYTECODE": "1",
}
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
    """The package under ``site`` and what tests it under ``checkout``, where no folder harness hides the package."""

    def __init__(self, folder: Path) -> None:
        self.site, self.checkout = folder / "site", folder / "checkout"
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        for inside, source in PACKAGE.items():
            shutil.copytree(REPOSITORY / source, self.site / inside, ignore=ignored)
        for beside in ("tests", "benchmarks"):
            shutil.copytree(REPOSITORY / beside, self.checkout / beside, ignore=ignored)
        shutil.copy(REPOSITORY / "pyproject.toml", self.checkout)

    def plant(self, fault: Fault) -> None:
        file = self.site / fault.file
        text = file.read_text(encoding="utf-8")
        count = text.count(fault.old)
        assert count == 1, f"{fault.id} is stale: its old text stands {count} times in {fault.file}"
        file.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
        if file.suffix == ".py":
            compile(file.read_text(encoding="utf-8"), fault.file, "exec")


class Pytest:
    """The forking process of ``preloaded.py``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, copy: Copy, tests: Sequence[str]) -> tuple[int, str]:
        """Return exit status and output of pytest over these tests, on the copy."""
        output = copy.checkout / "output.txt"
        request = {
            "site": str(copy.site),
            "folder": str(copy.checkout),
            "arguments": ["-x", "-q", "-rfs", "-p", "no:cacheprovider", *tests],
            "output": str(output),
            "timeout_seconds": TIMEOUT_SECONDS,
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), output.read_text(encoding="utf-8", errors="replace")


@pytest.fixture(scope="module")
def run_pytest() -> Iterator[Pytest]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("preloaded.py"))],
        env={**own, **ENVIRONMENT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Pytest(process)


def failed_test(output: str) -> str:
    """Return the node id of the test that failed first, from pytest's short summary."""
    found = re.search(r"^FAILED (\S+::.+?)(?: - |$)", output, re.MULTILINE)
    assert found, output
    return found[1]


def test_every_fault_is_one_of_its_own():
    assert len(FAULTS) >= 20
    assert len({fault.id for fault in FAULTS}) == len({(fault.file, fault.old, fault.new) for fault in FAULTS})
    assert len({fault.id for fault in FAULTS}) == len(FAULTS)


def test_the_copy_without_a_fault_passes_every_selected_test(run_pytest: Pytest, tmp_path: Path) -> None:
    status, output = run_pytest(Copy(tmp_path), sorted({test for fault in FAULTS for test in fault.tests}))
    assert status == 0, output[-4000:]
    assert "SKIPPED" not in output


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.id)
def test_a_planted_fault_is_caught(fault: Fault, run_pytest: Pytest, tmp_path: Path, record_property: Any) -> None:
    copy = Copy(tmp_path)
    copy.plant(fault)
    start = time.perf_counter()
    status, output = run_pytest(copy, fault.tests)
    seconds = time.perf_counter() - start
    assert status == TESTS_FAILED, f"{fault.id} ended with {status}: {fault.says}\n{output[-4000:]}"
    caught = failed_test(output)
    assert any(caught == test or caught.startswith(f"{test}[") for test in fault.tests), caught
    record_property("fault", fault.id)
    record_property("caught_by", caught)
    record_property("seconds", f"{seconds:.1f}")


def test_a_package_that_is_not_the_copy_is_noticed(run_pytest: Pytest, tmp_path: Path) -> None:
    copy = Copy(tmp_path)
    shutil.rmtree(copy.site)
    copy.site.mkdir()
    status, output = run_pytest(copy, FAULTS[0].tests)
    assert status not in (0, TESTS_FAILED), output
