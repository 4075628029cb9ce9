"""Two hundred kills over parents and children; docs/faults.md keeps the output."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import needed

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for children in /proc"),
]
KILLS = Path(__file__).parents[1] / "kills.py"


@pytest.mark.timeout(7200)
def test_nothing_is_lost_doubled_or_different_after_200_kills(tmp_path: Path, tiny_llama: Path) -> None:
    from harness.data.packaged import rows_place

    needed(rows_place())
    done = subprocess.run(
        [sys.executable, str(KILLS), "--fork", "--model", str(tiny_llama), "--folder", str(tmp_path), "--kills", "200"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-4000:]
    found = re.search(r"seed 0: (\d+) kills", done.stdout)
    assert found is not None
    assert int(found[1]) >= 200
