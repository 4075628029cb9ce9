"""A few kills over parents and children; tests/long has the same with hundreds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prepared"),
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for children in /proc"),
]
KILLS = Path(__file__).parents[1] / "kills.py"


def test_what_was_killed_goes_on_and_ends_as_if_nothing_had_happened(tmp_path: Path, tiny_llama: Path) -> None:
    """The script ends with an error where a record is lost or doubled, or a weight differs."""
    done = subprocess.run(
        [sys.executable, str(KILLS), "--fork", "--model", str(tiny_llama), "--folder", str(tmp_path), "--kills", "8"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "seed 0: " in done.stdout
    assert int(done.stdout.split("seed 0: ")[1].split()[0]) >= 8
