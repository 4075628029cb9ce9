"""Which records a report shows, which it leaves out, and what it says of these."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import HarnessError
from harness.record import Record
from harness.report.reading.summary import Summary, labels_of, summarize
from harness.settings import EvaluationSettings
from harness.store import Contents

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))


def contents(*records: Record) -> Contents:
    return Contents(tuple(sorted(records, key=lambda record: (record.started_at, record.uuid))))


def shown(summary: Summary) -> dict[str, list[str]]:
    return {row.label: [run.status for run in row.runs] for row in summary.rows}


def test_no_record_is_a_sentence_that_names_the_command() -> None:
    other = make.make_record("lora", suite=make.make_suite(name="another"))
    with pytest.raises(HarnessError, match=r"no record of suite 'quick'.*harness run --suite quick"):
        summarize(make.make_suite(), contents(other))


def test_every_run_that_the_suite_asks_for_is_there_with_its_status() -> None:
    suite = make.make_suite(labels=("base", "full", "lora", "galore"), seeds=(1, 2))
    records = [
        make.make_record("base", suite=suite),
        make.make_record("full", suite=suite, status="out_of_memory", reason="too big"),
        make.make_record("full", suite=suite, seed=2, status="refused", reason="no"),
        make.make_record("lora", suite=suite),
    ]
    assert shown(summarize(suite, contents(*records))) == {
        "base": ["ok"],  # a label without training runs once a model
        "full": ["out_of_memory", "refused"],
        "lora": ["ok", "absent"],
        "galore": ["absent", "absent"],
    }


def test_rows_follow_the_suite_with_sweeps_in_place_and_other_labels_after() -> None:
    suite = make.make_suite(labels=("lora", "base"), sweep={"lora": {"rank": [8, 64], "flag": [True]}})
    assert labels_of(suite, suite.models[0]) == ("lora[flag=true,rank=8]", "lora[flag=true,rank=64]", "base")
    records = [
        make.make_record(label, suite=suite) for label in ("owlore[rank=4]", "base", "a", "lora[flag=true,rank=64]")
    ]
    records.append(make.make_record("base", suite=suite, model="another"))
    rows = summarize(suite, contents(*records)).rows
    assert [(row.model, row.label) for row in rows] == [
        ("tiny", "lora[flag=true,rank=8]"),
        ("tiny", "lora[flag=true,rank=64]"),
        ("tiny", "base"),
        ("tiny", "a"),
        ("tiny", "owlore[rank=4]"),
        ("another", "base"),
    ]


def test_the_newest_outcome_of_a_run_counts_and_a_later_failure_does_not_hide_it() -> None:
    suite = make.make_suite(labels=("lora", "full"))
    records = [
        make.make_record("lora", minute=1, status="out_of_memory", reason="x"),
        make.make_record("lora", minute=2),
        make.make_record("lora", minute=3, status="failed", reason="x"),
        make.make_record("full", minute=1),
        make.make_record("full", minute=2, status="out_of_memory", reason="x"),
    ]
    summary = summarize(suite, contents(*records))
    assert shown(summary) == {"lora": ["ok"], "full": ["out_of_memory"]}
    assert "older records: 3" in " ".join(summary.notes)


def test_the_newest_environment_is_shown_and_the_other_is_counted_with_what_differs() -> None:
    other = make.CPU.model_copy(update={"packages": {"torch": "2.12.0", "lm-eval": "0.4.13"}})
    suite = make.make_suite(labels=("lora", "full"))
    records = [
        make.make_record("lora", minute=0, environment=other),
        make.make_record("full", minute=1, environment=other),
        make.make_record("lora", minute=2),
    ]
    summary = summarize(suite, contents(*records))
    assert shown(summary) == {"lora": ["ok"], "full": ["absent"]}
    assert [run.record.environment_id for run in summary.left_out if run.record] == [other.environment_id] * 2
    assert any(
        note.startswith("2 records are left out") and "torch 2.12.0 instead of 2.13.0" in note for note in summary.notes
    )


def test_runs_on_one_device_and_on_several_share_no_table() -> None:
    suite = make.make_suite(labels=("lora", "full"))
    records = [make.make_record("lora", environment=make.CPU.of_ranks(2)), make.make_record("full", minute=2)]
    summary = summarize(suite, contents(*records))
    assert shown(summary) == {"lora": ["absent"], "full": ["ok"]}
    assert any("num_ranks 2 instead of 1" in note for note in summary.notes)


def test_records_of_another_suite_version_or_protocol_are_not_mixed_in() -> None:
    suite = make.make_suite(labels=("lora", "full"), version=2)
    old = make.make_suite(labels=("lora", "full"))
    records = [
        make.make_record("lora", suite=suite),
        make.make_record("full", suite=old, minute=5),
        make.make_record("full", suite=suite, minute=6, spec={"protocol": "other"}),
    ]
    summary = summarize(suite, contents(*records))
    assert shown(summary) == {"lora": ["ok"], "full": ["absent"]}
    text = " ".join(summary.notes)
    assert "suite version 1 instead of 2" in text
    assert "protocol other instead of packaged-v1" in text


def test_a_shortened_trial_never_replaces_a_whole_run_and_alone_is_shown_as_one() -> None:
    suite = make.make_suite(labels=("base", "lora"))
    cut = {"evaluation": EvaluationSettings(tasks=make.TASKS, rows="packaged-scored", num_fewshot=0, limit=8)}
    trial = [
        make.make_record("base", minute=7, spec=cut),
        make.make_record("lora", minute=8, spec=cut | {"max_steps": 4}),
    ]
    alone = summarize(suite, contents(*trial))
    assert shown(alone) == {"base": ["ok"], "lora": ["ok"]}
    assert "cut or changed against the suite: limit 8 instead of none; at most 4 optimizer steps" in " ".join(
        alone.notes
    )
    both = summarize(suite, contents(make.make_record("lora", minute=0), *trial))
    assert shown(both) == {"base": ["absent"], "lora": ["ok"]}
    assert both.view.max_steps is None
    assert len(both.left_out) == 2


def test_seeds_with_other_settings_or_weights_under_the_same_name_are_not_averaged() -> None:
    suite = make.make_suite(labels=("lora",), seeds=(1, 2, 3))
    weights = {"name": "tiny", "source": "folder", "checksum": "f" * 64}
    records = [
        make.make_record("lora", suite=suite, seed=1, minute=0, spec={"config": {"rank": 4}}),
        make.make_record("lora", suite=suite, seed=2, minute=1, spec={"model": weights}),
        make.make_record("lora", suite=suite, seed=3, minute=2),
    ]
    summary = summarize(suite, contents(*records))
    assert shown(summary) == {"lora": ["absent", "absent", "ok"]}
    text = " ".join(summary.notes)
    assert "other settings of label lora" in text
    assert "other weights under the name tiny" in text


def test_labels_trained_on_different_copies_of_the_data_are_named() -> None:
    suite = make.make_suite(labels=("lora", "full"))
    other = {"sources": {"evaluation": "packaged", "train": "sha256:12"}}
    summary = summarize(suite, contents(make.make_record("lora"), make.make_record("full", spec=other)))
    assert "Not all labels saw the same train data packaged-train: packaged (lora); sha256:12 (full)." in summary.notes


def test_scores_added_later_join_their_run_and_stay_out_of_the_average() -> None:
    suite = make.make_suite(labels=("lora",))
    run = make.make_record("lora")
    later = make.make_record(
        "lora", minute=5, kind="evaluation", of=run.uuid, scores=make.make_scores("lora", 1, ("gsm8k",))
    )
    failed = make.make_record("lora", minute=6, kind="evaluation", of=run.uuid, status="failed", reason="no disk")
    lost = make.make_record("lora", minute=7, kind="evaluation", of="nobody")
    summary = summarize(suite, contents(run, later, failed, lost))
    column = summary.columns[-1]
    assert (column.task, column.metric, column.in_average) == ("gsm8k", "acc", False)
    assert [c.task for c in summary.columns if c.in_average] == list(make.TASKS)
    assert summary.rows[0].runs[0].score(column) is not None
    assert [(of, found.record) for of, found in summary.failed_evaluations] == [(run.uuid, failed)]
    assert any("whose run is not in the tables" in note for note in summary.notes)


def test_a_task_that_nothing_scored_has_its_column() -> None:
    suite = make.make_suite(labels=("lora",))
    summary = summarize(suite, contents(make.make_record("lora", status="failed", reason="x")))
    assert [(column.task, column.metric) for column in summary.columns] == [(task, None) for task in make.TASKS]
