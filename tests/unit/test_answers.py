"""What needs no new run: records that answer one, and kept weights that only need scoring."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.answers import answer, answers, kept_training
from harness.commands._finishing import are_there
from harness.commands._kept import AGAIN, ELSEWHERE, SCORE, TRAIN, from_kept, way_of, ways_sentences
from harness.record import Record, Score
from harness.report.reading.summary import summarize
from harness.settings import EvaluationSettings, MTBenchSettings
from harness.spec import RunSpec
from harness.store import Contents, Store
from harness.suite import Suite
from harness.task import RunTask
from tests.records import ENVIRONMENT, make_record, make_spec
from tests.records import TRAIN as TRAINING

ASKED = EvaluationSettings(tasks=("piqa", "boolq"), rows="packaged-scored", limit=20, num_fewshot=0)
HERE = ENVIRONMENT.model_copy(update={"training_checksum": "a" * 64})
MODEL = {"name": "tiny", "architecture": "LlamaForCausalLM", "hub_id": "a/b"}


def asked(spec: RunSpec | None = None, **changes: Any) -> RunSpec:
    """Return a spec whose evaluation is changed."""
    spec = spec or make_spec(evaluation=ASKED, sources={"train": "rows", "evaluation": "x"})
    return spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update=changes)})


def score(task: str, value: float, n: int = 20) -> Score:
    return Score(
        task=task,
        metric="acc",
        value=value,
        stderr=None,
        n=n,
        higher_is_better=True,
        task_version="1",
        num_fewshot=0,
        headline=True,
    )


def recorded(**changes: Any) -> Record:
    record = make_record(spec=asked(), scores=(score("piqa", 0.5), score("boolq", 0.6)))
    return record.model_copy(update={"environment": HERE, **changes})


def evaluation(of: Record, spec: RunSpec, **changes: Any) -> Record:
    record = make_record(uuid="later", minute=5, spec=spec)
    update = {"kind": "evaluation", "of": of.uuid, "run_id": of.run_id, "environment": HERE}
    return record.model_copy(update={**update, **changes})


@pytest.mark.parametrize(
    ("change", "answered"),
    [
        ({}, True),
        ({"batch_tokens": 64}, True),
        ({"limit": 3}, True),
        ({"limit": 20, "batch_tokens": 1}, True),
        ({"limit": 21}, False),
        ({"limit": None}, False),
        ({"tasks": ("piqa",)}, False),
        ({"tasks": ("boolq", "piqa")}, False),
        ({"num_fewshot": 1}, False),
        ({"fewshot_seed": 5}, False),
        ({"rows": "hub"}, False),
    ],
)
def test_a_record_answers_what_its_scores_hold(change: dict[str, Any], answered: bool) -> None:
    record = recorded()
    assert (answer([record], asked(**change), None) is record) == answered
    assert answers(record.evaluation_settings, asked(**change).evaluation) == answered
    assert asked(limit=3).evaluation_id != asked().evaluation_id == asked(batch_tokens=64).evaluation_id


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"label": "other"},
        {"config": {"update_in_backward": True}},
        {"train": TRAINING.model_copy(update={"learning_rate": 1e-4})},
        {"model": {"name": "tiny", "source": "folder", "checksum": "1"}},
        {"sources": {"train": "others", "evaluation": "x"}},
        {"sources": {"train": "rows", "evaluation": "y"}},
        {"max_steps": 3},
        {"suite_version": 2},
        {"files": {"update_in_backward": "f"}},
        {"code": {"method full": "plug 1.0"}},
    ],
)
def test_another_training_or_other_rows_are_not_answered(change: dict[str, Any]) -> None:
    spec = asked(limit=3).model_copy(update=change)
    assert answer([recorded()], spec, None) is None


def test_an_environment_and_a_retry_count_for_these_answers_too() -> None:
    record = recorded()
    assert answer([record], asked(limit=3), "elsewhere") is None
    assert answer([record], asked(limit=3), record.environment_id) is record
    assert answer([record], asked(limit=3), None, frozenset({"ok"})) is None
    assert answer([recorded(status="failed")], asked(limit=3), None) is None


def test_a_template_is_of_the_training_only_where_it_trains() -> None:
    bench = asked(mt_bench=MTBenchSettings(data="mt-bench", max_new_tokens=8))
    bench = bench.model_copy(update={"conversation": "llama-2", "code": {"template llama-2": "fschat 1"}})
    assert bench.training_id == asked().training_id
    assert bench.evaluation_id != bench.model_copy(update={"conversation": "chatml"}).evaluation_id
    train = TRAINING.model_copy(update={"prompt": "conversation"})
    spoken = [asked().model_copy(update={"train": train, "conversation": name}) for name in ("llama-2", "chatml")]
    assert spoken[0].training_id != spoken[1].training_id


def everywhere(_record: Record) -> bool:
    return True


def weights_in(folder: Path) -> Store:
    """Return a store with the kept weights that ``weights/x`` names."""
    kept = folder / "weights" / "x"
    kept.mkdir(parents=True)
    (kept / "config.json").write_text("{}")
    (kept / "model.safetensors").write_text("")
    return Store(folder)


def test_kept_weights_are_scored_where_only_the_evaluation_is_another(tmp_path: Path) -> None:
    store = weights_in(tmp_path)
    kept, wanted = recorded(weights="weights/x"), asked(tasks=("hellaswag",))
    assert kept_training([kept], wanted, HERE, everywhere) is kept
    assert way_of([kept], wanted, HERE, store) == SCORE
    assert way_of([recorded()], wanted, HERE, store) == AGAIN
    assert way_of([], wanted, HERE, store) == TRAIN
    assert way_of([kept], wanted.model_copy(update={"seed": 7}), HERE, store) == TRAIN
    elsewhere = HERE.model_copy(update={"training_checksum": "b" * 64, "source_checksum": "b" * 64})
    assert way_of([kept], wanted, elsewhere, store) == ELSEWHERE
    assert kept_training([kept.model_copy(update={"status": "diverged"})], wanted, HERE, everywhere) is None
    assert kept_training([kept], asked(mt_bench=MTBenchSettings(data="m", max_new_tokens=8)), HERE, everywhere) is None
    assert kept_training([kept], kept.spec, HERE, everywhere) is None, "a run that is asked for once more trains"
    assert ways_sentences([kept], [wanted], HERE, store, reached=True) == [
        "1 run trained before: scored from the kept weights, not trained again"
    ]
    assert ways_sentences([kept], [wanted], HERE, store, reached=False) == [
        "1 run to train again: kept weights are scored with --executor local alone"
    ]
    assert ways_sentences([recorded()], [wanted], HERE, store, reached=True) == [
        "1 run to train again: scored otherwise before, and there are no kept weights (--keep-weights)"
    ]


def test_weights_that_are_gone_are_promised_by_nothing(tmp_path: Path) -> None:
    store, wanted = weights_in(tmp_path), asked(tasks=("hellaswag",))
    older, newest = recorded(weights="weights/x"), recorded(weights="weights/y", uuid="newest")
    waiting = newest.model_copy(update={"status": "failed", "spec": wanted})
    there = partial(are_there, store)
    assert kept_training([older, newest], wanted, HERE, there) is older, "the newest that is still there"
    (tmp_path / "weights" / "x" / "model.safetensors").unlink()
    assert kept_training([older, newest], wanted, HERE, there) is None
    assert way_of([older, newest], wanted, None, store) == AGAIN
    assert way_of([waiting], wanted, None, store) == TRAIN
    assert ways_sentences([waiting], [wanted], HERE, store, reached=True) == []


def test_a_change_of_the_code_that_evaluates_scores_kept_weights() -> None:
    kept = recorded(weights="weights/x", environment_id=HERE.environment_id)
    now = HERE.model_copy(update={"source_checksum": "e" * 64})
    assert now.environment_id != HERE.environment_id
    assert answer([kept], kept.spec, now.environment_id) is None
    assert kept_training([kept], kept.spec, now, everywhere) is kept
    later = evaluation(kept, kept.spec, environment=now, environment_id=now.environment_id)
    assert answer([kept, later], kept.spec, now.environment_id) is later
    failed = later.model_copy(update={"status": "failed"})
    assert answer([kept, failed], kept.spec, now.environment_id) is None


@pytest.mark.parametrize("adapter", [False, True])
def test_the_task_takes_the_kept_weights(tmp_path: Path, adapter: bool) -> None:
    kept, wanted = recorded(weights="weights/x"), asked(tasks=("hellaswag",))
    folder = tmp_path / "weights" / "x"
    task = RunTask(
        spec=wanted,
        uuid="u",
        model=MODEL,  # type: ignore[arg-type]
        model_folder=tmp_path / "base",
        rows_folder=tmp_path,
        cache_folder=tmp_path,
        work_folder=tmp_path / "work",
        keep_weights=True,
        checkpoint_folder=tmp_path / "checkpoints",
        claim="claimed",
        run_id=wanted.run_id,
    )
    assert from_kept(task, Store(tmp_path), [kept], HERE) == task, "weights that are gone are trained again"
    (folder / "adapter").mkdir(parents=True) if adapter else folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert from_kept(task, Store(tmp_path), [kept], HERE) == task, "tensors that were deleted"
    (folder / "model.safetensors").write_text("")
    if adapter:
        assert from_kept(task, Store(tmp_path), [kept], HERE) == task, "an adapter that is no safetensors file"
        (folder / "adapter" / "adapter_model.safetensors").write_text("")
    found = from_kept(task, Store(tmp_path), [kept], HERE)
    assert (found.of, found.run_id, found.spec, found.claim) == (kept.uuid, kept.run_id, wanted, "claimed")
    assert found.model_folder == (tmp_path / "base" if adapter else folder)
    assert found.adapter_folder == (folder / "adapter" if adapter else None)
    assert not found.keep_weights
    assert found.checkpoint_folder is None


SUITE = Suite.model_validate(
    {
        "name": "tiny",
        "version": 1,
        "protocol": "test",
        "description": "",
        "models": ["tiny"],
        "labels": ["full"],
        "seeds": [1, 2],
        "train": TRAINING.model_dump(),
        "evaluation": {**ASKED.model_dump(), "tasks": ["piqa", "hellaswag"]},
    }
)


def test_a_run_scored_anew_stands_in_the_table_beside_one_that_was_trained_anew() -> None:
    kept, wanted = recorded(weights="weights/x"), asked(tasks=("piqa", "hellaswag"))
    later = evaluation(kept, wanted, scores=(score("piqa", 0.25), score("hellaswag", 0.75)))
    trained = make_record(uuid="two", minute=9, spec=wanted.model_copy(update={"seed": 2}), scores=later.scores)
    trained = trained.model_copy(update={"environment": HERE})
    for others in ((), (trained,)):
        summary = summarize(SUITE, Contents((kept, later, *others)))
        (row,) = summary.rows
        found = {run.seed: {s.task: s.value for s in run.scores} for run in row.runs if run.record is not None}
        assert found == {seed: {"piqa": 0.25, "hellaswag": 0.75} for seed in range(1, 2 + len(others))}
        assert not [note for note in summary.notes if "left out" in note or "does not train" in note]


def test_a_few_items_added_later_make_no_run_anew() -> None:
    record = recorded()
    later = evaluation(record, asked(tasks=("arc_easy",), limit=3), scores=(score("arc_easy", 0.1, 3),))
    suite = SUITE.model_copy(update={"evaluation": ASKED})
    (row,) = summarize(suite, Contents((record, later))).rows
    assert [run.record for run in row.runs if run.record] == [record]


def test_other_batch_tokens_and_more_items_of_the_same_questions_share_a_table() -> None:
    suite = SUITE.model_copy(update={"evaluation": ASKED})
    first = recorded()
    others = [asked(batch_tokens=64).model_copy(update={"seed": 2}), asked(limit=None).model_copy(update={"seed": 3})]
    records = [make_record(uuid=str(n), minute=n, spec=spec, scores=first.scores) for n, spec in enumerate(others, 1)]
    summary = summarize(suite, Contents((first, *records)))
    assert [run.record.uuid for run in summary.rows[0].runs if run.record] == ["u", "1", "2"]
    fewer = make_record(uuid="few", minute=0, spec=asked(limit=3).model_copy(update={"seed": 4}), scores=first.scores)
    summary = summarize(suite, Contents((fewer, first)))
    assert any("limit 3 instead of 20" in note for note in summary.notes)
