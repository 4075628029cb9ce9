"""How long a report of 10,000 records takes, reading them included. Aim: 10 s on 2 cores."""

from __future__ import annotations

import gc
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.report.write import write_report
from harness.store import Store
from harness.suite import Suite

FACTORY = Path(__file__).parent.parent / "tests" / "unit" / "fixtures_report" / "factory.py"
make = SimpleNamespace(**runpy.run_path(str(FACTORY)))
NUM_RECORDS = 10_000
LIMIT_SECONDS = 10.0
PLOTS = ("memory_score", "tasks", "loss", "loss_tokens", "loss_seconds", "blocks")


@pytest.fixture(scope="module")
def suite() -> Suite:
    seeds = tuple(range(NUM_RECORDS // 5))
    labels = ("full", "lora", "galore", "lisa", "owlore")
    return make.make_suite(labels=labels, seeds=seeds)


@pytest.fixture(scope="module")
def store(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("records"))
    runs = [(label, seed) for label in suite.labels for seed in suite.seeds]
    lines = (
        make.make_record(label, seed=seed, suite=suite, minute=i).model_dump_json()
        for i, (label, seed) in enumerate(runs)
    )
    store.file_of(suite.name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return store


FORMATS = [("csv",), ("md", "csv"), ("md", "latex", "html", "csv", "json")]


@pytest.mark.parametrize("formats", FORMATS, ids="+".join)
def test_report_of_ten_thousand_records(
    benchmark: Any, suite: Suite, store: Store, tmp_path: Path, formats: tuple[str, ...]
) -> None:
    def report() -> list[Path]:
        contents = store.read(suite.name)
        gc.freeze()  # as the command does
        try:
            return write_report(suite, contents, tmp_path / "out", formats)
        finally:
            gc.unfreeze()

    files = benchmark.pedantic(report, rounds=3, iterations=1, warmup_rounds=0)
    with (tmp_path / "out" / "runs.csv").open(encoding="utf-8") as stream:
        assert sum(1 for _ in stream) == NUM_RECORDS + 1
    pages = {"md": "report.md", "latex": "report.tex", "html": "report.html", "json": "report.json"}
    assert {pages[name] for name in formats if name in pages} <= {file.name for file in files}
    plots = [file for file in files if file.parent.name == "plots"]
    assert len(plots) == (0 if formats == ("csv",) else 3 * len(PLOTS))
    assert benchmark.stats.stats.min <= LIMIT_SECONDS  # the round least disturbed by other work
