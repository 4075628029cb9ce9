"""docs/tasks.md, followed to the letter: its files, its suite, a run of it, and lm-eval's own numbers beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.utils
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from harness.commands._selection import select
from harness.commands.requests import SelectionRequest
from harness.engine.runner import execute
from harness.expansion import load_suite
from harness.task import RunTask

DOCUMENT = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
REST = """
name = "own"
version = 1
protocol = "own"
description = ""
models = ["mine"]
labels = ["base"]
seeds = [1]
[base_models.mine]
architecture = "LlamaForCausalLM"
folder = "{model}"
[train]
data = "alpaca-gpt4"
prompt = "plain"
loss_on = "answer"
packing = false
sequence_length = 64
batch_size = 2
num_steps = 4
learning_rate = 1e-3
lr_scheduler = "linear"
dtype = "fp32"
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tiny_llama: Path, tmp_path: Path) -> Path:
    (tmp_path / "tasks").mkdir()
    (yaml,), (rows,) = blocks("yaml"), blocks("json")
    (tmp_path / "tasks" / "capitals.yaml").write_text(yaml)
    (tmp_path / "tasks" / "capitals.jsonl").write_text(rows)
    (tmp_path / "tasks" / "shots.jsonl").write_text(rows.replace("capital", "city"))
    (tmp_path / "mine.toml").write_text(REST.format(model=tiny_llama) + blocks("toml")[0])
    return tmp_path


def test_a_run_of_the_documented_suite_has_the_scores_of_lm_eval(
    place: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(place / "cache"))
    plain = lm_eval.utils.env
    selection = select(SelectionRequest(suite=str(place / "mine.toml")))
    (spec,) = selection.specs
    task = RunTask(
        spec=spec,
        uuid="u",
        model=selection.models["mine"],
        model_folder=tiny_llama,
        rows_folder=None,
        own_tasks=selection.tasks,
        cache_folder=place / "cache",
        work_folder=place / "work",
        run_id=spec.run_id,
        offline=True,
    )
    record = execute(task, lambda *_: None)
    assert (record.status, record.reason) == ("ok", None)
    monkeypatch.setattr(lm_eval.utils, "env", plain)
    monkeypatch.chdir(place / "tasks")  # lm-eval takes paths of data from where it is started
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "their-cache")
    found: Any = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(tiny_llama), batch_size=4, device="cpu"),
        tasks=["capitals"],
        num_fewshot=2,
        task_manager=TaskManager(include_path=str(place / "tasks"), include_defaults=False),
        bootstrap_iters=1,
    )
    (score,) = record.scores
    assert (score.task, score.metric, score.n, score.num_fewshot, score.headline) == ("capitals", "acc", 3, 2, True)
    assert score.value == found["results"]["capitals"]["acc,none"]
    assert score.task_version == str(found["versions"]["capitals"]) == "1.0"
    assert {role for role in spec.sources if " " in role} == {"task capitals", "rows capitals"}


def test_every_other_table_of_the_document_is_one_that_a_suite_takes(place: Path) -> None:
    example, *others = blocks("toml")
    assert len(others) == 2
    for table in others:
        for name in ("rows.jsonl", "shots.jsonl"):
            (place / name).write_text("{}\n")
        text = example if table.startswith("[tasks") else example.replace("[evaluation]\n", table)
        text = text.replace("[evaluation]", f"{table}[evaluation]") if table.startswith("[tasks") else text
        (place / "other.toml").write_text(REST.format(model=place) + text)
        suite = load_suite(str(place / "other.toml"))
        assert suite.evaluation.metrics or suite.tasks.rows["boolq"].fewshot == place / "shots.jsonl"
