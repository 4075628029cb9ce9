"""Verdicts cell by cell: what is worse, what cannot be compared, what the tolerance alone decides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.record import Record
from harness.report.comparing.cells import Comparison
from harness.report.comparing.compare import compare_sides
from harness.report.comparing.page import CHARACTERS, comparison_json, comparison_markdown
from harness.report.comparing.tolerances import parse_tolerances
from harness.report.reading.sides import Side
from harness.settings import EvaluationSettings
from tests.comparing import NEW, NOISE, cell, compare, make, runs


def test_a_slowdown_beyond_its_tolerance_is_worse_and_one_within_is_not() -> None:
    old = runs("full", NOISE) + runs("lora", NOISE) + runs("lisa", NOISE)
    new = (
        runs("full", [1.06 * x for x in NOISE], later=10, environment=NEW)
        + runs("lora", [1.01 * x for x in NOISE], later=10, environment=NEW)
        + runs("lisa", [0.9 * x for x in NOISE], later=10, environment=NEW)
    )
    found = compare(old, new, "step_time:2%")
    assert [cell(found, "step time", label).verdict for label in ("full", "lora", "lisa")] == [
        "worse",
        "same",
        "improved",
    ]
    slow = cell(found, "step time")
    assert slow.change == pytest.approx(0.06, abs=1e-9)
    assert slow.p_value is not None and slow.p_value < 0.001
    assert slow.smallest is not None and 0.02 < slow.smallest < 0.06
    assert slow.basis == "5 against 5 values"
    assert found.fails and not found.is_empty


def test_with_a_single_value_the_tolerance_alone_decides_and_it_says_so() -> None:
    found = compare(runs("full", [1.0]), runs("full", [1.03], later=5, environment=NEW), "step_time:2%")
    assert cell(found, "step time").verdict == "worse"
    assert cell(found, "step time").basis == "single value: the tolerance alone decides"
    assert cell(found, "step time").p_value is None
    near = compare(runs("full", [1.0]), runs("full", [1.01, 1.02], later=5, environment=NEW), "step_time:2%")
    assert cell(near, "step time").verdict == "same"


def test_values_that_repeat_exactly_need_no_test() -> None:
    def with_peak(count: int, scale: float, **changes: Any) -> list[Record]:
        records = [make.with_memory(record) for record in runs("full", [1.0] * count, **changes)]
        peak = records[0].train.tracked_peak
        grown = peak.at_peak.model_copy(
            update={"other_bytes": peak.at_peak.other_bytes + int((scale - 1) * peak.at_peak.total_bytes)}
        )
        return [
            r.model_copy(
                update={
                    "train": r.train.model_copy(update={"tracked_peak": peak.model_copy(update={"at_peak": grown})})
                }
            )
            for r in records
        ]

    found = compare(with_peak(3, 1.0), with_peak(3, 1.05, later=9, environment=NEW), "tracked_peak:3%")
    assert cell(found, "tracked peak").verdict == "worse"
    assert "all alike: the tolerance alone decides" in cell(found, "tracked peak").basis
    within = compare(with_peak(3, 1.0), with_peak(3, 1.02, later=9, environment=NEW), "tracked_peak:3%")
    assert cell(within, "tracked peak").verdict == "same"


BY_SEED = (1.0e9, 1.3e9, 0.8e9, 1.1e9)


def with_state(bytes_by_seed: Sequence[float], *, later: int = 0, environment: Any = make.CPU) -> list[Record]:
    """One record a seed."""
    seeds = range(len(bytes_by_seed))
    records = [make.make_record("full", seed=seed, minute=later + seed, environment=environment) for seed in seeds]
    return [
        record.model_copy(
            update={"train": record.train.model_copy(update={"peak_optimizer_state_bytes": round(count)})}
        )
        for record, count in zip(records, bytes_by_seed, strict=True)
    ]


def test_bytes_are_compared_seed_by_seed() -> None:
    """By seed they differ by a quarter, between the sides by 4% on every seed: no test needs to find that."""
    new = with_state([1.04 * count for count in BY_SEED], later=9, environment=NEW)
    found = cell(compare(with_state(BY_SEED), new, "optimizer_state:3%"), "optimizer state, peak")
    assert found.verdict == "worse"
    assert found.change == pytest.approx(0.04)
    assert found.basis == "paired over 4 seeds; all alike: the tolerance alone decides"


def test_bytes_of_other_seeds_are_not_paired() -> None:
    new = with_state([1.04 * count for count in BY_SEED], later=9, environment=NEW)[:3]
    found = cell(compare(with_state(BY_SEED), new, "optimizer_state:3%"), "optimizer state, peak")
    assert found.basis == "4 against 3 values"
    assert found.verdict == "same"


def test_what_changed_in_the_environment_and_under_a_label_is_said_and_still_compared() -> None:
    old = runs("full", NOISE)
    new = runs("full", NOISE, later=9, environment=NEW, spec={"config": {"rank": 16, "update_in_backward": False}})
    found = compare(old, new, "step_time:2%")
    assert ("torch", "2.13.0", "2.14.0") in found.environment
    assert found.settings == (("quick / tiny / full", "config.rank", "8", "16"),)
    assert cell(found, "step time").verdict == "same"
    page = comparison_markdown(found)
    assert page.index("torch 2.13.0 -> 2.14.0") < page.index("| verdict")
    assert "config.rank 8 -> 16" in page


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"suite": make.make_suite(version=2)}, "suite version: 1 -> 2"),
        (
            {"environment": NEW.model_copy(update={"device_name": "another"})},
            "device: cpu: test processor -> cpu: another",
        ),
        ({"environment": NEW.model_copy(update={"num_threads": 8})}, "CPU threads: 2 -> 8"),
        ({"environment": NEW.of_ranks(2)}, "device: cpu: test processor -> cpu: 2 x test processor"),
        ({"spec": {"max_steps": 5}}, "max_steps: none -> 5"),
        (
            {
                "spec": {
                    "evaluation": EvaluationSettings(tasks=make.TASKS, rows="packaged-scored", num_fewshot=0, limit=9)
                }
            },
            "evaluation.limit: None -> 9",
        ),
        (
            {"spec": {"model": {"name": "tiny", "source": "packaged:tiny", "checksum": "a" * 64}}},
            f"weights.checksum: {'e' * 64} -> {'a' * 64}",
        ),
    ],
)
def test_another_question_or_device_is_not_comparable_and_said(changes: dict[str, Any], said: str) -> None:
    found = compare(runs("full", NOISE), runs("full", [2 * x for x in NOISE], later=9, **changes))
    (only,) = found.cells
    assert only.verdict == "not comparable"
    assert said in only.basis
    assert not found.fails
    assert found.is_empty


def test_another_version_of_a_task_is_not_comparable() -> None:
    old, new = make.make_record("full"), make.make_record("full", minute=5, environment=NEW)
    scores = tuple(s.model_copy(update={"task_version": "2.0"}) if s.task == "piqa" else s for s in new.scores)
    found = compare([old], [new.model_copy(update={"scores": scores})])
    assert cell(found, "piqa acc").verdict == "not comparable"
    assert cell(found, "piqa acc").basis == "task version: 1.0 -> 2.0"
    assert cell(found, "boolq acc").verdict == "same"
    assert cell(found, "average of 7 tasks").verdict == "same"


def test_runs_that_fail_are_fixed_or_go_missing_are_told_apart() -> None:
    old = [
        make.make_record("full", minute=0),
        make.make_record("lora", minute=1, status="failed", reason="a bug"),
        make.make_record("lisa", minute=2),
        make.make_record("galore", minute=3, status="out_of_memory", reason="needs 9 GiB"),
        make.make_record("owlore", seed=1, minute=4),
        make.make_record("owlore", seed=2, minute=5),
    ]
    new = [
        make.make_record("full", minute=10, status="out_of_memory", reason="needs 12 GiB", environment=NEW),
        make.make_record("lora", minute=11, environment=NEW),
        make.make_record("galore", minute=13, status="refused", reason="too large", environment=NEW),
        make.make_record("owlore", seed=1, minute=14, environment=NEW),
        make.make_record("owlore", seed=2, minute=15, status="interrupted", reason="stopped", environment=NEW),
        make.make_record("base", minute=16, environment=NEW),
    ]
    found = compare(old, new)
    verdicts = {
        label: cell(found, "run", label).verdict for label in ("full", "lora", "lisa", "galore", "owlore", "base")
    }
    assert verdicts == {
        "full": "failed",
        "lora": "fixed",
        "lisa": "missing",
        "galore": "same",
        "owlore": "missing",
        "base": "new",
    }
    assert cell(found, "run").basis == "seed 1: ok -> out of memory (needs 12 GiB)"
    assert found.fails


def test_records_that_both_sides_hold_are_the_baseline_and_the_added_ones_the_candidate() -> None:
    old = runs("full", NOISE)
    added = runs("full", [1.1 * x for x in NOISE], later=9)
    found = compare(old, old + added, "step_time:2%")
    assert cell(found, "step time").verdict == "worse"
    assert cell(found, "step time").basis == "5 against 5 values"
    same = compare(old, old, "step_time:2%")
    assert [c.verdict for c in same.cells] == ["not measured again"]
    assert (same.is_stale, same.fails) == (True, False)


def test_a_label_that_was_measured_again_is_judged_beside_one_that_was_not() -> None:
    old = runs("full", NOISE) + runs("lora", NOISE, later=9)
    found = compare(old, old + runs("lora", NOISE, later=20, environment=NEW), "step_time:2%")
    assert cell(found, "run").verdict == "not measured again"
    assert cell(found, "step time", "lora").verdict == "same"
    assert (found.is_stale, found.is_empty, found.fails) == (False, False, False)


def test_what_vanished_is_no_pass() -> None:
    """A label, a model, a seed, a task and a measure that the baseline had."""
    old = [make.make_record(label, seed=seed, minute=seed) for label in ("full", "lora") for seed in (1, 2)]
    new = [
        make.make_record(label, seed=seed, minute=9 + seed, environment=NEW)
        for label in ("full", "lora")
        for seed in (1, 2)
    ]
    whole = compare(old, new)
    assert not whole.fails
    without_label = compare(old, [record for record in new if record.label != "lora"])
    assert (cell(without_label, "run", "lora").verdict, without_label.fails) == ("missing", True)
    without_seed = compare(old, [record for record in new if record.spec.seed != 2])
    assert {c.key[2] for c in without_seed.cells if c.verdict == "missing"} == {"full", "lora"}
    assert without_seed.fails
    lost = compare(old, old[:-1])
    assert (cell(lost, "run", "lora").verdict, cell(lost, "run").verdict) == ("missing", "not measured again")
    assert "seed 2" in cell(lost, "run", "lora").basis
    assert lost.fails
    benchmarks = rounds("b.py::test_a", NOISE)
    both = {**benchmarks, "benchmarks": benchmarks["benchmarks"] + rounds("b.py::test_b", NOISE)["benchmarks"]}
    slower = rounds("b.py::test_a", [1.001 * x for x in NOISE])
    assert benchmarked(both, slower).fails
    assert not benchmarked(slower, both).fails


def test_a_score_that_is_no_number_has_vanished() -> None:
    old, new = make.make_record("full"), make.make_record("full", minute=5, environment=NEW)
    broken = new.scores[0].model_copy(update={"value": float("nan")})
    found = compare([old], [new.model_copy(update={"scores": (broken, *new.scores[1:])})])
    assert (cell(found, "boolq acc").verdict, found.fails) == ("missing", True)


def test_runs_that_have_no_result_on_either_side_are_nothing_to_look_at() -> None:
    old = make.make_record("full", status="failed", reason="why")
    new = make.make_record("full", status="failed", reason="why", minute=5, environment=NEW)
    found = compare([old], [new])
    assert [c.verdict for c in found.cells] == ["same"]
    assert found.is_empty


def test_of_a_side_the_newest_environment_counts_and_the_rest_is_noted() -> None:
    old = runs("full", [5.0] * 3, environment=NEW) + runs("full", NOISE, later=9)
    found = compare(old, runs("full", NOISE, later=20, environment=NEW), "step_time:2%")
    assert cell(found, "step time").verdict == "same"
    assert found.notes == ("old: 3 runs left out, of an older environment.",)


def test_what_only_one_side_measured_is_missing_or_new() -> None:
    old, new = make.make_record("full"), make.make_record("full", minute=5, environment=NEW)
    found = compare([old], [new.model_copy(update={"scores": new.scores[1:]})])
    assert (cell(found, "boolq acc").verdict, cell(found, "boolq acc").basis) == ("missing", "not scored")
    back = compare([old.model_copy(update={"train": None})], [new], "step_time:2%")
    assert (cell(back, "step time").verdict, cell(back, "step time").basis) == ("new", "not measured")


def test_the_level_is_shared_between_metrics_so_that_tasks_do_not_take_it() -> None:
    old = runs("full", NOISE) + runs("lora", NOISE)
    new = runs("full", NOISE, later=9, environment=NEW) + runs("lora", NOISE, later=20, environment=NEW)
    found = compare(old, new, "step_time:2%,score:1pt")
    time, task = cell(found, "step time"), cell(found, "piqa acc")
    assert time.level == pytest.approx(0.05 / 2 / 2)
    assert task.level is None or task.level < time.level


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step_tme:2%", "there is no metric 'step_tme'; did you mean 'step_time'?"),
        ("step_time", "expected NAME:TOLERANCE"),
        ("step_time:2", "expected a percentage, such as 2%"),
        ("step_time:1pt", "expected a percentage, such as 2%"),
        ("score:1%", "expected points, such as 1pt"),
        ("step_time:-1%", "of at least 0"),
        ("step_time:nan%", "of at least 0"),
        ("score:1pt,score:2pt", "'score' is there twice"),
        ("", "expected NAME:TOLERANCE"),
    ],
)
def test_a_wrong_tolerance_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(HarnessError, match=r"^--fail-on") as error:
        parse_tolerances(text)
    assert said in str(error.value)


def rounds(
    fullname: str, times: Sequence[float] | None, mean: float = 1.0, brand: str = "a processor"
) -> dict[str, Any]:
    stats = {"mean": mean} if times is None else {"mean": mean, "data": list(times)}
    return {
        "machine_info": {"python_version": "3.11.7", "machine": "x86_64", "cpu": {"brand_raw": brand, "count": 2}},
        "commit_info": {"id": "a" * 40, "dirty": False},
        "version": "5.1.0",
        "benchmarks": [{"group": None, "fullname": fullname, "stats": stats}],
    }


def benchmarked(old: dict[str, Any], new: dict[str, Any], fail_on: str | None = None) -> Comparison:
    return compare_sides(Side("old", benchmarks=(old,)), Side("new", benchmarks=(new,)), fail_on)


def test_rounds_of_pytest_benchmark_are_samples_and_a_lone_mean_is_a_single_value() -> None:
    slow = [1.1 * x for x in NOISE]
    found = benchmarked(rounds("b.py::test_a", NOISE), rounds("b.py::test_a", slow))
    assert [c.verdict for c in found.cells] == ["worse"]
    assert found.cells[0].basis == "5 against 5 values"
    alone = benchmarked(rounds("b.py::test_a", None), rounds("b.py::test_a", None, mean=1.04))
    assert (alone.cells[0].verdict, alone.cells[0].basis) == ("same", "single value: the tolerance alone decides")
    other = benchmarked(rounds("b.py::test_a", NOISE), rounds("b.py::test_a", slow, brand="another"))
    assert other.cells[0].verdict == "not comparable"


def test_records_and_benchmarks_are_not_compared_with_each_other() -> None:
    with pytest.raises(HarnessError, match="compare like with like"):
        compare_sides(Side("old", benchmarks=(rounds("a", NOISE),)), Side("new", tuple(runs("full", NOISE))))


def test_the_page_is_short_worst_first_and_fits_a_comment() -> None:
    old, new = [], []
    for i in range(700):
        old += runs(f"label{i}", [1.0])
        new += runs(f"label{i}", [1.0 + i / 1000], later=9, environment=NEW)
    found = compare(old, new, "step_time:2%")
    page = comparison_markdown(found)
    assert len(page) <= CHARACTERS
    assert page.startswith("## harness compare: 679 worse, 21 same")
    assert page.index("label699") < page.index("label698 ") < page.index("<details>")
    assert "more rows are left out here; `--format json` has all." in page
    value = json.loads(comparison_json(found))
    assert len(value["cells"]) == len(found.cells)
    assert value["cells"][0]["label"] == "label699"
    assert value["fails"] is True
