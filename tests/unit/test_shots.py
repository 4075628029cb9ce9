"""What lm-eval does with few-shot examples and several targets: refused where it shows the answer, else said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from pydantic import ValidationError

from harness.errors import HarnessError
from harness.evaluation import tasks as evaluation_tasks
from harness.evaluation.shots import (
    drawn_split,
    items_among_their_shots,
    metrics_behind_exact_match,
    refuse_leak,
    refuse_too_few,
    scored_split,
)
from harness.evaluation.tasks import load_tasks
from tests.unit.test_evaluation import EIGHT, read_rows, rows_folder, settings  # noqa: F401 - a fixture


def own_task(folder: Path, rows: dict[str, list[dict[str, Any]]], shots: int = 1, **config: Any) -> Task:
    """Return a task in lm-eval's own form over rows of a question and its answer."""
    splits = {}
    for split, of in rows.items():
        file = folder / f"{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in of))
        splits[split] = [str(file), None]
    values = {
        "task": "own",
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": ["\n"]},
        "dataset_kwargs": {"splits": splits},
        **config,
    }
    file = folder / "own.yaml"
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())
    file.write_text(text + "custom_dataset: !function harness.evaluation.tasks.read_splits\n")
    task: Task = TaskManager(include_defaults=False).load(str(file))["tasks"]["own"]
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=1)
    return task


def qa(*numbers: int) -> list[dict[str, Any]]:
    return [{"question": f"What is number {number}?", "answer": f"It is {number}."} for number in numbers]


LEAKS: dict[str, dict[str, Any]] = {
    "a test split alone": {"test_split": "test"},
    "a validation split alone": {"validation_split": "validation"},
    "drawn from the scored validation split": {"validation_split": "validation", "fewshot_split": "validation"},
    "drawn in another form": {
        **{"test_split": "test", "fewshot_split": "test"},
        "fewshot_config": {"split": "test", "process_docs": "other"},
    },
}
SAFE: dict[str, dict[str, Any]] = {
    "lm-eval keeps it out": {"test_split": "test", "fewshot_split": "test"},
    "training rows": {"test_split": "test", "training_split": "train"},
    "another split": {"test_split": "test", "fewshot_split": "validation"},
    "the validation split, where the test split is scored": {"test_split": "test", "validation_split": "validation"},
    "examples of its own": {
        "test_split": "test",
        "fewshot_config": {"sampler": "first_n", "samples": [{"question": "What is 0?", "answer": "It is 0."}] * 3},
    },
}


def of_config(folder: Path, config: dict[str, Any], shots: int = 2) -> Task:
    config = dict(config)
    fewshot = dict(config.get("fewshot_config", {}))
    other = fewshot.pop("process_docs", None)
    if "fewshot_config" in config:
        config["fewshot_config"] = fewshot
    rows = {"test": qa(1, 2, 3, 4), "validation": qa(5, 6, 7, 8), "train": qa(9, 10, 11, 12)}
    task = own_task(folder, rows, shots, **config)
    if other is not None:
        task.fewshot_cfg.process_docs = lambda docs: docs  # type: ignore[attr-defined]
    return task


@pytest.mark.parametrize("name", LEAKS)
def test_examples_from_the_scored_split_are_refused(name: str, tmp_path: Path) -> None:
    task = of_config(tmp_path, LEAKS[name])
    with pytest.raises(HarnessError, match="task 'own' draws its few-shot examples from the split that it scores"):
        refuse_leak("own", task)
    task.set_config(key="num_fewshot", value=0)
    refuse_leak("own", task)


@pytest.mark.parametrize("name", SAFE)
def test_examples_that_cannot_hold_the_question_are_taken(name: str, tmp_path: Path) -> None:
    task = of_config(tmp_path, SAFE[name])
    refuse_leak("own", task)
    for seed in range(20):
        task.set_fewshot_seed(seed=seed)
        task.build_all_requests()
        assert items_among_their_shots(task) == set()


def test_what_is_refused_would_have_shown_the_answer(tmp_path: Path) -> None:
    task = of_config(tmp_path, LEAKS["drawn from the scored validation split"], shots=3)
    task.build_all_requests()
    assert scored_split(task) == drawn_split(task) == "validation"
    shown = items_among_their_shots(task)
    assert shown
    for instance in task.instances:
        answer = f"It is {instance.doc['question'].split()[-1].strip('?')}."
        assert (answer in instance.args[0]) == (instance.doc_id in shown)


def test_a_question_that_stands_in_both_splits_is_counted(tmp_path: Path) -> None:
    task = own_task(tmp_path, {"test": qa(1, 2, 3), "train": qa(2, 2)}, 1, test_split="test", training_split="train")
    refuse_leak("own", task)
    task.build_all_requests()
    assert items_among_their_shots(task) == {1}
    none = own_task(tmp_path, {"test": qa(1, 2), "train": qa(2, 2)}, 0, test_split="test", training_split="train")
    none.build_all_requests()
    assert items_among_their_shots(none) == set()


@pytest.mark.parametrize(
    ("config", "shots", "most"),
    [
        ({"test_split": "test", "training_split": "train"}, 5, 4),
        ({"test_split": "test", "fewshot_split": "test"}, 4, 3),
        ({"test_split": "test", "fewshot_config": {"sampler": "first_n", "samples": qa(1, 2)}}, 3, 2),
    ],
    ids=["other rows", "the scored rows", "rows of its own"],
)
def test_more_shots_than_rows_are_refused(config: dict[str, Any], shots: int, most: int, tmp_path: Path) -> None:
    task = of_config(tmp_path, config, shots)
    with pytest.raises(HarnessError, match=f"too few for num_fewshot = {shots}; take {most} or less"):
        refuse_too_few("own", task)
    task.set_config(key="num_fewshot", value=most)
    refuse_too_few("own", task)
    task.build_all_requests()


@pytest.mark.parametrize(
    ("metrics", "targets", "behind"),
    [
        (("exact_match",), ["a", "b"], ()),
        (("exact_match", "bleu"), ["a", "b"], ("bleu",)),
        (("bleu", "exact_match"), ["a", "b"], ()),
        (("exact_match", "bleu"), "a", ()),
    ],
)
def test_metrics_that_get_the_answer_several_times_are_named(
    metrics: tuple[str, ...], targets: Any, behind: tuple[str, ...], tmp_path: Path
) -> None:
    named = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics]
    rows = [{"question": "q", "answer": targets}]
    task = own_task(tmp_path, {"test": rows}, 0, test_split="test", metric_list=named)
    assert metrics_behind_exact_match(task) == behind


def test_every_packaged_task_draws_from_other_rows_than_it_scores(
    rows_folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    loaded = load_tasks(settings(num_fewshot=2), rows_folder=rows_folder, datasets_cache=tmp_path, offline=True)
    assert set(loaded) == set(EIGHT)
    assert all(drawn_split(task) not in (None, scored_split(task)) for task in loaded.values())


def test_the_first_items_have_the_same_examples_under_any_limit(
    rows_folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    def prompts(limit: int | None) -> list[str]:
        wanted = settings(tasks=("arc_easy",), num_fewshot=2, limit=limit)
        task = load_tasks(wanted, rows_folder=rows_folder, datasets_cache=tmp_path, offline=True)["arc_easy"]
        task.build_all_requests()
        return [request.args[0] for request in task.instances]

    assert prompts(None)[: len(prompts(3))] == prompts(3)
    assert len(prompts(3)) == 12


def test_packaged_rows_never_stand_in_for_what_is_scored_and_drawn_from(
    rows_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager = evaluation_tasks._manager

    def drawing_from_itself(name: str) -> TaskManager:
        made = manager(name)
        made.task_index[name].cfg["fewshot_split"] = made.task_index[name].cfg["test_split"]  # type: ignore[index]
        return made

    monkeypatch.setattr(evaluation_tasks, "_manager", drawing_from_itself)
    with pytest.raises(HarnessError, match="from the split that it scores, 'test'"):
        load_tasks(settings(tasks=("arc_easy",)), rows_folder=rows_folder, datasets_cache=tmp_path, offline=True)
    assert read_rows(rows_folder / "arc_easy" / "scored.jsonl")


@pytest.mark.parametrize("limit", [1.0, 0.5, True, 2.0, "1.0"])
def test_a_limit_that_is_no_number_of_items_is_refused(limit: Any) -> None:
    with pytest.raises(ValidationError, match=r"limit"):
        settings(limit=limit)
    assert settings(limit=1).limit == 1
