"""What a report of CSV and a comparison cost at 10,000 and at 100,000 records, as commands: seconds and peak memory.

    pytest benchmarks/test_records_at_scale.py -s

Aims on 2 cores: the report of 100,000 records in 30 s and 2 GiB, the comparison with 100,000 others in 40 s; neither
grows faster than the records. Each command is a process of its own, whose CPU time and largest resident set the system
tells; sizes alternate in one run. A record has 30 steps and nine scores, 7.7 kB, and no files of items beside it.

With HARNESS_BENCH_BASELINE_PYTHON, the Python of an environment with an older build, both builds take the same
records as well, at the smallest size: of the older build's layout, made from ours by leaving out what it does not know.
Then scores.csv has to be the same to the byte, runs.csv in the columns that both have, and a comparison in its verdicts
and values.

HARNESS_BENCH_RECORDS: sizes, rising (10000,100000). HARNESS_BENCH_ROUNDS: how often each is taken (1).
HARNESS_BENCH_FOLDER: where records are made, and found by the next call; else in a folder of pytest's.
"""

from __future__ import annotations

import csv
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest

from harness.store import Store

ROOT = Path(__file__).parent.parent
make = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "unit" / "fixtures_report" / "factory.py")))
SIZES = tuple(map(int, os.environ.get("HARNESS_BENCH_RECORDS", "10000,100000").split(",")))
ROUNDS = int(os.environ.get("HARNESS_BENCH_ROUNDS", "1"))
FOLDER = os.environ.get("HARNESS_BENCH_FOLDER")
BASELINE = os.environ.get("HARNESS_BENCH_BASELINE_PYTHON")
LABELS = ("full", "lora", "galore", "lisa", "owlore")
REPORT_SECONDS, COMPARE_SECONDS, REPORT_BYTES = 30.0, 40.0, 2 * 2**30
NOISE = 1.1
GIB = 2**30
OLDER = """
import json, sys
from typing import get_args
from pydantic import BaseModel
from harness.record import SCHEMA_VERSION, Record

def models(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models(inner)

def known(value, model):
    found = {}
    for name, field in model.model_fields.items():
        if name in value:
            inner, part = next(models(field.annotation), None), value[name]
            if inner is not None and isinstance(part, dict):
                part = known(part, inner)
            elif inner is not None and isinstance(part, list):
                part = [known(one, inner) if isinstance(one, dict) else one for one in part]
            found[name] = part
    return found

for line in sys.stdin:
    data = known(json.loads(line), Record) | {"schema_version": SCHEMA_VERSION}
    print(Record.model_validate(data).model_dump_json())
"""
"""Run by the older build: its own records out of newer ones."""


@dataclass(frozen=True)
class Cost:
    """Of one command."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def cost(command: Sequence[str], folder: Path, **variables: str) -> Cost:
    """Run a command and return what it took.

    Args:
        command: Its words.
        folder: Where it runs, and where its output goes.
        variables: Of its environment.
    """
    began = time.perf_counter()
    with (folder / "output.txt").open("wb") as output:
        child = subprocess.Popen(command, cwd=folder, stdout=output, env={**os.environ, **variables})
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    assert child.returncode == 0, (folder / "output.txt").read_text()[-2000:]
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "harness", *words]


def records(folder: Path, number: int) -> Path:
    """Fill a folder with so many runs of a suite, and return it."""
    if not folder.exists():
        folder.mkdir()
        suite = make.make_suite(labels=LABELS)
        runs = [(label, seed) for label in LABELS for seed in range(number // len(LABELS))]
        with Store(folder).file_of(suite.name).open("w", encoding="utf-8") as stream:
            for minute, (label, seed) in enumerate(runs):
                stream.write(make.make_record(label, seed=seed, suite=suite, minute=minute).model_dump_json() + "\n")
    return folder


def of_other_source(folder: Path) -> Path:
    """Return a folder with the same runs as another, by another source."""
    target = folder.with_name(f"{folder.name}-other")
    if not target.exists():
        target.mkdir()
        old, new = make.CPU, make.CPU.model_copy(update={"source_checksum": "f" * 64})
        with (folder / "quick.jsonl").open() as source, (target / "quick.jsonl").open("w") as stream:
            for line in source:
                named = line.replace(old.environment_id, new.environment_id, 1)
                stream.write(named.replace(old.source_checksum, new.source_checksum, 1))
    return target


def suite_file(folder: Path) -> Path:
    suite = make.make_suite(labels=LABELS, seeds=(0, 1))
    tables = {"train": make.TRAIN, "evaluation": {"tasks": suite.evaluation.tasks, "rows": "packaged-scored"}}
    tables["evaluation"]["num_fewshot"] = 0
    head = suite.model_dump(
        include={"name", "version", "protocol", "description", "notes", "ranking", "models", "labels", "seeds"}
    )
    lines = [f"{key} = {json.dumps(value)}" for key, value in head.items()]
    for name, values in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    file = folder / "quick.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if FOLDER is None:
        return tmp_path_factory.mktemp("scale")
    Path(FOLDER).mkdir(parents=True, exist_ok=True)
    return Path(FOLDER)


def show(title: str, costs: dict[int, list[Cost]]) -> None:
    print(f"\n{title}\n  records   seconds  CPU seconds  peak GiB")
    for number, found in costs.items():
        for one in found:
            print(f"{number:9,}  {one.seconds:8.2f}  {one.cpu_seconds:11.2f}  {one.peak_bytes / GIB:8.3f}")


def grows_no_faster_than_records(costs: dict[int, list[Cost]]) -> None:
    small, large = min(costs), max(costs)
    for of in ("cpu_seconds", "peak_bytes"):
        less, more = (median(getattr(one, of) for one in costs[number]) for number in (small, large))
        assert more / less <= NOISE * large / small, of


def test_report(place: Path) -> None:
    file = suite_file(place)
    costs: dict[int, list[Cost]] = {number: [] for number in SIZES}
    for _ in range(ROUNDS):
        for number in SIZES:
            folder = records(place / f"{number}", number)
            words = ("report", "--suite", str(file), "--results", ".", "--format", "csv", "--out", "report")
            costs[number].append(cost(command(*words), folder, PYTHONPATH=str(ROOT)))
            with (folder / "report" / "runs.csv").open(encoding="utf-8") as stream:
                assert sum(1 for _ in stream) == number + 1
    show("harness report --format csv", costs)
    grows_no_faster_than_records(costs)
    if max(SIZES) == 100_000:
        best = min(costs[max(SIZES)], key=lambda one: one.seconds)  # the one least disturbed by other work
        assert best.seconds <= REPORT_SECONDS
        assert best.peak_bytes <= REPORT_BYTES


def test_compare(place: Path) -> None:
    costs: dict[int, list[Cost]] = {number: [] for number in SIZES}
    for _ in range(ROUNDS):
        for number in SIZES:
            old = records(place / f"{number}", number)
            costs[number].append(cost(command("compare", ".", str(of_other_source(old))), old, PYTHONPATH=str(ROOT)))
            # Of every label: the optimizer's state, the held-out loss, the step time, eight tasks and their average.
            assert f"## harness compare: {12 * len(LABELS)} same\n" in (old / "output.txt").read_text()
    show("harness compare", costs)
    grows_no_faster_than_records(costs)
    if max(SIZES) == 100_000:
        assert min(one.seconds for one in costs[max(SIZES)]) <= COMPARE_SECONDS


def of_older_layout(source: Path, target: Path) -> Path:
    """Fill a folder with the records of another as the older build writes them, and return it."""
    assert BASELINE is not None
    target.mkdir(exist_ok=True)
    with (source / "quick.jsonl").open() as given, (target / "quick.jsonl").open("w") as taken:
        own = {**os.environ, "PYTHONPATH": ""}
        subprocess.run([BASELINE, "-c", OLDER], stdin=given, stdout=taken, check=True, cwd=target, env=own)
    return target


def alternately(words: Sequence[str], folder: Path) -> dict[str, list[Cost]]:
    """Return what a command of either build costs, and print it; ``BUILD`` among its words stands for before or now."""
    assert BASELINE is not None
    costs: dict[str, list[Cost]] = {"before": [], "now": []}
    for _ in range(ROUNDS):
        for build, found in costs.items():
            own = [word.replace("BUILD", build) for word in words]
            program = [str(Path(BASELINE).with_name("harness"))] if build == "before" else command()
            found.append(cost([*program, *own], folder, PYTHONPATH="" if build == "before" else str(ROOT)))
            (folder / "output.txt").replace(folder / f"{words[0]}-{build}.txt")
    print(f"\nharness {words[0]}, {min(SIZES):,} records\n  build    seconds  CPU seconds  peak GiB")
    for build, found in costs.items():
        for one in found:
            print(f"{build:>7}  {one.seconds:9.2f}  {one.cpu_seconds:11.2f}  {one.peak_bytes / GIB:8.3f}")
    ratio = median(one.cpu_seconds for one in costs["before"]) / median(one.cpu_seconds for one in costs["now"])
    print(f"{ratio:.2f} times fewer CPU seconds")
    return costs


def cells(folder: Path, build: str) -> dict[tuple[str, str], list[str]]:
    """Return the verdict and the values of a comparison by label and metric."""
    rows = [line.split("|")[1:-1] for line in (folder / f"compare-{build}.txt").read_text().splitlines() if "|" in line]
    stripped = [[cell.strip() for cell in row] for row in rows]
    return {(row[1], row[2]): [row[0], *row[3:6]] for row in stripped if row[1].startswith("quick / ")}


@pytest.mark.skipif(BASELINE is None, reason="HARNESS_BENCH_BASELINE_PYTHON names no Python with an older build")
def test_against_an_older_build(place: Path) -> None:
    number, file = min(SIZES), suite_file(place)
    source = records(place / f"{number}", number)
    folder, other = of_older_layout(source, place / "older"), of_older_layout(of_other_source(source), place / "newer")
    alternately(("report", "--suite", str(file), "--results", ".", "--format", "csv", "--out", "BUILD"), folder)
    assert (folder / "before" / "scores.csv").read_bytes() == (folder / "now" / "scores.csv").read_bytes()
    before, now = (list(csv.DictReader((folder / name / "runs.csv").open())) for name in ("before", "now"))
    assert before[0].keys() - now[0].keys() == set()
    assert [{name: row[name] for name in before[0]} for row in now] == before
    alternately(("compare", ".", str(other)), folder)
    known, found = cells(folder, "before"), cells(folder, "now")
    assert len(known) >= 10 * len(LABELS)
    assert known == {key: found.get(key) for key in known}
