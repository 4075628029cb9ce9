"""The quickstart on a CPU, this build and an older one in turns: at most 0.6 of its time, with the same results.

    HARNESS_BENCH_BASELINE_PYTHON=/path/to/older/bin/python pytest -s benchmarks/test_quickstart.py

Each round both run ``harness run --suite quickstart`` in results folders of their own, one after the other and each
first in every second round, with the threads that torch takes by itself: as many as there are cores, unless
``OMP_NUM_THREADS`` says otherwise. The clock is that of the whole command, imports, predictions and checks among it,
the processor's seconds are those of all its processes. The table by phase is from the records; what no phase holds of
a run's process is its start and its end, and what no run holds is the command's own.

Both begin with what ``harness prepare`` leaves in the cache, and compute predictions and block scores themselves.

Scores, what training held and the blocks of the proofs are asserted equal, losses to four digits: sums of the older
build may be in another order, and it may hold more where the loss is taken. Labels with dropout have neither losses
nor scores compared: builds before the streams of micro-batches (CHANGELOG) drew other values.

Needs ``harness prepare --suite quickstart``. ``HARNESS_BENCH_LABELS`` takes some of the labels, such as ``base,lora``;
``HARNESS_BENCH_ROUNDS`` sets the rounds (default 1). Without the other Python it is skipped.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.assets.cache import cache_root

BASELINE = os.environ.get("HARNESS_BENCH_BASELINE_PYTHON")
ALL_LABELS = ("base", "full", "lora", "galore", "lisa", "owlore")
LABELS = tuple(os.environ.get("HARNESS_BENCH_LABELS", ",".join(ALL_LABELS)).split(","))
ROUNDS = int(os.environ.get("HARNESS_BENCH_ROUNDS", "1"))
RATIO = 0.6
"""What is asked for of all six labels."""
WITH_DROPOUT = {"lora"}
COMPUTED = {"predictions", "block_scores", "scorable"}
"""Folders of the cache that a run fills."""
HELD = ("weights_bytes", "gradients_bytes", "optimizer_state_bytes")

pytestmark = [
    pytest.mark.timeout(0),
    pytest.mark.skipif(BASELINE is None, reason="HARNESS_BENCH_BASELINE_PYTHON names no Python of an older build"),
]


@dataclass(frozen=True)
class Done:
    """One call of a build's command."""

    seconds: float
    cpu_seconds: float
    records: dict[str, dict[str, Any]]
    """By label."""

    def phases(self) -> dict[str, float]:
        """Return seconds by phase, over all runs."""
        found: dict[str, float] = defaultdict(float)
        for record in self.records.values():
            for phase in record["phases"]:
                found[phase["name"]] += phase["seconds"]
            found["start, end of processes"] += record["process"]["seconds"]
            found["start, end of processes"] -= sum(phase["seconds"] for phase in record["phases"])
        found["the command beside its runs"] = self.seconds - sum(found.values())
        return found


def call(python: str, option: str, folder: Path) -> Done:
    """Run the suite in a fresh folder, from which no checkout is imported but by ``PYTHONPATH``."""
    folder.mkdir()
    environment = dict(os.environ) | {"HARNESS_CACHE": str(fresh_cache(folder / "cache"))}
    if python == BASELINE:
        environment.pop("PYTHONPATH", None)
    command = [python, "-P", "-m", "harness.cli", "run", "--suite", "quickstart", "--results", "records", "--offline"]
    for label in LABELS if LABELS != ALL_LABELS else ():
        command += [option, label]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-2000:]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = (folder / "records" / "quickstart.jsonl").read_text(encoding="utf-8").splitlines()
    return Done(seconds, cpu, {_label(record): record for record in map(json.loads, lines)})


def fresh_cache(folder: Path) -> Path:
    """Return a cache with what was prepared and nothing that was computed: neither predictions nor block scores."""
    folder.mkdir()
    for entry in cache_root().iterdir():
        if entry.is_dir() and entry.name not in COMPUTED:
            (folder / entry.name).symlink_to(entry)
        elif entry.suffix == ".json":
            shutil.copy(entry, folder)
    return folder


def check_equal(ours: Done, theirs: Done) -> None:
    """Assert that two builds come to the same."""
    assert set(ours.records) == set(theirs.records) == set(LABELS)
    for label, record in ours.records.items():
        other = theirs.records[label]
        assert (record["status"], other["status"]) == ("ok", "ok")
        assert _scores(record).keys() == _scores(other).keys()
        if label not in WITH_DROPOUT:
            assert _scores(record) == _scores(other), label
        if record["train"] is None:
            continue
        if label not in WITH_DROPOUT:
            assert record["train"]["curve"]["loss"] == pytest.approx(other["train"]["curve"]["loss"], rel=1e-4), label
        peak, before = record["train"]["tracked_peak"], other["train"]["tracked_peak"]
        assert (peak["steps"], peak["step"]) == (before["steps"], before["step"])
        assert sum(peak["at_peak"].values()) <= sum(before["at_peak"].values()), label
        for part in HELD if peak["moment"] == before["moment"] else ("weights_bytes",):
            assert peak["at_peak"][part] == before["at_peak"][part], (label, part)
        activity = [record["proof"]["ever_trainable_blocks"], other["proof"]["ever_trainable_blocks"]]
        assert activity[0] == activity[1], label


def _label(record: dict[str, Any]) -> str:
    """Return the label, which is the method's name in this suite; older records have only that."""
    return str(record["spec"].get("label") or record["spec"]["method"])


def _scores(record: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(score["task"], score["metric"]): score["value"] for score in record["scores"]}


def print_tables(ours: Sequence[Done], theirs: Sequence[Done]) -> None:
    """Print medians by phase, by label and of the whole."""
    rows = [(name, [one.phases() for one in theirs], [one.phases() for one in ours]) for name in theirs[0].phases()]
    print(f"\n{', '.join(LABELS)}; {len(ours)} rounds; threads of torch: {os.environ.get('OMP_NUM_THREADS', 'all')}")
    print(f"{'seconds':<28}{'older':>9}{'this':>9}{'ratio':>8}")
    for name, before, now in rows:
        _row(name, *(statistics.median(one.get(name, 0.0) for one in some) for some in (before, now)))
    for label in LABELS:
        _row(label, *(statistics.median(one.records[label]["process"]["seconds"] for one in x) for x in (theirs, ours)))
    _row("clock", *(statistics.median(one.seconds for one in x) for x in (theirs, ours)))
    _row("processor", *(statistics.median(one.cpu_seconds for one in x) for x in (theirs, ours)))


def _row(name: str, before: float, now: float) -> None:
    print(f"{name:<28}{before:>9.2f}{now:>9.2f}{now / before if before else float('nan'):>8.2f}")


def test_the_quickstart_takes_at_most_six_tenths(tmp_path: Path) -> None:
    assert BASELINE is not None
    ours: list[Done] = []
    theirs: list[Done] = []
    for number in range(ROUNDS):
        calls = [
            (theirs, BASELINE, "--method", tmp_path / f"older-{number}"),
            (ours, sys.executable, "--label", tmp_path / f"this-{number}"),
        ]
        for done, python, option, folder in calls if number % 2 == 0 else reversed(calls):
            done.append(call(python, option, folder))
        check_equal(ours[-1], theirs[-1])
    print_tables(ours, theirs)
    assert statistics.median(a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True)) <= RATIO
