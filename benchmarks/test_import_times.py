"""How long commands take that compute nothing: ``--help``, and a report of numbers, beside an older build in turns.

    HARNESS_BENCH_BASELINE_PYTHON=/path/to/older/bin/python pytest -s benchmarks/test_import_times.py

``python -m harness.cli --help`` is to end within 0.15 s, ``report --format csv`` of a quickstart within 1.5 s: medians
of the clock over ``HARNESS_BENCH_ROUNDS`` rounds (default 15) of fresh processes; the processor's seconds beside them.
``HARNESS_BENCH_RECORDS`` is the results folder of a quickstart that ended; without it the records are made from those
that tests read, six labels of one seed. Files of a report are asserted to be the same in every round. Without the older
build this one alone is timed; that cannot read this build's records, so ``HARNESS_BENCH_BASELINE_RECORDS`` is its own
folder, and without it its report is not timed.
"""

from __future__ import annotations

import os
import resource
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.expansion import load_suite
from harness.store import Store

BASELINE = os.environ.get("HARNESS_BENCH_BASELINE_PYTHON")
ROUNDS = int(os.environ.get("HARNESS_BENCH_ROUNDS", "15"))
HELP_SECONDS, REPORT_SECONDS = 0.15, 1.5
FACTORY = Path(__file__).parent.parent / "tests" / "unit" / "fixtures_report" / "factory.py"

pytestmark = pytest.mark.timeout(0)


def timed(python: str, arguments: Sequence[str], folder: Path) -> tuple[float, float]:
    """Return the clock's and the processor's seconds of a command in a process of its own."""
    environment = dict(os.environ)
    if python == BASELINE:
        environment.pop("PYTHONPATH", None)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [python, "-P", "-m", "harness.cli", *arguments]
    subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def medians(name: str, calls: Sequence[tuple[str, str, Sequence[str]]], folder: Path) -> float:
    """Time calls in turns, print a row for each and return the clock's median of the first."""
    found: dict[str, list[tuple[float, float]]] = {who: [] for who, _, _ in calls}
    for _ in range(ROUNDS):
        for who, python, arguments in calls:
            found[who].append(timed(python, arguments, folder))
    print(f"\n{name}, median of {ROUNDS}: clock and processor, seconds")
    for who, laps in found.items():
        clock, processor = (statistics.median(part) for part in zip(*laps, strict=True))
        print(f"{who:<8}{clock:8.3f}{processor:8.3f}")
    return statistics.median(clock for clock, _ in found[calls[0][0]])


def test_help(tmp_path: Path) -> None:
    calls = [("this", sys.executable, ["--help"])]
    if BASELINE is not None:
        calls.append(("older", BASELINE, ["--help"]))
    assert medians("harness --help", calls, tmp_path) < HELP_SECONDS


def test_report_of_numbers(tmp_path: Path) -> None:
    given = os.environ.get("HARNESS_BENCH_RECORDS")
    records = _records(tmp_path) if given is None else Path(given).resolve()
    report = ["report", "--suite", "quickstart", "--format", "csv"]
    calls = [("this", sys.executable, [*report, "--results", str(records), "--out", "this"])]
    if BASELINE is not None and (older := os.environ.get("HARNESS_BENCH_BASELINE_RECORDS")) is not None:
        calls.append(("older", BASELINE, [*report, "--results", str(Path(older).resolve()), "--out", "older"]))
    timed(sys.executable, calls[0][2], tmp_path)
    texts = [file.read_bytes() for file in sorted((tmp_path / "this").iterdir())]
    assert len(texts) == 2 and all(texts)
    seconds = medians("harness report --format csv", calls, tmp_path)
    assert [file.read_bytes() for file in sorted((tmp_path / "this").iterdir())] == texts
    assert seconds < REPORT_SECONDS


def _records(folder: Path) -> Path:
    make = SimpleNamespace(**runpy.run_path(str(FACTORY)))
    suite = load_suite("quickstart")
    records = [make.make_record(label, seed=1, suite=suite, minute=i) for i, label in enumerate(suite.labels)]
    file = Store(folder / "records").file_of(suite.name)
    file.parent.mkdir(parents=True)
    file.write_text("".join(f"{record.model_dump_json()}\n" for record in records), encoding="utf-8")
    return folder / "records"
