"""CPU seconds of ``harness plan --suite commonsense`` beside those of another commit, in one run on one processor.

python benchmarks/plan_speed.py --against COMMIT [--suite NAME] [--model NAME]

Each is taken with an empty cache and again with what it kept, in turn; one processor, so that all work is in processes
whose time is known when they end. What is printed by both must be the same, or the answers moved.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = {"harness": "harness", "methods": "harness/methods", "suites": "harness/suites"}


def main() -> None:
    """Measure both, and print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", required=True)
    parser.add_argument("--suite", default="commonsense")
    parser.add_argument("--model", action="append", default=[])
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    asked = ["--suite", given.suite, *(part for name in given.model for part in ("--model", name))]
    with tempfile.TemporaryDirectory() as folder:
        sources = {given.against: Path(folder, "before"), "here": Path(folder, "here")}
        _packages(sources[given.against], given.against)
        _packages(sources["here"], None)
        found = {}
        for state in ("cold", "warm"):
            for name, source in sources.items():
                found[name, state] = _seconds(source, asked, Path(folder, f"cache-{source.name}"))
    for state in ("cold", "warm"):
        before, here = found[given.against, state], found["here", state]
        print(
            f"{state}: {before[0]:.1f} CPU s at {given.against}, {here[0]:.1f} here: {here[0] / before[0]:.3f}; "
            f"wall {before[1]:.1f} and {here[1]:.1f} s"
        )
    print("the same is printed:", found[given.against, "cold"][2] == found["here", "warm"][2])


def _packages(into: Path, commit: str | None) -> None:
    """Lay the packages of a commit, or of the working tree, as they are installed."""
    with tempfile.TemporaryDirectory() as folder:
        root = ROOT
        if commit is not None:
            root = Path(folder)
            archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True)
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        for source, target in PACKAGES.items():
            shutil.copytree(root / source, into / target, ignore=shutil.ignore_patterns("__pycache__"))


def _seconds(source: Path, asked: list[str], cache: Path) -> tuple[float, float, str]:
    """Return CPU and wall seconds of a plan and the processes that it ends, and what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(source), "HARNESS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness.cli", "plan", *asked],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - begin
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, done.stdout


if __name__ == "__main__":
    main()
