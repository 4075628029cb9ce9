"""How long comparing two sets of 10,000 records takes, reading them included. Aim: 5 s on 2 cores.

pytest benchmarks/test_compare.py
"""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cli import main
from harness.store import Store

FACTORY = Path(__file__).parent.parent / "tests" / "unit" / "fixtures_report" / "factory.py"
make = SimpleNamespace(**runpy.run_path(str(FACTORY)))
LABELS = ("full", "lora", "galore", "lisa", "owlore")
NUM_RECORDS = 10_000


def folder_of_records(folder: Path, environment: Any, num_models: int) -> Path:
    """Fill a folder: five labels on each model, as many seeds as it takes."""
    suite = make.make_suite(labels=LABELS)
    runs = [
        (label, f"model{m}", seed)
        for m in range(num_models)
        for label in LABELS
        for seed in range(NUM_RECORDS // num_models // len(LABELS))
    ]
    lines = (
        make.make_record(
            label, model=model, seed=seed, suite=suite, minute=i, environment=environment
        ).model_dump_json()
        for i, (label, model, seed) in enumerate(runs)
    )
    Store(folder).file_of(suite.name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize("num_models", [1, 400], ids=["5 labels, 2000 seeds", "2000 labels, 5 seeds"])
def test_compare_of_two_sets_of_ten_thousand_records(
    benchmark: Any, tmp_path_factory: pytest.TempPathFactory, num_models: int, capsys: pytest.CaptureFixture[str]
) -> None:
    new = make.CPU.model_copy(update={"source_checksum": "f" * 64})
    old = folder_of_records(tmp_path_factory.mktemp("old"), make.CPU, num_models)
    later = folder_of_records(tmp_path_factory.mktemp("new"), new, num_models)

    def compare() -> int:
        return main(["compare", str(old), str(later)])

    code = benchmark.pedantic(compare, rounds=3, iterations=1, warmup_rounds=0)
    # Of every label and model: the optimizer's state, the held-out loss, the step time, eight tasks and their average.
    assert code == 0
    assert f"## harness compare: {12 * len(LABELS) * num_models} same\n" in capsys.readouterr().out
