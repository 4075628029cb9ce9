"""``harness.run`` from a script in a process of its own, and the script of the documentation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.data.packaged import rows_place
from harness.store import Store
from tests.cli.conftest import RANDOM
from tests.conftest import needed

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SCRIPT = """
import harness

print("begun")
results = harness.run("tiny.toml", models="smollm2-135m={model}", labels=["full", "lisa"], seeds=[1], offline=True)
print(results)
print(results.runs[["label", "status", "num_steps"]].to_csv(index=False))
print(harness.read().runs.equals(results.runs))
try:
    harness.run("tiny.toml", labels="ful")
except harness.HarnessError as error:
    print("refused:", error)
"""


def scripted(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(text)
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_script_without_a_guard_runs_a_suite_once(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RANDOM)
    done = scripted(SCRIPT.replace("{model}", str(tiny_llama)), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("begun") == 1  # no process of a run imports the script
    assert "full,ok,6\nlisa,ok,6\n" in done.stdout
    assert "\nTrue\n" in done.stdout
    assert "refused: there is no label 'ful'" in done.stdout or "did you mean 'full'?" in done.stdout
    assert "Traceback" not in done.stderr
    assert len(Store(tmp_path / "results" / "records").read("tiny").records) == 2
    assert "2 of 2 runs skipped" in scripted(SCRIPT.replace("{model}", str(tiny_llama)), tmp_path).stdout


def test_the_script_of_the_documentation_runs(tmp_path: Path) -> None:
    needed(rows_place())
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    shown = re.search(r"```python\n(# script\.py\n.*?)```", text, re.DOTALL)
    assert shown is not None
    done = scripted(shown.group(1), tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^0 +lora +ok +\d\.\d+$", done.stdout, re.MULTILINE), done.stdout
    (record,) = Store(tmp_path / "results" / "records").read("quickstart").records
    assert record.train is not None and record.train.num_steps == 2
