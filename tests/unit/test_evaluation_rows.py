"""Rows of files in the place of lm-eval's own, own tasks in a suite, and what is known of both before training."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval.utils
import pytest

from harness.catalogue.models import BaseModelSpec
from harness.catalogue.tasks import TaskPlaces, TaskRows
from harness.commands._readiness import _key
from harness.commands._selection import select
from harness.commands.requests import SelectionRequest, TasksRequest
from harness.engine.unchanged import check_scored
from harness.errors import HarnessError
from harness.evaluation.own_tasks import OwnTasks, check_places
from harness.evaluation.readiness import fault
from harness.evaluation.tasks import load_tasks
from harness.record import Score
from harness.remarks import remarks_of
from harness.report.reading.estimates import column_title
from harness.report.reading.summary import summarize
from harness.settings import EvaluationSettings
from harness.spec import RunSpec
from harness.store import Contents
from harness.suite import Suite
from harness.task import RunTask
from tests.own_tasks import CHOICES, lines, write
from tests.records import TRAIN, make_record, make_spec

CHOICES_OF = {"text": ["one", "two", "three"], "label": ["A", "B", "C"]}


@pytest.fixture(autouse=True)
def _own_templates() -> Any:
    """Leave lm-eval's environment of templates as it was."""
    plain = lm_eval.utils.env
    yield
    lm_eval.utils.env = plain


def questions(*numbers: int) -> list[dict[str, Any]]:
    return [{"question": f"Which is {n}?", "choices": CHOICES_OF, "answerKey": "A"} for n in numbers]


def file_of(folder: Path, name: str, *numbers: int) -> Path:
    (folder / name).write_text(lines(questions(*numbers)))
    return folder / name


def loaded(places: TaskPlaces, cache: Path, **changes: Any) -> Any:
    wanted = EvaluationSettings(**{"tasks": ("arc_easy",), "rows": "own", "num_fewshot": 0} | changes)
    return load_tasks(wanted, rows_folder=None, datasets_cache=cache, offline=True, places=places)["arc_easy"]


def prompts(task: Any) -> list[str]:
    task.build_all_requests()
    return [request.args[0] for request in task.instances if request.idx == 0]


def test_rows_of_a_file_are_asked_as_lm_eval_asks_its_own(tmp_path: Path) -> None:
    places = TaskPlaces(rows={"arc_easy": TaskRows(scored=file_of(tmp_path, "rows.jsonl", 1, 2, 3))})
    assert prompts(loaded(places, tmp_path)) == [f"Question: Which is {n}?\nAnswer:" for n in (1, 2, 3)]


def test_shots_come_from_the_file_of_shots_alone(tmp_path: Path) -> None:
    rows = TaskRows(scored=file_of(tmp_path, "rows.jsonl", 1, 2), fewshot=file_of(tmp_path, "shots.jsonl", 7, 8, 9))
    for prompt in prompts(loaded(TaskPlaces(rows={"arc_easy": rows}), tmp_path, num_fewshot=2)):
        *shots, asked = prompt.split("\n\n")
        assert len(shots) == 2 and all(re.match(r"Question: Which is [789]\?", shot) for shot in shots)
        assert asked.endswith("Answer:")


def test_there_are_no_shots_where_no_file_holds_any(tmp_path: Path) -> None:
    places = TaskPlaces(rows={"arc_easy": TaskRows(scored=file_of(tmp_path, "rows.jsonl", 1, 2, 3))})
    with pytest.raises(HarnessError, match="'arc_easy' has 0 rows to draw few-shot examples from, too few for num_few"):
        loaded(places, tmp_path, num_fewshot=2)


def test_parquet_is_read_as_json_lines_are(tmp_path: Path) -> None:
    import pandas

    pandas.DataFrame(questions(1, 2)).to_parquet(tmp_path / "rows.parquet")
    places = TaskPlaces(rows={"arc_easy": TaskRows(scored=tmp_path / "rows.parquet")})
    assert prompts(loaded(places, tmp_path)) == [f"Question: Which is {n}?\nAnswer:" for n in (1, 2)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "x"}\n', r"task 'arc_easy' cannot be scored on these rows .*; they have question, and its YAML"),
        ("", "cannot be read"),
        ("no json\n", "rows.jsonl: the rows of rows cannot be read"),
    ],
)
def test_rows_that_a_task_cannot_read_are_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(HarnessError, match=said) as caught:
        loaded(TaskPlaces(rows={"arc_easy": TaskRows(scored=tmp_path / "rows.jsonl")}), tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_rows_are_given_to_what_lm_eval_has_and_are_no_examples_of_themselves(tmp_path: Path) -> None:
    rows = file_of(tmp_path, "rows.jsonl", 1)
    (tmp_path / "rows.csv").write_text("question\n1\n")
    for given, said in (
        ({"arc_esy": TaskRows(scored=rows)}, r"lm-eval has no task 'arc_esy'"),
        ({"arc_easy": TaskRows(scored=tmp_path / "nowhere.jsonl")}, "arc_easy: there is no file .*nowhere.jsonl"),
        ({"arc_easy": TaskRows(scored=tmp_path)}, "there is no file"),
        ({"arc_easy": TaskRows(scored=tmp_path / "rows.csv")}, "is neither JSON, JSON Lines nor Parquet"),
        ({"arc_easy": TaskRows(scored=rows, fewshot=rows)}, "the few-shot examples are the rows that are scored"),
    ):
        with pytest.raises(HarnessError, match=said):
            check_places(TaskPlaces(rows=given))


SUITE = """
name = "own"
version = 1
protocol = "own"
description = ""
models = ["llama2-7b"]
labels = ["base"]
seeds = [1]
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
[tasks]
include_path = "tasks"
[tasks.rows]
arc_easy = "rows.jsonl"
[evaluation]
tasks = ["capitals", "arc_easy", "boolq"]
rows = "packaged-scored"
num_fewshot = 0
"""

OWN = '[tasks]\ninclude_path = "tasks"\n[tasks.rows]\narc_easy = "rows.jsonl"\n'


def suite_in(folder: Path, text: str = SUITE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "tasks")
    file_of(folder, "rows.jsonl", 1, 2)
    (folder / "own.toml").write_text(text)
    return folder / "own.toml"


def only(request: SelectionRequest) -> RunSpec:
    (spec,) = select(request).specs
    return spec


def test_a_suite_names_tasks_and_rows_beside_its_file_and_they_are_told_by_content(tmp_path: Path) -> None:
    spec = only(SelectionRequest(suite=str(suite_in(tmp_path / "a"))))
    assert {role for role in spec.sources if " " in role} == {"task capitals", "rows capitals", "rows arc_easy"}
    elsewhere = only(SelectionRequest(suite=str(suite_in(tmp_path / "b"))))
    assert (elsewhere.run_id, elsewhere.evaluation_id) == (spec.run_id, spec.evaluation_id)
    file_of(tmp_path / "b", "rows.jsonl", 1, 3)
    edited = only(SelectionRequest(suite=str(tmp_path / "b" / "own.toml")))
    assert edited.evaluation_id != spec.evaluation_id and edited.run_id != spec.run_id
    assert edited.training_id == spec.training_id


def test_without_tasks_of_ones_own_nothing_is_added_to_a_run(tmp_path: Path) -> None:
    plain = SUITE.replace('include_path = "tasks"\n[tasks.rows]\narc_easy = "rows.jsonl"\n', "").replace(
        '"capitals", ', ""
    )
    bare = plain.replace("[tasks]\n", "")
    assert only(SelectionRequest(suite=str(suite_in(tmp_path / "a", plain)))) == only(
        SelectionRequest(suite=str(suite_in(tmp_path / "b", bare)))
    )


def test_a_catalogue_and_the_command_line_name_the_same_tasks(tmp_path: Path) -> None:
    spec = only(SelectionRequest(suite=str(suite_in(tmp_path))))
    table = '[tasks]\ninclude_path = ["tasks"]\n[tasks.rows]\narc_easy = { scored = "rows.jsonl" }\n'
    (tmp_path / "mine.toml").write_text(table)
    bare = suite_in(
        tmp_path, SUITE.replace('[tasks]\ninclude_path = "tasks"\n[tasks.rows]\narc_easy = "rows.jsonl"\n', "")
    )
    by_catalogue = only(SelectionRequest(suite=str(bare), catalogue=tmp_path / "mine.toml"))
    assert by_catalogue.run_id == spec.run_id
    (tmp_path / "mine.toml").write_text('[tasks.rows]\narc_easy = "rows.jsonl"\n')
    request = SelectionRequest(suite=str(bare), catalogue=tmp_path / "mine.toml")
    with pytest.raises(HarnessError, match="there are no packaged rows of task 'capitals'"):
        select(request)
    folder = TasksRequest(include=(str(tmp_path / "tasks"),))
    assert only(replace(request, tasks=folder)).run_id == spec.run_id


def test_rows_of_ones_own_are_missed_before_anything_runs(tmp_path: Path) -> None:
    own = SUITE.replace('"packaged-scored"', '"own"')
    said = "rows = 'own', and task '{}' is lm-eval's: name its rows"
    with pytest.raises(HarnessError, match=said.format("boolq")):
        select(SelectionRequest(suite=str(suite_in(tmp_path / "a", own))))
    alone = own.replace(OWN, "").replace('"capitals", ', "")
    with pytest.raises(HarnessError, match=said.format("arc_easy")):
        select(SelectionRequest(suite=str(suite_in(tmp_path / "b", alone))))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"capitals", ', '"capitels", ', "there are no packaged rows of task 'capitels'"),
        ('include_path = "tasks"', 'include_path = "nowhere"', r"include_path: .*/nowhere: there is no such folder"),
        ('include_path = "tasks"', 'include_path = "own.toml"', "there is no such folder"),
        ('include_path = "tasks"', "include_path = 7", r"tasks.include_path is 7"),
        ('include_path = "tasks"', 'trusted = ["tasks"]', "has no setting 'trusted' in tasks"),
        ('arc_easy = "rows.jsonl"', 'arc_easy = { rows = "rows.jsonl" }', "tasks.rows.arc_easy"),
        ('arc_easy = "rows.jsonl"', '"../x" = "rows.jsonl"', "tasks.rows"),
        ('"capitals", ', '"../capitals", ', "evaluation.tasks.0 is '../capitals'"),
        ("num_fewshot = 0", 'metrics = { capitals = "a b" }', "evaluation.metrics.capitals is 'a b'"),
    ],
)
def test_what_a_suite_says_amiss_is_one_sentence(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in SUITE
    file = suite_in(tmp_path, SUITE.replace(old, new))
    with pytest.raises(HarnessError, match=said):
        select(SelectionRequest(suite=str(file)))


def run_task(model: Path, cache: Path, places: TaskPlaces, **changes: Any) -> RunTask:
    wanted = EvaluationSettings(**{"rows": "own", "num_fewshot": 0, "tasks": ("capitals",)} | changes)
    sources = {"train": "rows"} | OwnTasks(places).identities(wanted)
    spec = make_spec(evaluation=wanted, sources=sources)
    return RunTask(
        spec=spec,
        uuid="u",
        model=BaseModelSpec(name="tiny", architecture="LlamaForCausalLM", folder=model),
        model_folder=model,
        rows_folder=None,
        own_tasks=places,
        cache_folder=cache,
        work_folder=cache,
        run_id=spec.run_id,
        offline=True,
    )


def test_own_tasks_groups_and_rows_that_can_be_scored_have_no_fault(tiny_llama: Path, tmp_path: Path) -> None:
    rows = {"arc_easy": TaskRows(scored=file_of(tmp_path, "rows.jsonl", 1, 2))}
    places = TaskPlaces(include_path=(write(tmp_path / "tasks"),), rows=rows)
    tasks = ("geography", "writes", "arc_easy")
    metrics = {"writes": "exact_match", "capitals": "acc_norm"}
    assert fault(run_task(tiny_llama, tmp_path, places, tasks=tasks, metrics=metrics, num_fewshot=None)) is None


UNREADY = [
    ("{{country}}", "{{land}}", {}, r"capitals.yaml:13: doc_to_text cannot be rendered on row 0: Undefined"),
    ("{{country}}", "{{country", {}, r"doc_to_text cannot be rendered on row 0: TemplateSyntaxError"),
    ("doc_to_target: answer", "doc_to_target: 7", {}, r"doc_to_target of row 0 is 7, which is none of its 3 choices"),
    ("doc_to_target: answer", "doc_to_target: Oslo", {}, "doc_to_target of row 0 is 'Oslo'"),
    ('"{{choices}}"', "[]", {}, "capitals.yaml:1.: "),
    ('"{{choices}}"', '["", "x"]', {}, "doc_to_choice of row 0 gives"),
    ("test_split: test", "test_split: validation", {}, r"test_split = 'validation' is none of the splits of its rows"),
    ("fewshot_split: train", "fewshot_split: dev", {}, r"fewshot_split = 'dev' is none of the splits"),
    ("fewshot_split: train", "fewshot_split: test", {"num_fewshot": 9}, "5 rows to draw few-shot examples from, too"),
    ("    train: data/shots.jsonl\n", "", {}, "fewshot_split = 'train' is none of the splits of its rows"),
    ("test: capitals.jsonl", "test: empty.jsonl", {}, "rows"),
    ("test: capitals.jsonl", "test: capitals.yaml", {}, "the rows of test, train cannot be read"),
    ("tag: atlas", "", {"metrics": {"capitals": "f1"}}, r"task 'capitals' has no metric 'f1', and has acc, acc_norm"),
    ("tag: atlas", "", {"metrics": {"capital": "acc"}}, r"'capital' is none of the tasks; did you mean 'capitals'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "changes", "said"), UNREADY)
def test_what_cannot_be_scored_is_known_before_anything_trains(
    old: str, new: str, changes: dict[str, Any], said: str, tiny_llama: Path, tmp_path: Path
) -> None:
    assert old in CHOICES
    folder = write(tmp_path / "tasks")
    (folder / "empty.jsonl").write_text("")
    (folder / "capitals.yaml").write_text(CHOICES.replace(old, new))
    try:
        found = fault(run_task(tiny_llama, tmp_path / "cache", TaskPlaces(include_path=(folder,)), **changes))
    except HarnessError as error:
        found = str(error)
    assert found is not None and re.search(said, found), found
    assert "\n" not in found


def test_a_good_answer_is_not_kept_for_another_content(tiny_llama: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks")
    places = TaskPlaces(include_path=(folder,))
    before = _key(run_task(tiny_llama, tmp_path, places))
    assert before == _key(run_task(tiny_llama, tmp_path, places))
    (folder / "capitals.yaml").write_text(CHOICES.replace("What is", "Which is"))
    assert _key(run_task(tiny_llama, tmp_path, places)) != before


def test_a_task_that_changed_since_a_run_was_laid_out_is_not_scored(tiny_llama: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks")
    task = run_task(tiny_llama, tmp_path, TaskPlaces(include_path=(folder,)))
    check_scored(task)
    (folder / "capitals.yaml").write_text(CHOICES.replace("What is", "Which is"))
    with pytest.raises(HarnessError, match="task capitals has changed since the run was laid out"):
        check_scored(task)


SHA, OTHER = "a" * 64, "b" * 64


def score(task: str, **changes: Any) -> Score:
    values = {"task": task, "metric": "acc", "value": 0.5, "stderr": None, "n": 4, "higher_is_better": True}
    return Score(**{**values, "task_version": "1", "num_fewshot": 0, "headline": True, **changes})


def told(sources: dict[str, str], *tasks: str) -> list[str]:
    spec = make_spec(sources=sources, evaluation=EvaluationSettings(tasks=tasks, rows="own"))
    return [remark.sentence for remark in remarks_of(make_record(spec=spec, scores=tuple(map(score, tasks))))]


def test_rows_that_stand_in_for_lm_evals_are_said_of_every_run() -> None:
    sources = {
        "train": "rows",
        "rows arc_easy": f"scored/rows:{SHA}",
        "rows own": f"scored/test:{SHA}",
        "task own": "y",
    }
    said = f"rows of a file stand in for lm-eval's own: arc_easy (SHA-256 {SHA[:12]})"
    assert told(sources, "arc_easy", "own") == [said]
    assert told(sources, "own") == []


def test_rows_that_are_trained_on_and_scored_are_said() -> None:
    sources = {"train": f"file:{SHA}", "task own": "y", "rows own": f"scored/test:{SHA} train:{OTHER}"}
    assert told(sources, "own") == ["text of questions that rows = 'own' scores was read for training (own)"]
    assert told(sources | {"train": f"file:{SHA}:questions"}, "own")
    assert told(sources | {"train": f"file:{OTHER}"}, "own") == []  # examples of prompts are no scored rows


def shown(suite_tasks: tuple[str, ...], sources: dict[str, str], *scores: Score) -> list[tuple[str, bool]]:
    wanted = EvaluationSettings(tasks=suite_tasks, rows="own")
    spec = make_spec(evaluation=wanted, sources=sources)
    suite = Suite(
        name="tiny",
        version=1,
        protocol="test",
        description="",
        models=("tiny",),
        labels=("full",),
        seeds=(1,),
        train=TRAIN.model_dump(),
        evaluation=wanted,
    )
    summary = summarize(suite, Contents((make_record(spec=spec, scores=scores),), ()))
    return [(column_title(column), column.in_average) for column in summary.columns]


def test_a_heading_says_whose_rows_were_scored_and_which_metric() -> None:
    sources = {"rows arc_easy": f"scored/rows:{SHA}", "task own": "y"}
    found = shown(("arc_easy", "own"), sources, score("arc_easy"), score("own", metric="exact_match"))
    assert found == [("arc_easy on rows of a file", True), ("own exact_match", True)]


def test_a_group_without_a_mean_has_the_columns_of_its_tasks() -> None:
    sources = {"group atlas": "tag:x", "task one": "y", "task two": "y"}
    assert shown(("atlas",), sources, score("one"), score("two")) == [("one", True), ("two", True)]
    assert shown(("atlas", "more"), sources, score("one")) == [("more", True), ("one", True)]


def test_records_say_it_in_json(tiny_llama: Path, tmp_path: Path) -> None:
    task = run_task(tiny_llama, tmp_path, TaskPlaces(include_path=(write(tmp_path / "tasks"),)))
    again = RunTask.model_validate_json(task.model_dump_json())
    assert again == task
    assert json.loads(task.spec.model_dump_json())["sources"]["rows capitals"].startswith("scored/test:")
