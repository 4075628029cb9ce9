"""The base model is scored in the suite's precision; records of unlike precisions are never paired."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.catalogue.models import BaseModelSpec
from harness.errors import HarnessError
from harness.expansion import expand, load_suite
from harness.record import Record
from harness.report.comparing.compare import compare_sides
from harness.report.pages.pairs import pairs_of
from harness.report.reading.sides import Side
from harness.report.reading.summary import summarize
from harness.settings import TrainSettings
from harness.spec import RunSpec
from harness.store import Contents
from harness.suite import suite_names

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))
MODEL = BaseModelSpec(name="tiny", architecture="LlamaForCausalLM", hub_id="some/model", revision="0" * 40)


def runs(dtype: str | None, **more: Any) -> dict[str, RunSpec]:
    """Return base and full of a suite in a precision, by label."""
    suite = make.make_suite(labels=("base", "full"))
    train = {key: value for key, value in suite.train.items() if key != "dtype"}
    changes = {"train": train if dtype is None else train | {"dtype": dtype}, "labels": ("base", "full")} | more
    suite = suite.model_copy(update=changes)
    labels = ["base"] if dtype is None else suite.labels
    specs = expand(suite, models={"tiny": MODEL}, sources={}, labels=labels)
    return {spec.label: spec for spec in specs}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_base_has_the_precision_of_the_suite(dtype: str) -> None:
    specs = runs(dtype)
    assert {label: spec.dtype for label, spec in specs.items()} == {"base": dtype, "full": dtype}


def test_what_says_nothing_is_as_it_was() -> None:
    old, new = runs("fp32")["base"], runs("bf16")["base"]
    assert "base_dtype" not in old.asked() and new.asked()["base_dtype"] == "bf16"
    assert old.run_id == runs(None)["base"].run_id
    assert new.run_id != old.run_id
    before = new.model_copy(update={"base_dtype": None})
    assert before.run_id == old.run_id and before.dtype == "fp32"


def test_base_takes_a_precision_of_its_own_and_nothing_else_of_training() -> None:
    assert runs("bf16", settings={"base": {"dtype": "fp32"}})["base"].dtype == "fp32"
    suite = make.make_suite(labels=("base", "full"))
    asked = expand(suite, models={"tiny": MODEL}, sources={}, overrides={"dtype": "bf16"})
    assert {spec.label for spec in asked} == {"base[dtype=bf16]", "full[dtype=bf16]"}
    assert {spec.dtype for spec in asked} == {"bf16"}
    with pytest.raises(HarnessError, match=r"label 'base' .* has no setting 'batch_size'"):
        expand(suite, models={"tiny": MODEL}, sources={}, overrides={"batch_size": 3})
    with pytest.raises(HarnessError, match=r"dtype is 'fp16', expected one of fp32, bf16$"):
        runs("fp16", labels=("base",))


@pytest.mark.parametrize("name", suite_names())
def test_a_packaged_suite_scores_base_as_it_trains(name: str) -> None:
    suite = load_suite(name)
    if "base" in suite.labels:
        models = {model: MODEL.model_copy(update={"name": model}) for model in suite.models}
        specs = expand(suite, models=models, sources={}, labels=["base"])
        assert {spec.dtype for spec in specs} == {suite.train["dtype"]}


def of(label: str, dtype: str, **more: Any) -> Record:
    """Return a record of a run in a precision; of a base in fp32 as it was before there was the setting."""
    spec: dict[str, Any] = {"base_dtype": dtype if dtype != "fp32" else None}
    if label != "base":
        spec = {"train": TrainSettings.model_validate(make.TRAIN | {"dtype": dtype})}
    record: Record = make.make_record(label, spec=spec, **more)
    assert record.scored_dtype == dtype
    return record


def test_a_base_of_another_precision_is_left_out_of_the_tables_and_said_to_be() -> None:
    suite = make.make_suite(labels=("base", "lora"))
    new, old, trained = of("base", "bf16", minute=1), of("base", "fp32", minute=2), of("lora", "bf16", minute=0)
    summary = summarize(suite, Contents((trained, new, old)))
    assert [run.record for row in summary.rows for run in row.runs] == [new, trained]
    assert "1 record is left out of the tables: label base scored in fp32, where what was trained from tiny is" in (
        " ".join(summary.notes)
    )
    alone = summarize(suite, Contents((old,)))
    assert [run.record for run in alone.rows[0].runs] == [old]


@pytest.mark.parametrize(("full", "paired"), [("bf16", 3), ("fp32", 1)])
def test_labels_of_unlike_precisions_are_no_pair(full: str, paired: int) -> None:
    suite = make.make_suite(labels=("base", "lora", "full"))
    labels = {"base": "bf16", "lora": "bf16", "full": full}
    records = tuple(of(label, dtype, minute=minute) for minute, (label, dtype) in enumerate(labels.items()))
    records = tuple(record.model_copy(update={"items": record.uuid}) for record in records)
    files = {
        record.uuid: {
            (score.task, score.metric): {(score.task, i, ""): float(i < 40 * score.value) for i in range(40)}
            for score in record.scores
        }
        for record in records
    }
    pairs = pairs_of(summarize(suite, Contents(records)), "tiny", files.get)
    assert ("base", "lora") in [(pair.first, pair.second) for pair in pairs]
    assert len(pairs) == paired


@pytest.mark.parametrize("label", ["base", "full"])
def test_sides_of_unlike_precisions_are_not_comparable(label: str) -> None:
    old, new = Side("old", (of(label, "fp32"),)), Side("new", (of(label, "bf16", minute=1),))
    (cell,) = compare_sides(old, new).cells
    assert (cell.verdict, cell.basis) == ("not comparable", "precision of the weights: fp32 -> bf16")
