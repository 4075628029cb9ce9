"""What does not train is one run in a report and in a comparison, however many seeds it was recorded under."""

from __future__ import annotations

from typing import Any

import pytest

from harness.record import Record, Score
from harness.report.comparing.subjects import subjects_of_records
from harness.report.reading.joined import joined
from harness.report.reading.summary import summarize
from harness.store import Contents
from harness.suite import Suite
from tests.records import TRAIN, make_record, make_spec

SUITE = Suite.model_validate(
    {
        "name": "tiny",
        "version": 1,
        "protocol": "test",
        "description": "",
        "models": ["tiny"],
        "labels": ["base", "full"],
        "seeds": [1, 2, 3],
        "train": TRAIN.model_dump(),
        "evaluation": {"tasks": ["piqa"], "rows": "packaged-scored"},
    }
)


def score(value: float, task: str = "piqa") -> Score:
    return Score(
        task=task,
        metric="acc",
        value=value,
        stderr=None,
        n=10,
        higher_is_better=True,
        task_version="1",
        num_fewshot=0,
        headline=True,
    )


def base(seed: int, minute: int, **changes: Any) -> Record:
    spec = make_spec(label="base", method="base", train=None, seed=seed)
    values = {"uuid": f"b{seed}-{minute}", "minute": minute, "spec": spec, "scores": (score(0.5),)}
    return make_record(**{**values, **changes})


def full(seed: int) -> Record:
    return make_record(uuid=f"f{seed}", spec=make_spec(seed=seed), scores=(score(0.4 + 0.1 * seed),))


@pytest.mark.parametrize("seeds", [(1, 2, 3), (3, 2, 1), (2,), (7, 8)])
def test_base_under_several_seeds_is_one_run(seeds: tuple[int, ...]) -> None:
    records = [base(seed, minute) for minute, seed in enumerate(seeds)]
    summary = summarize(SUITE, Contents((*records, *map(full, (1, 2, 3)))))
    rows = {row.label: row for row in summary.rows}
    assert [run.record for run in rows["base"].runs] == [records[-1]]
    assert [run.seed for run in rows["full"].runs] == [1, 2, 3]
    said = [note for note in summary.notes if "What does not train is one run" in note]
    assert len(said) == (len(seeds) > 1)
    assert not said or f"records of other seeds: {len(seeds) - 1}." in said[0]


def test_a_failure_does_not_hide_an_outcome_of_another_seed() -> None:
    records = [base(1, 0), base(2, 1, status="failed", scores=())]
    assert [record.uuid for record in joined(records)] == ["b1-0"]


def test_scores_added_to_one_of_them_are_of_the_one_that_stays() -> None:
    records = [base(1, 0), base(2, 1)]
    added = make_record(uuid="e", minute=2, spec=records[0].spec, scores=(score(0.25, "boolq"),)).model_copy(
        update={"kind": "evaluation", "of": "b1-0"}
    )
    summary = summarize(SUITE, Contents((*records, added)))
    (run,) = next(row for row in summary.rows if row.label == "base").runs
    assert {found.task: found.value for found in run.scores} == {"piqa": 0.5, "boolq": 0.25}


def test_other_questions_environments_and_repeats_are_not_joined() -> None:
    other = make_spec(label="base", method="base", train=None, seed=2, suite_version=2)
    elsewhere = base(3, 3).model_copy(update={"environment_id": "e" * 16})
    records = [base(1, 0), base(1, 1), base(2, 2, spec=other), elsewhere, full(1), full(2)]
    assert joined(records) == records


def test_a_comparison_pairs_it_whatever_the_seeds() -> None:
    subjects = [subjects_of_records(side)[0] for side in ([base(1, 0), base(2, 1), base(3, 2)], [base(2, 5)])]
    found = [next(iter(side.values())).scores["piqa acc"] for side in subjects]
    assert [[sample.seed for sample in samples] for samples in found] == [[0], [0]]
