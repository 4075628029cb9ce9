"""Sides, records and outcomes by hand for the tests of ``harness compare``."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.record import Record, Score
from harness.report.comparing.cells import Cell, Comparison
from harness.report.comparing.compare import compare_sides
from harness.report.reading.sides import Side

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "unit" / "fixtures_report" / "factory.py")))
NEW = make.CPU.model_copy(update={"packages": {"torch": "2.14.0", "lm-eval": "0.4.13"}, "source_checksum": "f" * 64})
NOISE = (0.99, 1.01, 1.0, 0.995, 1.005)


def timed(record: Record, seconds: float) -> Record:
    assert record.train is not None
    return record.model_copy(update={"train": record.train.model_copy(update={"step_seconds_mean": seconds})})


def runs(
    label: str, times: Sequence[float], *, later: int = 0, environment: Any = make.CPU, **changes: Any
) -> list[Record]:
    """One record a time, repeats of one seed."""
    return [
        timed(make.make_record(label, minute=later + i, environment=environment, **changes), seconds)
        for i, seconds in enumerate(times)
    ]


def compare(old: Sequence[Record], new: Sequence[Record], fail_on: str | None = None, **changes: Any) -> Comparison:
    return compare_sides(Side("old", tuple(old)), Side("new", tuple(new)), fail_on, **changes)


def cell(comparison: Comparison, metric: str, label: str = "full") -> Cell:
    (found,) = (c for c in comparison.cells if c.title == metric and c.key[2] == label)
    return found


def scored(
    values: Sequence[float], *, later: int = 0, environment: Any = make.CPU, unit: str = "fraction"
) -> list[Record]:
    """One seed a value, of one task, with items in ``seed-later.zst``."""
    records = []
    for seed, value in enumerate(values):
        score = Score(
            task="piqa",
            metric="acc",
            value=value,
            stderr=0.01,
            n=1000,
            unit=unit,
            higher_is_better=True,
            task_version="1",
            num_fewshot=0,
            headline=True,
        )
        records.append(
            make.make_record("full", seed=seed, minute=later + seed, environment=environment).model_copy(
                update={"scores": (score,), "items": f"{seed}-{later}"}
            )
        )
    return records


def items_side(name: str, records: list[Record], outcomes: Callable[[int, int], float]) -> Side:
    side = Side(name, tuple(records))
    for record in records:
        values = {("piqa", i, ""): outcomes(record.spec.seed, i) for i in range(1000)}
        side._items[record.items or ""] = {("piqa", "acc"): values}
    return side
