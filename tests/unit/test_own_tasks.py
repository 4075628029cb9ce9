"""Tasks of one's own: the same numbers as lm-eval's own evaluation of the same files, and what is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.utils
import pytest
from jinja2.sandbox import SandboxedEnvironment
from lm_eval.api.registry import aggregation_registry, filter_registry, metric_registry
from lm_eval.api.samplers import SAMPLER_REGISTRY
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from harness.catalogue.tasks import TaskPlaces
from harness.errors import HarnessError
from harness.evaluation import own_rules as rules
from harness.evaluation.own_loading import load_own
from harness.evaluation.own_tasks import OwnTasks, check_places
from harness.evaluation.scoring import Evaluation, evaluate
from harness.evaluation.tasks import load_tasks
from harness.settings import EvaluationSettings
from tests.own_tasks import CHOICES, GROUP, RIVERS, WRITES, lines, write


@pytest.fixture(autouse=True)
def _own_templates() -> Any:
    """Leave lm-eval's environment of templates as it was."""
    plain = lm_eval.utils.env
    yield
    lm_eval.utils.env = plain


def settings(*tasks: str, **changes: Any) -> EvaluationSettings:
    return EvaluationSettings(**{"tasks": tasks, "rows": "own", "batch_tokens": 512, **changes})


def places(*folders: Path, **changes: Any) -> TaskPlaces:
    return TaskPlaces(include_path=folders, **changes)


def scored(model: Path, folder: Path, cache: Path, wanted: EvaluationSettings) -> Evaluation:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return evaluate(
        AutoModelForCausalLM.from_pretrained(model),
        AutoTokenizer.from_pretrained(model),
        wanted,
        rows_folder=None,
        datasets_cache=cache,
        device="cpu",
        offline=True,
        places=places(folder),
    )


def theirs(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *tasks: str, **how: Any) -> dict[str, Any]:
    """Return what ``lm_eval.simple_evaluate`` finds with its own model; it looks for data where it is started."""
    for file in folder.rglob("*.yaml"):
        text = file.read_text().replace("capitals.jsonl", str(folder / "capitals.jsonl"))
        text = text.replace("data/shots.jsonl", str(folder / "data/shots.jsonl"))
        file.write_text(text.replace("rivers.csv", str(folder / "more/rivers.csv")))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "their-cache")
    found = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(model), batch_size=4, device="cpu"),
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=1,
        log_samples=True,
        **how,
    )
    assert found is not None
    return dict(found)


@pytest.mark.parametrize(
    ("tasks", "shots"),
    [
        (("capitals", "rivers"), None),
        (("capitals",), 2),
        (("writes", "texts"), None),
        (("geography",), None),
        (("atlas",), None),
    ],
)
def test_scores_are_those_of_simple_evaluate_on_the_same_files(
    tasks: tuple[str, ...], shots: int | None, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "tasks")
    ours = scored(tiny_llama, folder, tmp_path / "cache", settings(*tasks, num_fewshot=shots))
    right = theirs(tiny_llama, write(tmp_path / "theirs"), monkeypatch, *tasks, num_fewshot=shots)
    values = right["results"] | right.get("groups", {})
    checked = 0
    for score in ours.scores:
        metric, _, filtered = score.metric.partition(",")
        key = f"{metric},{filtered or 'none'}"
        assert score.value == pytest.approx(values[score.task][key], rel=1e-4, abs=1e-9), (score.task, key)
        stderr = values[score.task][f"{metric}_stderr,{filtered or 'none'}"]
        if score.stderr is not None:
            assert score.stderr == pytest.approx(stderr), (score.task, key)
        if score.task in right["versions"]:
            assert score.task_version == str(right["versions"][score.task])
        checked += 1
    theirs_too = sum("," in key and "_stderr" not in key for found in values.values() for key in found)
    assert checked == theirs_too > 0
    for task, samples in right["samples"].items():
        items = [item for item in ours.items if item["task"] == task]
        theirs_sorted = sorted(samples, key=lambda sample: sample["doc_id"])
        hashes = [(sample["doc_hash"], sample["prompt_hash"]) for sample in theirs_sorted if sample["filter"] != "x"]
        assert [(item["doc_hash"], item["prompt_hash"]) for item in items] == hashes


def test_a_group_stands_for_its_tasks_and_takes_their_place_in_the_average(tiny_llama: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks")
    found = {
        (score.task, score.metric): score
        for score in scored(tiny_llama, folder, tmp_path, settings("geography")).scores
    }
    assert {key for key, score in found.items() if score.headline} == {("geography", "acc")}
    assert found["geography", "acc"].subtasks == ("capitals", "rivers")
    assert (found["geography", "acc"].n, found["geography", "acc"].task_version) == (9, "2")
    assert (found["capitals", "acc"].num_fewshot, found["rivers", "acc"].num_fewshot) == (1, 0)
    assert found["geography", "acc"].value == pytest.approx(
        (5 * found["capitals", "acc"].value + 4 * found["rivers", "acc"].value) / 9
    )


def test_a_group_that_takes_no_mean_leaves_its_tasks_in_the_average(tiny_llama: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks", geography__yaml="group: geography\ntask: [capitals, rivers]\n")
    found = scored(tiny_llama, folder, tmp_path, settings("geography")).scores
    assert {(score.task, score.metric) for score in found if score.headline} == {("capitals", "acc"), ("rivers", "acc")}


@pytest.mark.parametrize(
    ("tasks", "metrics", "headlines"),
    [
        (("writes", "rivers"), None, {("writes", "exact_match,first-word"), ("rivers", "acc")}),
        (("writes",), {"writes": "exact_match"}, {("writes", "exact_match,first-word")}),
        (("rivers",), {"rivers": "acc_norm"}, {("rivers", "acc_norm")}),
        (("texts",), {"texts": "bits_per_byte"}, {("texts", "bits_per_byte")}),
    ],
)
def test_which_metric_enters_the_average_can_be_said(
    tasks: tuple[str, ...],
    metrics: dict[str, str] | None,
    headlines: set[tuple[str, str]],
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "tasks")
    found = scored(tiny_llama, folder, tmp_path, settings(*tasks, metrics=metrics)).scores
    assert {(score.task, score.metric) for score in found if score.headline} == headlines
    assert {score.unit for score in found if score.task == "texts"} <= {"points"}
    assert {score.unit for score in found if score.task != "texts"} <= {"fraction"}


def test_a_metric_that_a_task_has_not_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks")
    with pytest.raises(HarnessError, match="metrics: task 'rivers' has no metric 'exact_match'"):
        scored(tiny_llama, folder, tmp_path, settings("rivers", metrics={"rivers": "exact_match"}))
    with pytest.raises(HarnessError, match=r"metrics: 'river' is none of the tasks; did you mean 'rivers'"):
        scored(tiny_llama, folder, tmp_path, settings("rivers", metrics={"river": "acc"}))


def test_what_lm_eval_knows_itself_is_what_is_allowed() -> None:
    assert set(rules.METRICS) == set(metric_registry.keys())
    assert set(rules.AGGREGATIONS) == set(aggregation_registry.keys())
    assert set(rules.FILTERS) == set(filter_registry.keys()) - {"custom", "decontaminate"}
    assert set(rules.SAMPLERS) == set(SAMPLER_REGISTRY)


def test_every_key_of_a_task_is_allowed_or_refused_by_name() -> None:
    from dataclasses import fields

    from lm_eval.config.task import FewshotConfig, TaskConfig

    known = {field.name for field in fields(TaskConfig)}
    assert known <= {*rules.KEYS, *rules.CODE_KEYS}
    assert {*rules.KEYS, *rules.CODE_KEYS} - known == {"class", "group", "task_list", "include"}
    assert {field.name for field in fields(FewshotConfig)} - {"process_docs"} == set(rules.FEWSHOT_KEYS)


def changed(old: str, new: str, text: str = CHOICES) -> str:
    assert old in text
    return text.replace(old, new)


CODE = [
    ("process_docs: !function utils.process", r"capitals.yaml:\d+: process_docs: !function utils.process is code"),
    ("process_docs: utils.process", r"capitals.yaml:\d+: process_docs is a function, and a task's YAML runs none"),
    ("custom_dataset: !function os.getcwd", "!function os.getcwd is code"),
    ("class: !function utils.Task", "!function utils.Task is code"),
    ("class: utils.Task", r"class names a class of Python, and .* unless --trust-tasks names its folder"),
    ("process_results: utils.score", "process_results is a function"),
    ("unsafe_code: true", "unsafe_code has what the model writes run"),
    ("use_prompt: other.yaml:x", "use_prompt takes templates from elsewhere"),
    ("metadata: !!python/object/apply:os.getcwd []", "the tag tag:yaml.org,2002:python/object/apply:os.getcwd is not"),
    ("metadata: {version: !!python/name:os.getcwd }", "the tag tag:yaml.org,2002:python/name:os.getcwd is not known"),
    ("metric_list: [{metric: !function utils.score}]", "metric_list: !function utils.score is code"),
    ("metric_list: [{metric: ./score}]", r"metric_list: metric is './score'"),
    ("metric_list: [{metric: rouge}]", "metric_list: metric is 'rouge'"),
    ("metric_list: [{metric: acc, hf_evaluate: true}]", "hf_evaluate downloads and runs the code of a metric"),
    ("metric_list: [{metric: acc, aggregation: !function a.b}]", "!function a.b is code"),
    ("filter_list: [{name: x, filter: [{function: custom, filter_fn: a.b}]}]", "filter_list: function is 'custom'"),
    ("generation_kwargs: {custom_generate: ./here, trust_remote_code: true}", "generation_kwargs has no 'custom_gen"),
    ("generation_kwargs: {until: [1]}", r"generation_kwargs.until is \[1\]"),
    ("fewshot_config: {process_docs: utils.process}", "fewshot_config has no 'process_docs'"),
    ("fewshot_config: {sampler: !function utils.Sampler}", "!function utils.Sampler is code"),
    ("doc_to_audio: sound", "doc_to_audio is for models of sound"),
]


@pytest.mark.parametrize(("line", "said"), CODE)
@pytest.mark.parametrize("where", ["itself", "included", "a group"])
def test_code_is_refused_before_anything_is_loaded(line: str, said: str, where: str, tmp_path: Path) -> None:
    key = line.partition(":")[0]
    files = {"itself": {"capitals__yaml": f"{CHOICES}{line}\n"}, "included": {"_shared__yaml": f"{line}\n"}}
    member = json.dumps({"task": "capitals"})[:-1] + f", {line}}}"
    files["a group"] = {"geography__yaml": f"group: geography\ntask:\n  - {member}\n"}
    folder = write(tmp_path / "tasks", **files[where])
    (folder / "utils.py").write_text("raise AssertionError('it was run')\n")
    asked = "geography" if where == "a group" else "capitals"
    with pytest.raises(HarnessError) as caught:
        OwnTasks(places(folder)).identities(settings(asked))
    found = str(caught.value)
    assert "\n" not in found
    assert key in found or "geography.yaml:3: task: a group holds no code" in found
    if where == "itself":
        assert re.search(said, found), found
    elif where == "included":
        assert f"{folder / '_shared.yaml'}:1: " in found


def test_a_trusted_folder_may_run_its_code_and_the_code_is_in_the_identity(tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks", capitals__yaml=f"{CHOICES}process_docs: !function utils.first_two\n")
    (folder / "utils.py").write_text("def first_two(docs):\n    return docs.select([0, 1])\n")
    trusting = places(folder, trusted=(folder,))
    loaded = load_tasks(settings("capitals"), rows_folder=None, datasets_cache=tmp_path, offline=True, places=trusting)[
        "capitals"
    ]
    assert [doc["country"] for doc in loaded.eval_docs] == ["France", "Italy"]
    before = OwnTasks(trusting).identities(settings("capitals"))
    (folder / "utils.py").write_text("def first_two(docs):\n    return docs.select([1, 2])\n")
    after = OwnTasks(trusting).identities(settings("capitals"))
    assert before["task capitals"] != after["task capitals"]
    assert before["rows capitals"] == after["rows capitals"]


def test_trust_is_for_a_folder_of_tasks_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks")
    with pytest.raises(HarnessError, match="is none of the folders of tasks"):
        check_places(places(folder, trusted=(tmp_path,)))


@pytest.mark.parametrize(
    "template",
    [
        "{{ country.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ lipsum.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ '{0.__class__.__mro__}'.format(country) }}",
        "{{ country|attr('__class__')|attr('__mro__') }}",
    ],
)
@pytest.mark.parametrize("key", ["doc_to_text", "description"])
def test_a_template_does_not_reach_python(template: str, key: str, tmp_path: Path) -> None:
    kept = [line for line in CHOICES.splitlines(keepends=True) if not line.startswith(f"{key}:")]
    folder = write(tmp_path / "tasks", capitals__yaml="".join(kept) + f"{key}: {json.dumps(template)}\n")
    with pytest.raises(Exception, match=r"unsafe|undefined|no attribute") as caught:
        loaded = load_own(OwnTasks(places(folder)).task("capitals"), datasets_cache=tmp_path, offline=True)
        loaded.build_all_requests()
    if key == "doc_to_text":
        assert isinstance(caught.value, HarnessError)
        assert "capitals.yaml:15: doc_to_text cannot be rendered on row 0: " in str(caught.value)


def test_the_sandbox_renders_as_lm_eval_does(tmp_path: Path) -> None:
    plain = lm_eval.utils.env
    folder = write(tmp_path / "tasks")
    load_own(OwnTasks(places(folder)).task("capitals"), datasets_cache=tmp_path, offline=True)
    assert isinstance(lm_eval.utils.env, SandboxedEnvironment)
    row = {"a": "x\n", "choices": ["p", "q"], "n": 3}
    for template in (
        "{{a}}\n",
        "{{choices}}",
        "{{a|regex_replace('x', 'y')}}",
        "{% for c in choices %}{{c}};{% endfor %}",
    ):
        assert lm_eval.utils.apply_template(template, row) == plain.from_string(template).render(**row)
    assert set(lm_eval.utils.env.filters) == set(plain.filters)


FAULTS = [
    ("dataset_path: json", "dataset_path: pandas", "dataset_path = 'pandas': write a data set of the hub as OWNER"),
    ("dataset_path: json", "dataset_path: ./local.py", "dataset_path is './local.py', expected one of json, csv"),
    ("dataset_path: json", "dataset_path: ../tasks", "dataset_path is '../tasks'"),
    ("test: capitals.jsonl", "test: ../rows.jsonl", r"data_files: ../rows.jsonl is outside of the folder of tasks"),
    ("test: capitals.jsonl", "test: /etc/hostname", r"data_files: /etc/hostname is outside of the folder"),
    ("test: capitals.jsonl", "test: https://127.0.0.1/x", "'https://127.0.0.1/x' is no path of a file beside"),
    ("test: capitals.jsonl", "test: '*.jsonl'", r"'\*.jsonl' is no path of a file"),
    ("test: capitals.jsonl", "test: zip://a.jsonl::b.zip", "is no path of a file"),
    ("test: capitals.jsonl", "test: nowhere.jsonl", "there is no file nowhere.jsonl"),
    ("test: capitals.jsonl", "test: data", "there is no file data"),
    ("    train: data/shots.jsonl", "  trust_remote_code: true", "dataset_kwargs has no 'trust_remote_code'"),
    ("    train: data/shots.jsonl", "  storage_options: {}", "dataset_kwargs has no 'storage_options'"),
    ("test_split: test\n", "", "has neither test_split nor validation_split"),
    ("output_type: multiple_choice", "output_type: multiple_choices", "output_type is 'multiple_choices'"),
    ("doc_to_choice: \"{{choices}}\"\n", "", "output_type = multiple_choice needs doc_to_choice"),
    ("doc_to_target: answer\n", "", "the task has no doc_to_target"),
    ("doc_to_target: answer", "doc_to_targett: answer", r"has no key 'doc_to_targett'; did you mean 'doc_to_target'"),
    ("tag: atlas", "num_fewshot: -1", "num_fewshot is -1"),
    ("include: _shared.yaml", "include: ../../x.yaml", "x.yaml is outside of the folder of tasks"),
    ("include: _shared.yaml", "include: nowhere.yaml", "nowhere.yaml: there is no such file"),
    ("include: _shared.yaml", "include: data", "data: is no file"),
    ("include: _shared.yaml", "include: capitals.yaml", "include = 'capitals.yaml' goes round in a circle"),
    ("include: _shared.yaml", "include: 7", "include is 7, expected the path"),
    ("tag: atlas", "metadata: &a [*a]", "an anchor holds itself"),
    ("tag: atlas", "tag: atlas\ntag: more", "the key 'tag' stands twice"),
    ("tag: atlas", "metadata: {version: 2026-01-01}", "a date: put it in quotes"),
    ("tag: atlas", "metadata: {version: .nan}", "holds nan, expected a finite number"),
    ("tag: atlas", "metadata: {version: [}", r"capitals.yaml:3: is not YAML"),
    ("tag: atlas", "metadata: \"\x07\"", "is not YAML"),
    ("tag: atlas", "metadata: " + "[" * 5000, "nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), FAULTS)
def test_what_cannot_be_is_one_sentence_with_its_place(old: str, new: str, said: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks", capitals__yaml=changed(old, new))
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(HarnessError, match=said) as caught:
        OwnTasks(places(folder)).identities(settings("capitals"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_bomb_of_anchors_is_refused(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    folder = write(tmp_path / "tasks", capitals__yaml=CHOICES + bomb)
    with pytest.raises(HarnessError, match="holds over 200000 values with its aliases written out"):
        OwnTasks(places(folder)).identities(settings("capitals"))


def test_files_that_are_no_text_hide_nothing_but_what_they_define(tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks")
    (folder / "odd.yaml").write_bytes(b"task: odd\nmetadata: \xff\xfe\n")
    (folder / "folder.yaml").mkdir()
    own = OwnTasks(places(folder))
    assert own.identities(settings("capitals"))
    with pytest.raises(HarnessError, match=r"odd.yaml: is not UTF-8 text"):
        own.identities(settings("odd"))
    assert [fault for fault in own.faults() if "odd.yaml" in fault]


def test_links_that_leave_the_folder_are_refused_and_followed_where_it_is_trusted(tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks")
    (tmp_path / "rows.jsonl").write_text((folder / "capitals.jsonl").read_text())
    (folder / "capitals.jsonl").unlink()
    (folder / "capitals.jsonl").symlink_to(tmp_path / "rows.jsonl")
    with pytest.raises(HarnessError, match=r"capitals.jsonl is outside of the folder of tasks"):
        OwnTasks(places(folder)).identities(settings("capitals"))
    assert OwnTasks(places(folder, trusted=(folder,))).identities(settings("capitals"))
    (tmp_path / "far.yaml").write_text(CHOICES.replace("capitals", "far"))
    (folder / "far.yaml").symlink_to(tmp_path / "far.yaml")
    with pytest.raises(HarnessError, match=r"far.yaml is outside of the folder of tasks"):
        OwnTasks(places(folder)).identities(settings("far"))


@pytest.mark.parametrize(
    ("files", "asked", "said"),
    [
        ({"boolq__yaml": CHOICES.replace("capitals\n", "boolq\n")}, "boolq", "is the name of a task or a group"),
        ({"mmlu__yaml": CHOICES.replace("capitals\n", "mmlu_stem\n")}, "mmlu_stem", "that lm-eval has itself"),
        ({"ai2__yaml": GROUP.replace("geography", "ai2_arc")}, "ai2_arc", "that lm-eval has itself"),
        ({"again__yaml": CHOICES}, "capitals", r"'capitals' is defined twice, in .*again.yaml and in .*capitals.yaml"),
        ({"ring__yaml": "group: ring\ntask: [ring]\n"}, "ring", "group 'ring' holds itself"),
        ({"g__yaml": "group: g\ntask: ['../x']\n"}, "g", "group 'g' holds '../x', which is no name of a task"),
        ({"g__yaml": "group: g\ntask: [nothing]\n"}, "g", "holds 'nothing', which neither lm-eval nor .* has"),
        ({"x__yaml": CHOICES.replace("capitals\n", '"../x"\n')}, "../x", "'../x' is no name of a task"),
        ({"x__yaml": CHOICES.replace("capitals\n", '"a\\e[31mb"\n')}, "a\x1b[31mb", r"'a.x1b\[31mb' is no name"),
        ({"g__yaml": "group: g\ntask: []\n"}, "g", "group 'g' names no tasks"),
        ({"g__yaml": "group: g\ntask: [{task: piqa, num_fewshot: 1}]\n"}, "g", "sets num_fewshot of 'piqa'"),
        ({}, "capitels", r"define no task 'capitels'; did you mean 'capitals'"),
    ],
)  # fmt: skip
def test_a_name_means_one_thing(files: dict[str, str], asked: str, said: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks", **files)
    own = OwnTasks(places(folder))
    with pytest.raises(HarnessError, match=said):
        own.expand(asked)


def test_two_folders_with_one_name_are_refused(tmp_path: Path) -> None:
    own = OwnTasks(places(write(tmp_path / "a"), write(tmp_path / "b")))
    with pytest.raises(HarnessError, match="task 'capitals' is defined twice"):
        own.identities(settings("capitals"))


def test_a_folder_that_is_too_large_or_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HarnessError, match="there is no such folder"):
        check_places(places(tmp_path / "nowhere"))
    with pytest.raises(HarnessError, match="there is no such folder"):
        check_places(places(Path(__file__)))
    monkeypatch.setattr("harness.evaluation.own_index.MOST_FILES", 3)
    with pytest.raises(HarnessError, match="holds over 3 files: name the folder of tasks itself"):
        OwnTasks(places(write(tmp_path / "tasks"))).names()


EDITS: dict[str, tuple[str, str, str, set[str]]] = {
    "a template": ("capitals.yaml", "What is", "Which is", {"task capitals"}),
    "what is included": ("_shared.yaml", "3.0", "4.0", {"task capitals", "task rivers"}),
    "rows": ("capitals.jsonl", "Norway", "Sweden", {"rows capitals"}),
    "rows of examples": ("data/shots.jsonl", "Peru", "Cuba", {"rows capitals"}),
    "a group": ("geography.yaml", "{version: 2}", "{version: 3}", {"group geography"}),
    "what a group says": ("geography.yaml", "num_fewshot: 1", "num_fewshot: 2", {"group geography", "task capitals"}),
    "a comment": ("capitals.yaml", "tag: atlas", "tag: atlas  # of countries", set()),
    "a task that is not asked for": ("writes.yaml", "Capital of", "City of", set()),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_is_another_evaluation_and_a_move_is_none(what: str, tmp_path: Path) -> None:
    name, old, new, roles = EDITS[what]
    folder = write(tmp_path / "tasks")
    before = OwnTasks(places(folder)).identities(settings("geography"))
    (folder / name).write_text(changed(old, new, (folder / name).read_text()))
    after = OwnTasks(places(folder)).identities(settings("geography"))
    assert {role for role in before if before[role] != after[role]} == roles
    assert before.keys() == after.keys()
    moved = Path(folder.rename(tmp_path / "elsewhere"))
    assert OwnTasks(places(moved)).identities(settings("geography")) == after


def test_rows_of_an_edited_file_of_one_name_size_and_time_are_read_anew(tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks")
    file = folder / "capitals.jsonl"

    def countries() -> list[str]:
        task = load_own(OwnTasks(places(folder)).task("capitals"), datasets_cache=tmp_path / "cache", offline=True)
        return [doc["country"] for doc in task.eval_docs]

    before, times = countries(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_text(file.read_text().replace("Italy", "Malta"))
    os.utime(file, ns=times)
    assert [country for country, was in zip(countries(), before, strict=True) if country != was] == ["Malta"]


def test_groups_of_ones_own_may_hold_tasks_of_lm_eval(tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks", geography__yaml="group: geography\ntask: [capitals, piqa]\n")
    assert OwnTasks(places(folder)).expand("geography") == ("capitals", "piqa")
    with pytest.raises(HarnessError, match="rows = 'own', and task 'piqa' is lm-eval's: name its rows"):
        load_tasks(
            settings("geography"), rows_folder=None, datasets_cache=tmp_path, offline=True, places=places(folder)
        )


def test_tasks_of_one_yaml_differ_by_what_they_add(tmp_path: Path) -> None:
    more = 'include: capitals.yaml\ntask: capitals_of\ndoc_to_text: "Of {{country}}:"\n'
    folder = write(tmp_path / "tasks", other__yaml=more)
    own = OwnTasks(places(folder))
    assert own.task("capitals_of").config["doc_to_target"] == "answer"
    assert own.task("capitals_of").config["doc_to_text"] == "Of {{country}}:"
    assert lines([]) == "" and RIVERS and WRITES
