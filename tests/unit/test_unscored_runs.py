"""What was trained is not lost when it cannot be scored: its weights are kept, and scored later without training."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.commands._finishing import awaiting, finishing
from harness.engine import run_keeping, run_scoring, runner
from harness.engine.keeping import keep_merged
from harness.errors import HarnessError
from harness.evaluation.scoring import Evaluation
from harness.kept import can_be_scored
from harness.record import Record, Score
from harness.record_text import ScoringFacts
from harness.remarks import remarks_of
from harness.runs import fate
from harness.runs.child import TRAINED_FILE, left_record
from harness.runs.executor import Runs
from harness.runs.settling import Ledger, recover, settle, work_folder
from harness.settings import EvaluationSettings
from harness.store import Store
from harness.task import RunTask
from tests.proofs import task_of
from tests.records import ENVIRONMENT, make_record

IDS = torch.arange(1, 9).reshape(1, 8)
SCORE = Score(
    task="piqa",
    metric="acc",
    value=0.5,
    stderr=None,
    n=2,
    higher_is_better=True,
    task_version="1",
    num_fewshot=0,
    headline=True,
)
EVALUATION = EvaluationSettings(tasks=("piqa",), rows="packaged-scored")
FAILURES: dict[str, tuple[type[BaseException], str]] = {
    "error": (RuntimeError, "failed"),
    "rows": (HarnessError, "failed"),
    "memory": (MemoryError, "out_of_memory"),
    "interrupt": (KeyboardInterrupt, "interrupted"),
}


class Scoring:
    """Stands in for lm-eval: fails, or gives a score and keeps what the model said."""

    def __init__(self) -> None:
        self.fails: BaseException | None = None
        self.logits: list[torch.Tensor] = []

    def __call__(self, model: Any, *_: Any, **__: Any) -> Evaluation:
        model.eval()
        with torch.no_grad():
            self.logits.append(model(input_ids=IDS).logits)
        if self.fails is not None:
            raise self.fails
        return Evaluation((SCORE,), [{"task": "piqa"}], ScoringFacts(tied_items={"piqa": 1}))


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch) -> Scoring:
    found = Scoring()
    monkeypatch.setattr("harness.evaluation.scoring.evaluate", found)
    monkeypatch.setattr(runner, "describe_environment", lambda: ENVIRONMENT)
    return found


def make_task(label: str, model: Path, store: Store, uuid: str = "u", **changes: Any) -> RunTask:
    made = task_of(label, model, store.folder / "scratch")
    spec = made.spec.model_copy(update={"evaluation": EVALUATION})
    update = {"spec": spec, "run_id": spec.run_id, "uuid": uuid, "work_folder": work_folder(store, spec.run_id, uuid)}
    task = made.model_copy(update=update | changes)
    task.work_folder.mkdir(parents=True)
    return task


def run(task: RunTask, leave: Callable[[Record], None] = lambda record: None) -> Record:
    record = runner.execute(task, lambda *_: None, leave)
    assert record.status != "failed" or record.reason, record.log_tail
    return Record.model_validate_json(record.model_dump_json())


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("label", ["full", "lora"])
@pytest.mark.parametrize("failure", FAILURES)
def test_an_evaluation_that_fails_leaves_weights_that_are_scored_later(
    failure: str, label: str, keep: bool, tiny_llama: Path, tmp_path: Path, scoring: Scoring
) -> None:
    store = Store(tmp_path / "results")
    task = make_task(label, tiny_llama, store, keep_weights=keep)
    kind, status = FAILURES[failure]
    scoring.fails = kind("no room")
    record = settle(task.work_folder, run(task), store, None)
    assert (record.status, record.weights_held, record.awaits_scores) == (status, not keep, True)
    assert record.reason is not None and f"'harness evaluate {record.run_id}' or the same command" in record.reason
    assert record.train is not None and record.scores == () and "\n" not in record.reason
    weights = store.folder / str(record.weights)
    assert can_be_scored(weights)
    assert (weights / "config.json").is_file() == (keep or label == "full")

    scoring.fails = None
    again = make_task(label, tiny_llama, store, uuid="v", keep_weights=keep)
    assert awaiting([record], store) == record
    again = finishing(again, record, store)
    done = settle(again.work_folder, run(again), store, None)
    assert (done.status, done.kind, done.run_id, done.train) == ("ok", "run", record.run_id, record.train)
    assert done.scores == (SCORE,) and done.items is not None and (store.folder / done.items).is_file()
    assert (done.encoding, done.rows, done.scoring) == (
        record.encoding,
        record.rows,
        ScoringFacts(tied_items={"piqa": 1}),
    )
    assert torch.equal(*scoring.logits)
    names = [phase.name for phase in done.phases]
    assert names.count("train") == names.count("evaluate") == names.count("load") == 1
    assert "scored later" in done.notes[-1] and status in done.notes[-1]
    assert done.weights == (record.weights if keep else None) and not done.weights_held
    assert awaiting([record, done], store) is None


def test_weights_that_nobody_asked_for_go_when_they_are_scored(
    tiny_llama: Path, tmp_path: Path, scoring: Scoring
) -> None:
    store = Store(tmp_path / "results")
    queue, watcher = (
        SimpleNamespace(release=lambda task: None, note=lambda *_: None),
        SimpleNamespace(run_ended=lambda record: None),
    )
    ledger: Any = Ledger(Runs([], store), queue, watcher)  # type: ignore[arg-type]
    task = make_task("full", tiny_llama, store)
    scoring.fails = RuntimeError("first")
    ledger.keep(task, run(task))
    (record,) = store.read().records
    again = finishing(make_task("full", tiny_llama, store, uuid="v"), record, store)
    scoring.fails = RuntimeError("second")
    ledger.keep(again, run(again))
    second = store.read().records[-1]
    assert second.awaits_scores and second.weights == record.weights and can_be_scored(store.folder / second.weights)
    last = finishing(make_task("full", tiny_llama, store, uuid="w"), second, store)
    scoring.fails = None
    ledger.keep(last, run(last))
    assert store.read().records[-1].is_ok
    assert not (store.folder / str(record.weights)).exists()


def test_a_run_that_is_scored_leaves_no_weights_unasked(tiny_llama: Path, tmp_path: Path, scoring: Scoring) -> None:
    task = make_task("full", tiny_llama, Store(tmp_path / "results"))
    record = run(task)
    assert (record.status, record.weights) == ("ok", None)
    assert not (task.work_folder / "weights").exists()


def test_scores_that_a_run_had_are_not_made_again(
    tiny_llama: Path, tmp_path: Path, scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MT-Bench's answers fail after lm-eval's scores are there."""
    store = Store(tmp_path / "results")
    task = make_task("full", tiny_llama, store)
    settings = EvaluationSettings.model_validate(
        EVALUATION.model_dump() | {"mt_bench": {"data": "mt_bench", "max_new_tokens": 4}}
    )
    task = task.model_copy(update={"spec": task.spec.model_copy(update={"evaluation": settings})})

    def fails(*_: Any) -> None:
        raise RuntimeError("no template")

    with monkeypatch.context() as patch:
        patch.setattr(run_scoring, "_answer_mt_bench", fails)
        record = settle(task.work_folder, run(task), store, None)
    assert (record.status, record.scores, len(scoring.logits)) == ("failed", (SCORE,), 1)
    answered: list[Any] = []
    monkeypatch.setattr(run_scoring, "_answer_mt_bench", lambda run, *_: answered.append(run))
    again = make_task("full", tiny_llama, store, uuid="v", spec=task.spec, run_id=task.run_id)
    again = finishing(again, record, store)
    done = settle(again.work_folder, run(again), store, None)
    assert (done.status, done.scores, done.items) == ("ok", (SCORE,), record.items)
    assert (len(scoring.logits), len(answered)) == (1, 1)


@pytest.mark.parametrize("label", ["full", "lora"])
def test_a_full_disk_loses_the_weights_and_not_the_scores(
    label: str, tiny_llama: Path, tmp_path: Path, scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task(label, tiny_llama, Store(tmp_path / "results"), keep_weights=True)

    def full(method: Any, model: Any, tokenizer: Any, folder: Path, base: Any, **_: Any) -> bool:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_keeping, "keep_trained", full)
    record = run(task)
    assert (record.status, record.scores, record.weights) == ("ok", (SCORE,), None)
    assert not (task.work_folder / "weights").exists()
    (remark,) = [remark for remark in remarks_of(record) if remark.kind == "weights lost"]
    assert "could not be kept: " in remark.sentence and "No space left" in remark.sentence


def test_merging_that_fails_leaves_the_adapter(
    tiny_llama: Path, tmp_path: Path, scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task("lora", tiny_llama, Store(tmp_path / "results"), keep_weights=True)

    def full(method: Any, model: Any, folder: Path, ranks: Any) -> None:
        monkeypatch.setattr("harness.engine.keeping.put", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
        keep_merged(method, model, folder, ranks)

    monkeypatch.setattr(run_keeping, "keep_merged", full)
    record = run(task)
    assert (record.status, record.weights) == ("ok", "weights")
    assert record.weights_error is not None and "merged weights could not be kept" in record.weights_error
    left = {path.name for path in (task.work_folder / "weights").iterdir()}
    assert "adapter" in left and not left & {"config.json", "model.safetensors"}
    assert not [name for name in left if name.startswith(".")]


def test_a_model_that_diverged_is_not_held(tiny_llama: Path, tmp_path: Path, scoring: Scoring) -> None:
    scoring.fails = FloatingPointError("the model's outputs are not finite")
    record = run(make_task("full", tiny_llama, Store(tmp_path / "results")))
    assert (record.status, record.weights, record.reason) == ("diverged", None, "the model's outputs are not finite")


@pytest.mark.parametrize("taken_by", ["the parent", "the next"])
def test_a_process_that_is_killed_while_it_scores_leaves_what_it_had_kept(
    taken_by: str, tiny_llama: Path, tmp_path: Path, scoring: Scoring
) -> None:
    store = Store(tmp_path / "results")
    task = make_task("lora", tiny_llama, store, keep_weights=True)

    def leave(record: Record) -> None:
        assert not scoring.logits
        (task.work_folder / TRAINED_FILE).write_text(record.model_dump_json())

    run(task, leave)
    assert left_record(task.work_folder) is None
    if taken_by == "the parent":
        ended = task.record(ENVIRONMENT, make_record().started_at, "timed_out", "timed out after 3 s", log_tail="last")
        record = settle(task.work_folder, fate.with_what_is_left(task, ended), store, None)
        assert (record.status, record.log_tail) == ("timed_out", "last")
        assert record.reason is not None and record.reason.startswith("timed out after 3 s; the trained weights are")
    else:
        assert recover(store) == 1
    (record,) = store.read().records
    assert record.awaits_scores and record.train is not None and record.scores == ()
    assert can_be_scored(store.folder / str(record.weights))
    assert awaiting([record], store) == record


class Killed(BaseException):
    """Stands in for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("label", ["full", "lora", "galore"])
def test_with_checkpoints_a_killed_evaluation_is_done_again_and_no_step(
    label: str, tiny_llama: Path, tmp_path: Path, scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, folder = Store(tmp_path / "results"), tmp_path / "checkpoints" / "run"
    scoring.fails = Killed()
    with pytest.raises(Killed):
        runner.execute(
            make_task(label, tiny_llama, store, checkpoint_folder=folder, checkpoint_every=3), lambda *_: None
        )
    assert sorted(path.name for path in folder.iterdir()) == ["step-6", "step-8"]
    scoring.fails = None

    def trains(*_: Any) -> None:
        raise AssertionError("it trains again")

    monkeypatch.setattr("harness.engine.training.TrainingLoop.train_step", trains)
    again = make_task(label, tiny_llama, store, uuid="v", checkpoint_folder=folder, checkpoint_every=3)
    record = run(again)
    assert (record.status, record.scores) == ("ok", (SCORE,)), record.reason
    assert record.train is not None and record.train.resumed_at_steps == (8,) and len(record.train.curve.loss) == 8
    assert torch.equal(*scoring.logits)


def test_a_process_that_is_killed_while_it_saves_leaves_no_weights(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = work_folder(store, "run", "u") / "weights"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half")
    assert recover(store) == 0
    assert not folder.exists() and not (tmp_path / "weights").exists()


def test_which_of_a_runs_records_waits_to_be_scored(tmp_path: Path) -> None:
    store = Store(tmp_path)
    adapter = tmp_path / "weights" / "a" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_text("")

    def of(uuid: str, status: str, weights: str | None = None) -> Record:
        return make_record(uuid=uuid, status=status, weights=weights, reason=None if status == "ok" else "why")

    trained, failed, scored = of("1", "failed", "weights/a"), of("2", "failed"), of("3", "ok")
    assert awaiting([trained, failed], store) == trained
    assert awaiting([trained, scored, failed], store) is None
    assert awaiting([scored, trained], store) == trained
    assert awaiting([of("4", "out_of_memory", "weights/a")], store) is not None
    assert awaiting([of("5", "failed", "weights/gone")], store) is None
    assert awaiting([trained, of("6", "out_of_memory")], store) is None
