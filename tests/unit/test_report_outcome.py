"""What a report says on top came out: what its tests say, and nothing beyond."""

from __future__ import annotations

from typing import Any

import pytest

from harness.report.pages.outcome import outcome_sentences
from harness.report.pages.pairs import Pair
from harness.report.reading.summary import Summary, summarize
from harness.report.statistics.pairs import Difference, PairResult
from harness.store import Contents
from tests.unit.test_report_tables import make


def summary_of(*records: Any, **changes: Any) -> Summary:
    return summarize(make.make_suite(**changes), Contents(records))


def pair(first: str, second: str, mean: float, p_value: float) -> Pair:
    result = PairResult(Difference(mean, 0.1, 39.0, 40, 1), p_value / 10, None, "signs of items", None)
    return Pair(first, second, result, p_value, None)


def test_labels_without_a_test_that_rejects_are_never_put_in_an_order() -> None:
    summary = summary_of(make.make_record("full"), labels=("full", "lora", "lisa"))
    pairs = [pair("full", "lora", 0.3, 0.06), pair("full", "lisa", -0.3, 0.051), pair("lora", "lisa", 0.1, 1.0)]
    said = " ".join(outcome_sentences(summary, {"tiny": pairs}))
    assert "None of the 3 pairs of labels can be told apart by their average." in said
    assert "above" not in said
    assert "told apart" not in " ".join(outcome_sentences(summary, {}))


def test_pairs_that_are_told_apart_are_named_by_which_is_above_and_the_others_counted() -> None:
    summary = summary_of(make.make_record("full"), labels=("full", "lora", "lisa"))
    pairs = [pair("full", "lora", 0.3, 0.04), pair("full", "lisa", -0.3, 0.01), pair("lora", "lisa", 0.1, 1.0)]
    (sentence,) = [one for one in outcome_sentences(summary, {"tiny": pairs}) if "apart" in one]
    assert sentence == ("Told apart by their average: full is above lisa; lora is above full; the other pair cannot.")


def test_many_pairs_are_counted() -> None:
    summary = summary_of(make.make_record("full"), labels=("full",))
    pairs = [pair("full", f"l{i}", 0.3, 0.001) for i in range(20)]
    (sentence,) = [one for one in outcome_sentences(summary, {"tiny": pairs}) if "apart" in one]
    assert sentence.endswith("l5 is above full and 14 pairs more.")


def test_runs_without_a_result_are_counted_by_what_became_of_them() -> None:
    records = (
        make.make_record("full", status="out_of_memory", reason="x"),
        make.make_record("lora", minute=1),
    )
    said = outcome_sentences(summary_of(*records, labels=("full", "lora", "lisa")), {})
    assert said[0] == "1 of 3 runs have a result; 1 out of memory, 1 not run."


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_range_of_memory_is_of_what_the_device_is_measured_by(device: str) -> None:
    environment = make.CPU if device == "cpu" else make.CUDA
    records = [
        make.with_memory(make.make_record(label, minute=i, environment=environment))
        for i, label in enumerate(("full", "lora"))
    ]
    said = outcome_sentences(summary_of(*records, labels=("full", "lora")), {})
    title = "Tracked peak" if device == "cpu" else "Peak memory"
    assert f"{title}: from 0.925 GiB (lora) to 2.42 GiB (full)." in said
    (loss,) = [one for one in said if one.startswith("Held-out loss")]
    assert loss.endswith("; before training 2.750 for all.")


def test_what_nothing_was_measured_of_is_not_said() -> None:
    said = outcome_sentences(summary_of(make.make_record("base"), labels=("base",)), {})
    assert said == ["1 run has a result: all that were asked for."]


def test_several_models_are_told_apart() -> None:
    records = [make.make_record("full", model=model, minute=i) for i, model in enumerate(("one", "two"))]
    said = outcome_sentences(summary_of(*records, labels=("full",), models=("one", "two", "three")), {})
    assert [one.partition(":")[0] for one in said[1:]] == ["one", "two"]
