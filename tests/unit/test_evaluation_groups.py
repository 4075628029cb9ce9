"""Groups: what the name of one stands for, and its scores against counting and against lm-eval's own group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from harness.errors import HarnessError
from harness.evaluation.groups import MMLU_FOLDER, STOCK, expand_tasks, is_group
from harness.evaluation.scoring import Evaluation, evaluate
from harness.expansion import load_suite
from harness.settings import EvaluationSettings

ITEMS = {
    "mmlu_abstract_algebra": 3,
    "mmlu_astronomy": 8,
    "mmlu_nutrition": 2,
    "mmlu_philosophy": 6,
    "mmlu_sociology": 5,
}
CATEGORIES = {
    "mmlu_stem": ("mmlu_abstract_algebra", "mmlu_astronomy"),
    "mmlu_other": ("mmlu_nutrition",),
    "mmlu_social_sciences": ("mmlu_sociology",),
    "mmlu_humanities": ("mmlu_philosophy",),
}


@pytest.fixture(scope="module")
def rows_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Subjects of several sizes, with answers that no model has in common over all of them."""
    folder = tmp_path_factory.mktemp("rows")
    for number, (task, items) in enumerate(ITEMS.items()):
        subject = task.removeprefix("mmlu_")
        for split, count in (("dev", 2), ("test", items)):
            rows = [
                {"question": f"{subject} {split} {i}?", "subject": subject, "choices": list("wxyz"), "answer": answer}
                for i, answer in enumerate((i * i + number) % 4 for i in range(count))
            ]
            file = folder / "mmlu" / subject / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(**changes: Any) -> EvaluationSettings:
    values = {"tasks": ("mmlu",), "subtasks": tuple(ITEMS), "rows": "packaged", "num_fewshot": 0}
    return EvaluationSettings(**{**values, **changes})


def scored(model: Path, rows_folder: Path, wanted: EvaluationSettings) -> Evaluation:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return evaluate(
        AutoModelForCausalLM.from_pretrained(model),
        AutoTokenizer.from_pretrained(model),
        wanted,
        rows_folder=rows_folder,
        datasets_cache=rows_folder / "cache",
        device="cpu",
        offline=True,
    )


def test_a_group_weighs_every_item_alike_and_its_categories_too(tiny_llama: Path, rows_folder: Path) -> None:
    found = scored(tiny_llama, rows_folder, settings())
    right: dict[str, list[float]] = {task: [] for task in ITEMS}
    for item in found.items:
        right[item["task"]].append(item["metrics"]["acc"])
    scores = {score.task: score for score in found.scores}
    assert {task: scores[task].value for task in ITEMS} == {task: sum(r) / len(r) for task, r in right.items()}
    assert len(set(ITEMS.values())) == len(ITEMS)
    for group, tasks in (CATEGORIES | {"mmlu": tuple(ITEMS)}).items():
        pooled = [value for task in tasks for value in right[task]]
        assert scores[group].value == pytest.approx(sum(pooled) / len(pooled), rel=1e-12)
        assert (scores[group].n, set(scores[group].subtasks)) == (len(pooled), set(tasks))
        assert (scores[group].metric, scores[group].num_fewshot, scores[group].task_version) == ("acc", 0, "2")
        assert scores[group].stderr is not None
    assert scores["mmlu"].value != pytest.approx(sum(scores[task].value for task in ITEMS) / len(ITEMS), abs=1e-3)
    assert [score.task for score in found.scores if score.headline] == ["mmlu"]
    assert [score.task for score in found.scores if score.subtasks] == [*CATEGORIES, "mmlu"]


def test_the_same_subjects_one_by_one_are_scored_as_ever(tiny_llama: Path, rows_folder: Path) -> None:
    alone = scored(tiny_llama, rows_folder, settings(tasks=tuple(ITEMS), subtasks=None))
    together = scored(tiny_llama, rows_folder, settings())
    assert all(score.headline and not score.subtasks for score in alone.scores)
    values = {score.task: score.value for score in together.scores}
    assert {score.task: score.value for score in alone.scores} == {task: values[task] for task in ITEMS}


def test_mmlu_is_lm_evals_group_of_57_subjects_in_four_categories() -> None:
    tasks = expand_tasks(load_suite("mmlu").evaluation)
    assert len(tasks) == len(set(tasks)) == 57
    manager = TaskManager(include_path=str(STOCK / MMLU_FOLDER), include_defaults=False)
    assert set(tasks) == set(manager.all_subtasks)
    small = expand_tasks(load_suite("mmlu-small").evaluation)
    assert len(small) == 4
    for category in CATEGORIES:
        assert is_group(category)
        members = expand_tasks(settings(tasks=(category,), subtasks=None))
        assert set(members) <= set(tasks)
        assert len(set(members) & set(small)) == 1
    assert not is_group("mmlu_anatomy")
    assert not is_group("piqa")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"subtasks": ("mmlu_astronmy",)}, "no group among the tasks holds 'mmlu_astronmy'; did you mean"),
        ({"tasks": ("piqa",)}, "no group among the tasks holds 'mmlu_abstract_algebra'"),
        ({"tasks": ("mmlu", "mmlu_anatomy"), "subtasks": None}, "task 'mmlu_anatomy' is asked twice"),
        ({"tasks": ("mmlu", "mmlu_stem"), "subtasks": None}, "is asked twice"),
    ],
)
def test_what_a_group_does_not_hold_or_holds_already_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(HarnessError, match=words):
        expand_tasks(settings(**changes))
