"""``harness evaluate``: which run it takes, on which base, and what it says where it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.models import BaseModelSpec, load_models
from harness.catalogue.tasks import TaskPlaces
from harness.commands import _executor
from harness.commands import evaluate as command
from harness.commands.requests import AssetsRequest, TasksRequest
from harness.errors import HarnessError
from harness.evaluation.own_tasks import OwnTasks
from harness.preparing.assets import resolve_model
from harness.record import Record
from harness.runs.executor import Runs, Tally
from harness.settings import EvaluationSettings
from harness.store import Store
from harness.task import RunTask
from tests.own_tasks import write as write_tasks
from tests.records import ENVIRONMENT, make_record, make_spec

NAME = "smollm2-135m"
SPEC = load_models()[NAME]
ROWS = EvaluationSettings(tasks=("piqa",), rows="hub")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[RunTask]:
    """The tasks that the command would have had done."""
    tasks: list[RunTask] = []

    class Machine:
        def __init__(self, devices: Any) -> None:
            pass

        def run(self, runs: Runs, watcher: Any) -> Tally:
            tasks.extend(runs.tasks)
            return Tally(())

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_executor, "probe_environment", lambda variables: ENVIRONMENT)
    monkeypatch.setattr(command, "LocalMachine", Machine)
    return tasks


def kept(folder: Path, model: Path, *, adapter: bool, recorded: Path | None = None, **changes: Any) -> Record:
    """Return the stored record of a run whose weights, or adapter, were kept."""
    identity = resolve_model(SPEC, model).identity()
    spec = make_spec(
        model=identity, evaluation=ROWS, sources={"evaluation": "hub"}, label="lora" if adapter else "full"
    )
    weights = folder / "weights" / "w"
    weights.mkdir(parents=True)
    if adapter:
        from safetensors.numpy import save_file

        (weights / "adapter").mkdir()
        save_file({}, weights / "adapter" / "adapter_model.safetensors")
        (weights / "base.json").write_text(json.dumps({"model": NAME, "folder": str(recorded or model)}))
    else:
        shutil.copytree(model, weights, dirs_exist_ok=True)
    record = make_record(spec=spec, weights="weights/w", **changes)
    Store(folder).append(record)
    return record


def evaluate(record: Record, folder: Path, *tasks: str, **more: Any) -> int:
    return command.evaluate(record.run_id, tasks, AssetsRequest(offline=True), results=folder, **more)


def test_the_base_of_an_adapter_is_found_where_it_was(asked: list[RunTask], tiny_llama: Path, tmp_path: Path) -> None:
    record = kept(tmp_path, tiny_llama, adapter=True)
    evaluate(record, tmp_path, "piqa")
    (task,) = asked
    assert (task.model_folder, task.of) == (tiny_llama, record.uuid)
    assert task.adapter_folder == tmp_path / "weights" / "w" / "adapter"


def test_the_base_can_be_named_where_it_was_moved(asked: list[RunTask], tiny_llama: Path, tmp_path: Path) -> None:
    record = kept(tmp_path, tiny_llama, adapter=True, recorded=tmp_path / "gone")
    with pytest.raises(HarnessError, match=rf"/gone, which is no longer there: name .* with --model {NAME}=PATH$"):
        evaluate(record, tmp_path, "piqa")
    moved = Path(shutil.copytree(tiny_llama, tmp_path / "moved"))
    evaluate(record, tmp_path, "piqa", model=f"{NAME}={moved}")
    assert asked[-1].model_folder == moved


def other_model(source: Path, target: Path) -> Path:
    folder = Path(shutil.copytree(source, target))
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    return folder


def replaced_base(tiny: Path, folder: Path) -> dict[str, Any]:
    return {"model": f"{NAME}={other_model(tiny, folder / 'other')}"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (replaced_base, r"trained an adapter on a local folder with checksum [0-9a-f]{12}, and .*/other is a local "),
        (lambda tiny, folder: {"model": f"llama2-7b={tiny}"}, rf"--model llama2-7b=.*: expected {NAME}=PATH"),
        (lambda tiny, folder: {"model": NAME}, rf"--model {NAME}: expected {NAME}=PATH"),
        (lambda tiny, folder: {"model": f"{NAME}={folder / 'nowhere'}"}, "there is no file or folder"),
    ],
)
def test_another_base_is_refused_in_words(
    more: Callable[[Path, Path], dict[str, Any]], said: str, asked: list[RunTask], tiny_llama: Path, tmp_path: Path
) -> None:
    record = kept(tmp_path, tiny_llama, adapter=True)
    with pytest.raises(HarnessError, match=said) as caught:
        evaluate(record, tmp_path, "piqa", **more(tiny_llama, tmp_path))
    assert "{" not in str(caught.value) and not asked


def test_a_base_whose_files_changed_in_their_place_is_refused(
    asked: list[RunTask], tiny_llama: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(tiny_llama, tmp_path / "own"))
    record = kept(tmp_path / "r", own, adapter=True)
    shutil.rmtree(own)
    other_model(tiny_llama, own)
    with pytest.raises(HarnessError, match=r"/own is a local folder with checksum"):
        evaluate(record, tmp_path / "r", "piqa")
    assert not asked


def test_an_adapter_on_a_model_of_the_hub_is_told_from_a_folder(
    asked: list[RunTask], tiny_llama: Path, tmp_path: Path
) -> None:
    assert command.weights_in_words({"name": "m", "source": "hub:a/b", "revision": "9" * 40}) == (
        f"hub:a/b at revision {'9' * 40}"
    )
    spec = BaseModelSpec(name="m", architecture="LlamaForCausalLM", hub_id="a/b")
    assert command.weights_in_words(spec.identity()) == "hub:a/b at revision unknown"


def test_no_model_is_named_for_weights_that_are_whole(asked: list[RunTask], tiny_llama: Path, tmp_path: Path) -> None:
    record = kept(tmp_path, tiny_llama, adapter=False)
    with pytest.raises(HarnessError, match="--model is for the base of an adapter"):
        evaluate(record, tmp_path, "piqa", model=f"{NAME}={tiny_llama}")
    evaluate(record, tmp_path, "piqa")
    assert asked[0].model_folder == tmp_path / "weights" / "w"


@pytest.mark.parametrize("adapter", [True, False])
def test_without_tasks_a_run_that_could_not_be_scored_is_finished(
    adapter: bool, asked: list[RunTask], tiny_llama: Path, tmp_path: Path
) -> None:
    record = kept(tmp_path, tiny_llama, adapter=adapter, status="failed", reason="no rows", weights_held=True)
    evaluate(record, tmp_path)
    (task,) = asked
    assert (task.of, task.finishes, task.spec, task.run_id) == (None, record, record.spec, record.run_id)
    assert task.model_folder == (tiny_llama if adapter else tmp_path / "weights" / "w")
    assert task.claim == f"{record.run_id}-{ENVIRONMENT.environment_id}"


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ({}, {}, "is scored as its suite asks: name a task with --benchmark"),
        ({"status": "failed", "reason": "x"}, {"limit": 3}, "--limit goes with --benchmark"),
        ({"status": "diverged", "reason": "x"}, {}, "has no trained weights that wait to be scored: run it again"),
    ],
)
def test_what_cannot_be_finished_is_said(
    changes: dict[str, Any], more: dict[str, Any], said: str, asked: list[RunTask], tiny_llama: Path, tmp_path: Path
) -> None:
    record = kept(tmp_path, tiny_llama, adapter=False, **changes)
    with pytest.raises(HarnessError, match=said):
        evaluate(record, tmp_path, **more)
    assert not asked


def test_a_run_is_finished_where_it_was_trained(
    asked: list[RunTask], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = kept(tmp_path, tiny_llama, adapter=False, status="failed", reason="x")
    elsewhere = ENVIRONMENT.model_copy(update={"num_threads": 7})
    monkeypatch.setattr(_executor, "probe_environment", lambda variables: elsewhere)
    with pytest.raises(HarnessError, match=r"in another environment .*finish it there, or name tasks with --benchmark"):
        evaluate(record, tmp_path)
    evaluate(record, tmp_path, "piqa")
    assert [task.of for task in asked] == [record.uuid]


def test_weights_are_scored_on_as_many_devices_as_trained_them(
    asked: list[RunTask], tiny_llama: Path, tmp_path: Path
) -> None:
    record = kept(tmp_path, tiny_llama, adapter=False, environment=ENVIRONMENT.of_ranks(2))
    evaluate(record, tmp_path, "piqa")
    evaluate(record, tmp_path, "piqa", gpus_per_run=1)
    assert [task.gpus_per_run for task in asked] == [2, 1]


def test_a_run_is_not_finished_on_other_rows(asked: list[RunTask], tiny_llama: Path, tmp_path: Path) -> None:
    record = kept(tmp_path, tiny_llama, adapter=False, status="failed", reason="x")
    spec = record.spec.model_copy(update={"sources": {"evaluation": "other rows"}})
    Store(tmp_path).append(record.model_copy(update={"spec": spec, "uuid": "later", "run_id": "f" * 16}))
    with pytest.raises(HarnessError, match="asked for hub other rows, and here that is hub: the command that ran it"):
        command.evaluate("f" * 16, (), AssetsRequest(offline=True), results=tmp_path)


def test_a_task_of_ones_own_is_evaluated_from_its_folder(
    asked: list[RunTask], tiny_llama: Path, tmp_path: Path
) -> None:
    record = kept(tmp_path, tiny_llama, adapter=False)
    with pytest.raises(HarnessError, match=r"lm-eval has no task 'capitals'.* named with --include-path$"):
        evaluate(record, tmp_path, "capitals")
    folder = write_tasks(tmp_path / "tasks")
    evaluate(record, tmp_path, "capitals", "piqa", own=TasksRequest(include=(str(folder),)))
    (task,) = asked
    assert task.own_tasks.include_path == (folder,)
    assert task.spec.evaluation.tasks == ("capitals", "piqa")
    assert set(task.spec.sources) == {"evaluation", "task capitals", "rows capitals"}
    assert task.spec.training_id == record.spec.training_id


def test_a_run_that_asked_for_tasks_of_ones_own_is_finished_on_the_same(
    asked: list[RunTask], tiny_llama: Path, tmp_path: Path
) -> None:
    folder = write_tasks(tmp_path / "tasks")
    wanted = EvaluationSettings(tasks=("capitals",), rows="own")
    sources = {"evaluation": "own"} | OwnTasks(TaskPlaces(include_path=(folder,))).identities(wanted)
    spec = make_spec(model=resolve_model(SPEC, tiny_llama).identity(), evaluation=wanted, sources=sources)
    with pytest.raises(HarnessError, match=r"asked for rows capitals .*, and here that is not given"):
        command._check_sources(spec, {"own": "own"}, {})
    command._check_sources(spec, {"own": "own"}, OwnTasks(TaskPlaces(include_path=(folder,))).identities(wanted))
    (folder / "capitals.jsonl").write_text('{"country": "x", "choices": ["a"], "answer": 0}\n')
    changed = OwnTasks(TaskPlaces(include_path=(folder,))).identities(wanted)
    with pytest.raises(HarnessError, match=r"asked for rows capitals scored/test:.*, and here that is scored/test:"):
        command._check_sources(spec, {"own": "own"}, changed)
    assert not asked
