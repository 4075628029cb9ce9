"""The report's section on which labels can be told apart."""

from __future__ import annotations

import random
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.record import Record, Score
from harness.report.pages.markdown import markdown
from harness.report.pages.page import report_document
from harness.report.pages.pairs import comparison_blocks, pairs_of
from harness.report.reading.summary import Summary, summarize
from harness.report.statistics.family import holm
from harness.report.statistics.signs import sign_p_value
from harness.settings import EvaluationSettings
from harness.store import Contents

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))
NUM_ITEMS = 200


def answers(label: str, task: str, seed: int, share: float) -> dict[Any, float]:
    """Outcomes that seeds and labels mostly share: an item is right where its hardness is below the share."""
    hardness = random.Random(task)
    luck = random.Random(f"{label} {task} {seed}")
    return {(task, i, ""): float(hardness.random() + 0.02 * luck.random() < share) for i in range(NUM_ITEMS)}


def make_summary(
    shares: dict[str, float], tasks: tuple[str, ...] = ("boolq", "piqa"), seeds: tuple[int, ...] = (1,)
) -> tuple[Summary, dict[str, Any]]:
    suite = make.make_suite(
        labels=tuple(shares),
        seeds=seeds,
        evaluation=EvaluationSettings(tasks=tasks, rows="packaged-scored", num_fewshot=0),
    )
    records, files = [], {}
    for minute, (label, seed) in enumerate((label, seed) for label in shares for seed in seeds):
        if label == "base" and seed != seeds[0]:
            continue
        record: Record = make.make_record(label, seed=seed, suite=suite, minute=minute)
        file = {(task, "acc"): answers(label, task, seed, shares[label]) for task in tasks}
        scores = tuple(
            Score(
                task=task,
                metric="acc",
                value=sum(file[task, "acc"].values()) / NUM_ITEMS,
                stderr=None,
                n=NUM_ITEMS,
                higher_is_better=True,
                task_version="1.0",
                num_fewshot=0,
                headline=True,
            )
            for task in tasks
        )
        files[record.uuid] = file
        records.append(record.model_copy(update={"scores": scores, "items": record.uuid}))
    return summarize(suite, Contents(tuple(records))), files


def test_labels_that_cannot_be_told_apart_share_a_letter() -> None:
    summary, files = make_summary({"full": 0.70, "lora": 0.69, "lisa": 0.40})
    page = markdown(tuple(comparison_blocks(summary, files.get)), Path())
    letters = {
        line.split("|")[1].strip(): line.split("|")[3].strip() for line in page.splitlines() if line.count("|") == 4
    }
    assert letters["full"] == letters["lora"] == "a"
    assert letters["lisa"] == "b"
    assert "signs of items" in page


def test_p_values_are_mcnemars_corrected_over_the_pairs_of_the_model() -> None:
    summary, files = make_summary({"full": 0.7, "lora": 0.6, "lisa": 0.55}, tasks=("boolq",))
    pairs = pairs_of(summary, "tiny", files.get)
    expected = []
    for pair in pairs:
        one, other = (
            next(run.record for row in summary.rows if row.label == label for run in row.runs)
            for label in (pair.first, pair.second)
        )
        a, b = (list(files[record.uuid]["boolq", "acc"].values()) for record in (one, other))
        expected.append(sign_p_value([np.array(b) - np.array(a)]))
    assert [pair.p_value for pair in pairs] == pytest.approx(holm(expected))
    assert {pair.result.test for pair in pairs} == {"McNemar, exact"}
    assert all(pair.smallest is not None and pair.smallest > 0 for pair in pairs)


def test_a_label_without_training_stands_for_every_seed() -> None:
    summary, files = make_summary({"base": 0.5, "full": 0.7}, seeds=(1, 2, 3))
    (pair,) = pairs_of(summary, "tiny", files.get)
    assert (pair.first, pair.second) == ("base", "full")
    assert pair.result.difference.num_seeds == 3
    assert pair.result.test == "paired over items and seeds"
    assert pair.result.difference.mean == pytest.approx(0.2, abs=0.08)


def test_equal_outcomes_say_nothing_of_what_could_be_found() -> None:
    summary, files = make_summary({"full": 2.0, "lora": 2.0})
    (pair,) = pairs_of(summary, "tiny", files.get)
    assert (pair.p_value, pair.smallest) == (1.0, None)


def test_without_items_the_report_has_no_such_section(tmp_path: Path) -> None:
    summary, files = make_summary({"full": 0.7, "lora": 0.6})
    assert comparison_blocks(summary, {}.get) == []
    assert "told apart" not in markdown(report_document(summary, {}), tmp_path)
    page = markdown(report_document(summary, {}, files.get), tmp_path)
    assert page.index("## Results") < page.index("## Which labels can be told apart") < page.index("## Notes")
