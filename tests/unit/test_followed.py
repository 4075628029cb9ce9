"""Runs told to loggers: from the child's lines to what a logger of one's own is handed, and what failures cost."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harness.commands._following import ready_loggers
from harness.errors import HarnessError
from harness.loggers import following
from harness.loggers.chosen import OURS, chosen_loggers
from harness.loggers.contract import LoggedRun, Logger, Place, Session
from harness.loggers.following import Followed
from harness.loggers.scalars import recorded_facts, scalars_of
from harness.record import Record, Status
from harness.record_training import StepCurve, TrainResult
from harness.runs import process as launch
from harness.runs import ray as ray_executor
from harness.runs import ray_worker
from harness.runs.executor import Runs
from harness.runs.local import Device, LocalMachine
from harness.runs.ray import RayCluster
from harness.store import Store
from harness.task import RunTask
from tests.unit.test_executors import HERE, StandInRay, Watcher, describes, make_tasks


@dataclass
class Log:
    """What one session was handed."""

    run: LoggedRun
    resumed: bool
    steps: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    ending: tuple[int, Status, str | None, dict[str, float]] | None = None
    left: bool = False


class Notebook(Logger):
    """Keeps everything in memory."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.logs: list[Log] = []
        self.raises: dict[str, Exception] = {}
        """By what is asked of it."""
        self.waits = threading.Event()
        self.waits.set()

    def begin(self, run: LoggedRun, *, resumed: bool) -> Session:
        self.do("begin")
        self.logs.append(Log(run, resumed))
        return Page(self, self.logs[-1])

    def do(self, what: str) -> None:
        self.waits.wait()
        if what in self.raises:
            raise self.raises[what]


class Page(Session):
    def __init__(self, notebook: Notebook, log: Log) -> None:
        self.notebook = notebook
        self.kept = log

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self.notebook.do("log")
        self.kept.steps.append((step, dict(scalars)))

    def end(self, step: int, status: Status, reason: str | None, figures: Mapping[str, float]) -> None:
        self.notebook.do("end")
        self.kept.ending = (step, status, reason, dict(figures))

    def leave(self) -> None:
        self.kept.left = True


def train_result(losses: Sequence[float], held_out: Mapping[int, float]) -> TrainResult:
    """Return what a training of so many steps recorded."""
    number = len(losses)
    curve = StepCurve(
        loss=tuple(losses),
        learning_rate=tuple(1e-3 * (step + 1) for step in range(number)),
        grad_norm=(None,) * number,
        trained_tokens=(8,) * number,
        tokens=tuple(10 + step for step in range(number)),
        seconds=(0.5,) * number,
        trainable_params=(7,) * number,
        optimizer_state_bytes=(56,) * number,
    )
    return TrainResult(
        num_steps=number,
        curve=curve,
        block_activity=(),
        num_blocks=2,
        step_seconds_mean=0.5,
        step_seconds_median=0.5,
        num_timed_steps=number,
        data_seconds=0.0,
        trainable_params_mean=7.0,
        trainable_params_ever=7,
        total_params=7,
        peak_optimizer_state_bytes=56,
        validation_steps=tuple(held_out),
        validation_losses=tuple(held_out.values()),
    )


def losses_of(seed: int) -> list[float]:
    return [seed + 0.5, seed + 0.25, seed + 0.125]


TALKS = """
import json, pathlib, sys, time
task = json.loads(sys.stdin.readline())
folder = pathlib.Path(task["work_folder"])
told = json.loads((folder.parents[DEPTH] / (task["uuid"] + ".facts")).read_text())
for facts in told:
    print(json.dumps({"event": "progress", "what": "training", "done": facts["step"], "total": 3}), flush=True)
    print(json.dumps({"event": "facts", "facts": facts}), flush=True)
    time.sleep(PAUSE)
folder.mkdir(exist_ok=True)
(folder / "record.json").write_text((folder.parents[DEPTH] / (task["uuid"] + ".json")).read_text())
"""


def talking(tasks: Sequence[RunTask], monkeypatch: pytest.MonkeyPatch, depth: int, pause: float) -> None:
    """Make the child of each run a program that says what its record holds of its steps, and leaves the record."""
    for task in tasks:
        train = train_result(losses_of(task.spec.seed), {0: 9.0, 3: 8.0})
        record = task.record(HERE, datetime.now(UTC), "ok", None, train=train)
        task.work_folder.parent.mkdir(parents=True, exist_ok=True)
        (task.work_folder.parent / f"{task.uuid}.json").write_text(record.model_dump_json())
        (task.work_folder.parent / f"{task.uuid}.facts").write_text(json.dumps(list(map(dict, recorded_facts(train)))))
    popen, program = launch.subprocess.Popen, TALKS.replace("DEPTH", str(depth)).replace("PAUSE", str(pause))
    monkeypatch.setattr(
        launch.subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", program], **options)
    )


def followed(tmp_path: Path, **loggers: Notebook) -> tuple[Followed, list[str]]:
    warned: list[str] = []
    return Followed(loggers, tmp_path / "logs", warned.append), warned


def notebook(tmp_path: Path) -> Notebook:
    return Notebook(Place(tmp_path / "logs", offline=True))


def record_of(task: RunTask, status: Status, steps: int = 3, reason: str | None = None) -> Record:
    train = train_result(losses_of(task.spec.seed)[:steps], {0: 9.0} | ({3: 8.0} if steps == 3 else {}))
    return task.record(HERE, datetime.now(UTC), status, reason, train=train)


def check_whole(log: Log, seed: int) -> None:
    """Assert that a log holds each step of a run once, in order, and how it ended."""
    train = train_result(losses_of(seed), {0: 9.0, 3: 8.0})
    assert log.steps == [(int(facts["step"] or 0), scalars_of(facts)) for facts in recorded_facts(train)]
    assert [step for step, _ in log.steps] == [0, 1, 2, 3, 3]
    assert [one["train/loss"] for _, one in log.steps[1:4]] == losses_of(seed)
    assert log.ending is not None
    assert log.ending[:3] == (3, "ok", None)
    assert log.ending[3]["figure/step_seconds_mean"] == 0.5
    assert not log.left


@pytest.mark.parametrize("place", ["local", "local, two at once", "ray"])
def test_runs_at_once_do_not_mix(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    tasks, book = make_tasks(store, 1, 2, 3, 4), notebook(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(ray_executor, "describe_node", describes)
    monkeypatch.setattr(ray_worker, "EVENT_SECONDS", 0.05)
    talking(tasks, monkeypatch, 1 if place == "ray" else 0, 0.1)
    ray = StandInRay()
    number = 2 if place.endswith("at once") else 1
    executor = RayCluster(ray, 1) if place == "ray" else LocalMachine([Device(HERE)] * number)
    observer, warned = followed(tmp_path, notebook=book)
    tally = executor.run(Runs(tasks, store, observer=observer), Watcher(store))
    observer.close()
    ray.close()
    assert [record.status for record in tally.records] == ["ok"] * 4
    assert warned == []
    assert sorted(log.run.key for log in book.logs) == [task.uuid for task in tasks]
    for log in book.logs:
        check_whole(log, int(log.run.key, 16))
        assert (log.run.group, log.run.name) == ("tiny", f"tiny/full/{int(log.run.key, 16)}")
        assert log.run.settings["seed"] == int(log.run.key, 16)


def test_steps_are_told_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    tasks, book = make_tasks(store, 1), notebook(tmp_path)
    talking(tasks, monkeypatch, 0, 0.3)
    seen: list[int] = []

    class Live(Watcher):
        def run_ended(self, record: Record) -> None:
            seen.append(len(book.logs[0].steps))

    observer, _ = followed(tmp_path, notebook=book)
    LocalMachine([Device(HERE)]).run(Runs(tasks, store, observer=observer), Live(store))
    observer.close()
    assert seen[0] >= 4  # the last may still be on its way to the logger
    check_whole(book.logs[0], 1)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit(5)], ids=str)
@pytest.mark.parametrize("what", ["begin", "log", "end"])
def test_a_logger_that_fails_warns_once_and_costs_no_run(
    what: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    tasks, book, other = make_tasks(store, 1), notebook(tmp_path), notebook(tmp_path)
    talking(tasks, monkeypatch, 0, 0.0)
    book.raises[what] = error
    observer, warned = followed(tmp_path, full=book, other=other)
    tally = LocalMachine([Device(HERE)]).run(Runs(tasks, store, observer=observer), Watcher(store))
    observer.close()
    assert [record.status for record in tally.records] == ["ok"]
    assert warned == [f"--log full: the log of tiny/full/1 ends here: {type(error).__name__}: {error}"]
    check_whole(other.logs[0], 1)


def test_a_logger_that_hangs_delays_no_run_and_is_left_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    tasks, book = make_tasks(store, 1, 2), notebook(tmp_path)
    talking(tasks, monkeypatch, 0, 0.0)
    monkeypatch.setattr(following, "LAST_SECONDS", 0.2)
    book.waits.clear()
    observer, warned = followed(tmp_path, slow=book)
    tally = LocalMachine([Device(HERE)]).run(Runs(tasks, store, observer=observer), Watcher(store))
    began = time.monotonic()
    observer.close()
    assert time.monotonic() - began < 5
    assert [record.status for record in tally.records] == ["ok", "ok"]
    assert len(warned) == 1 and warned[0].startswith("--log slow had not finished")
    book.waits.set()


def attempt(tmp_path: Path, uuid: str, **changes: Any) -> RunTask:
    folder = tmp_path / "checkpoints" / "a-run"
    return make_tasks(Store(tmp_path), 1)[0].model_copy(update={"uuid": uuid, "checkpoint_folder": folder} | changes)


def test_a_run_that_goes_on_is_one_log_and_no_step_stands_twice(tmp_path: Path) -> None:
    first, second, book = attempt(tmp_path, "a" * 32), attempt(tmp_path, "b" * 32), notebook(tmp_path)
    assert first.checkpoint_folder is not None
    (first.checkpoint_folder / "step-1").mkdir(parents=True)
    facts = list(recorded_facts(train_result(losses_of(1), {0: 9.0, 3: 8.0})))
    observer, _ = followed(tmp_path, notebook=book)
    observer.begins(first)
    for one in facts[:3]:  # steps 0 to 2; then the process is killed, and nothing says how the attempt ended
        observer.told(first, one)
    observer.close()
    observer, warned = followed(tmp_path, notebook=book)
    observer.begins(second)
    for one in (facts[0], *facts[2:]):  # from the checkpoint at step 1 on
        observer.told(second, one)
    observer.ended(second, record_of(second, "ok"))
    observer.close()
    before, after = book.logs
    assert (before.left, before.resumed, after.resumed) == (True, False, True)
    assert before.run.key == after.run.key == "a" * 32
    assert before.run.folder == after.run.folder
    check_whole(Log(after.run, True, before.steps + after.steps, after.ending), 1)
    assert warned == []
    assert not list((tmp_path / "logs" / "state").iterdir())


@pytest.mark.parametrize("status", ["interrupted", "failed", "timed_out"])
def test_an_attempt_with_a_checkpoint_is_let_go_and_one_without_has_ended(status: Status, tmp_path: Path) -> None:
    for folder in (None, "step-1"):
        task, book = attempt(tmp_path, "a" * 32), notebook(tmp_path)
        if folder is not None and task.checkpoint_folder is not None:
            (task.checkpoint_folder / folder).mkdir(parents=True)
        observer, _ = followed(tmp_path, notebook=book)
        observer.begins(task)
        observer.ended(task, record_of(task, status, 2, "why"))
        observer.close()
        (log,) = book.logs
        assert [step for step, _ in log.steps] == [0, 1, 2]  # nothing was told: taken from the record
        assert log.left == (folder is not None)
        assert (log.ending or (0, None))[1] == (None if folder else status)


def test_what_began_anew_is_another_log(tmp_path: Path) -> None:
    book = notebook(tmp_path)
    for uuid in ("a" * 32, "b" * 32):
        observer, _ = followed(tmp_path, notebook=book)
        observer.begins(attempt(tmp_path, uuid))
        observer.close()
    assert [(log.run.key, log.resumed) for log in book.logs] == [("a" * 32, False), ("b" * 32, False)]


def test_a_refused_run_has_a_log_with_its_sentence(tmp_path: Path) -> None:
    store = Store(tmp_path)
    tasks, book = make_tasks(store, 1, refusal="it does not fit"), notebook(tmp_path)
    observer, _ = followed(tmp_path, notebook=book)
    LocalMachine([Device(HERE)]).run(Runs(tasks, store, observer=observer), Watcher(store))
    observer.close()
    (log,) = book.logs
    assert log.ending == (0, "refused", "it does not fit", {})


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_missing_package_is_one_sentence_with_what_brings_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(HarnessError, match=rf"--log {name} needs the package '{name}.*pip install '\.\[{name}\]'"):
        ready_loggers([name], tmp_path, offline=True)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tensorbord", "there is no such logger; did you mean 'tensorboard'?"),
        ("nowhere_at_all:Logger", "cannot be imported: No module named 'nowhere_at_all'"),
        ("json:Nothing", "cannot be imported: module 'json' has no attribute 'Nothing'"),
        ("json:JSONDecoder", "is no subclass of harness.loggers.contract.Logger"),
        (":x", "one of your own is named MODULE:CLASS"),
    ],
)
def test_what_is_no_logger_is_one_sentence(name: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"^--log ") as error:
        chosen_loggers([name], Place(tmp_path, offline=True))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("code", ["raise RuntimeError('boom')", "def (", "raise SystemExit('bye')"])
def test_a_module_that_raises_as_it_is_imported_is_one_sentence(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raising_logger.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(HarnessError, match=r"^--log raising_logger:X: cannot be imported: \w+: ") as error:
        chosen_loggers(["raising_logger:X"], Place(tmp_path, offline=True))
    assert "\n" not in str(error.value)


def test_a_logger_that_exits_as_it_is_made_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exiting_logger.py").write_text(
        "from harness.loggers.contract import Logger\n"
        "class Exits(Logger):\n"
        "    def __init__(self, place):\n"
        "        raise SystemExit(0)\n"
        "    def begin(self, run, *, resumed):\n"
        "        raise NotImplementedError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(HarnessError, match=r"^--log exiting_logger:Exits cannot be used: SystemExit: 0$"):
        chosen_loggers(["exiting_logger:Exits"], Place(tmp_path, offline=True))


def test_one_s_own_is_named_by_module_and_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "of_mine", sys.modules[__name__])
    assert isinstance(chosen_loggers(["of_mine:Notebook"], Place(tmp_path, offline=True))["Notebook"], Notebook)


def test_help_names_every_logger(capsys: pytest.CaptureFixture[str]) -> None:
    from harness.cli import main

    with pytest.raises(SystemExit):
        main(["run", "--help"])
    printed = capsys.readouterr().out
    assert "live logs:" in printed
    assert all(name in printed.partition("live logs:")[2] for name in OURS)


def test_mlflow_offline_takes_no_server_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example/")
    with pytest.raises(HarnessError, match=r"a server on the network \(tracking\.example\), which --offline forbids"):
        ready_loggers(["mlflow"], tmp_path, offline=True)
