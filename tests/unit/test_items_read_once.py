"""Files of items are read once: by a report for all tasks of a row, by a comparison for all tasks of a subject."""

from __future__ import annotations

import json
import runpy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard

from harness.record import Record
from harness.report.comparing.compare import compare_sides
from harness.report.reading import sides
from harness.report.reading.estimates import average_of_row, score_of_row
from harness.report.reading.sides import items_beside, load_side
from harness.report.reading.summary import summarize
from harness.store import Contents, Store

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))
SEEDS = (1, 2, 3, 4, 5)
SUITE = make.make_suite(labels=("full", "lora"), seeds=SEEDS)


def recorded(folder: Path, **more: object) -> list[Record]:
    """Store runs with files of items, the first ones of each task right, and return their records."""
    store, records = Store(folder), []
    (folder / "items").mkdir(parents=True)
    for minute, (label, seed) in enumerate((label, seed) for label in SUITE.labels for seed in SEEDS):
        record = make.make_record(label, seed=seed, suite=SUITE, minute=minute, **more)
        record = record.model_copy(update={"items": f"items/{label}-{seed}.jsonl.zst"})
        lines = [
            json.dumps(
                {
                    "task": score.task,
                    "index": i,
                    "doc_hash": f"{score.task}{i}",
                    "metrics": {score.metric: float(i < round(score.value * score.n))},
                }
            )
            for score in record.scores
            for i in range(score.n)
        ]
        assert record.items is not None
        (folder / record.items).write_bytes(zstandard.ZstdCompressor().compress("\n".join(lines).encode()))
        store.append(record)
        records.append(record)
    return records


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the files of items that are unpacked, by how they are called."""
    counted: Counter[str] = Counter()
    parse = sides.parse_items

    def counting(data: bytes, where: str, *more: object) -> object:
        counted[where] += 1
        return parse(data, where, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(sides, "parse_items", counting)
    return counted


@pytest.mark.parametrize("most", [None, 1], ids=["all held", "one held"])
def test_a_report_reads_each_file_once(tmp_path: Path, read: Counter[str], most: int | None) -> None:
    records = recorded(tmp_path)
    beside = items_beside(tmp_path)
    beside.most_items = most
    summary = summarize(SUITE, Contents(tuple(records)), None, beside.items)
    estimates = [score_of_row(row, column) for row in summary.rows for column in summary.columns]
    estimates += [average_of_row(row, summary.columns) for row in summary.rows]
    assert all(found is not None and found[0].basis == "items and seeds" for found in estimates)
    assert set(read.values()) == {1}
    assert len(read) == len(records)


def test_a_comparison_reads_each_file_once_and_holds_those_of_one_subject(tmp_path: Path, read: Counter[str]) -> None:
    recorded(tmp_path / "old")
    recorded(tmp_path / "new", environment=make.CPU.model_copy(update={"source_checksum": "f" * 64}))
    old, new = load_side(str(tmp_path / "old")), load_side(str(tmp_path / "new"))
    held: list[int] = []
    forget = type(old).forget_items
    for side in (old, new):
        side.forget_items = lambda side=side: held.append(len(side._items)) or forget(side)  # type: ignore[method-assign,misc]
    comparison = compare_sides(old, new)
    assert any("paired over" in cell.basis for cell in comparison.cells if cell.metric == "score")
    assert set(read.values()) == {1}
    assert len(read) == 2 * len(SUITE.labels) * len(SEEDS)
    assert held == [len(SEEDS)] * 4


def test_names_of_items_are_the_same_objects_in_every_file(tmp_path: Path) -> None:
    records = recorded(tmp_path)
    beside = items_beside(tmp_path)
    first, second = (beside.items(record.items or "") for record in records[:2])
    assert first is not None
    assert second is not None
    key = next(iter(first))
    assert all(one is other for one, other in zip(first[key], second[key], strict=True))
