"""Two ``harness run`` on one results folder: each run is done once, and both end when all are done."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.store import Store
from tests.cli.conftest import RANDOM

pytestmark = pytest.mark.slow


def test_each_run_is_done_once_and_both_wait_for_the_last(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RANDOM)
    arguments = ["run", "--suite", "tiny.toml", "--model", f"smollm2-135m={tiny_llama}", "--offline"]
    arguments += ["--seed", "1", "--seed", "2"]
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "harness.cli", *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HARNESS_CACHE": str(tmp_path / "cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    results = tmp_path / "results" / "records"
    found = Store(results).read("tiny")
    assert found.warnings == ()
    assert Counter((r.spec.label, r.spec.seed, r.status) for r in found.records) == {
        (label, seed, "ok"): 1 for label in ("full", "lisa", "galore") for seed in (1, 2)
    }
    assert sum(text.count(" ok in ") for _, text in said) == 6
    assert not list(results.glob(".work/*"))
    assert not list(results.glob(".claims/*.lease"))
