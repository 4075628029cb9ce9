"""``--log`` through the real command: the logger of the documentation, a kill in between, and what stops it at once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.store import Store
from tests.cli.conftest import RANDOM, command

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STEPS = 200
SUITE = RANDOM.replace('"full", "lisa", "galore"', '"full"').replace("num_steps = 6", f"num_steps = {STEPS}")
SUITE = SUITE[: SUITE.index("[settings.lisa]")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with a suite and the logger that the documentation shows."""
    (tmp_path / "tiny.toml").write_text(SUITE)
    shown = re.search(r"```python\n(# lines\.py\n.*?)```", (ROOT / "docs/logging.md").read_text(), re.DOTALL)
    assert shown is not None
    (tmp_path / "lines.py").write_text(shown.group(1))
    return tmp_path


def lines_in(folder: Path) -> list[dict[str, object]]:
    files = list((folder / "results/records/logs/lines").glob("*.jsonl"))
    assert len(files) <= 1
    text = files[0].read_text() if files else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def test_a_kill_of_the_parent_leaves_one_log_with_every_step_once(folder: Path, tiny_llama: Path) -> None:
    asked = ["run", "--suite", "tiny.toml", "--model", f"smollm2-135m={tiny_llama}", "--offline"]
    asked += ["--checkpoint-every", "10", "--log", "lines:Lines"]
    own = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *asked],
        cwd=folder,
        env={**os.environ, **own},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(lines_in(folder)) < 15:  # and a checkpoint is behind it
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    told = len(lines_in(folder))
    assert told < STEPS
    again = command(*asked, cwd=folder, environment=own)
    assert again.returncode == 0, again.stderr
    assert "--log" not in again.stderr
    (record,) = Store(folder / "results/records").read("tiny").records
    assert record.train is not None and record.train.resumed_at_steps
    *steps, end = lines_in(folder)
    numbers = [int(str(line["step"])) for line in steps]
    assert len(numbers) == len(set(numbers))
    assert len(set(range(1, STEPS + 1)) - set(numbers)) <= 1  # the one that was under way
    assert all(line["train/loss"] == record.train.curve.loss[int(str(line["step"])) - 1] for line in steps)
    assert (end["status"], end["step"], end["reason"]) == ("ok", STEPS, None)
    assert end["figure/peak_optimizer_state_bytes"] == record.train.peak_optimizer_state_bytes


def test_what_cannot_be_used_stops_the_command_before_anything_starts(folder: Path, tiny_llama: Path) -> None:
    (folder / "absent.py").write_text("import no_such_package_at_all\n")
    asked = ["run", "--suite", "tiny.toml", "--model", f"smollm2-135m={tiny_llama}", "--offline"]
    for name in ("absent:Logger", "tensorbord", "lines:File"):
        done = command(*asked, "--log", name, cwd=folder, environment={"PYTHONPATH": str(folder)})
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"harness run: error: --log {name}: ")
        assert done.stderr.count("\n") == 1
    slurm = ("--executor", "slurm", "--slurm", "timeout_min=5", "--log", "lines:Lines")
    done = command(*asked, *slurm, cwd=folder, environment={"PYTHONPATH": str(folder)})
    assert done.returncode == 2
    assert done.stderr.startswith("harness run: error: --log is not of --executor slurm: ")
    assert not (folder / "results").exists()
