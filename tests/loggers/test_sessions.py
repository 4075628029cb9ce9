"""Trackers beside attempts that go on, runs at once, and places that cannot be written, by their own readers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness.commands._following import LOGS, ready_loggers
from harness.errors import HarnessError
from harness.loggers.following import Followed
from harness.loggers.scalars import recorded_facts
from harness.record_training import TrainResult
from harness.store import Store
from harness.task import RunTask
from tests.loggers import readers
from tests.loggers.test_trackers import PLACES, TRACKERS
from tests.unit.test_executors import HERE, make_tasks
from tests.unit.test_followed import losses_of, train_result

pytestmark = pytest.mark.slow
Begin = Callable[[], Followed]


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give where loggers write; Trackio takes its folder when it is imported, and this process imports it once."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    if importlib.util.find_spec("trackio") is not None:
        for module in ("utils", "sqlite_storage"):
            monkeypatch.setattr(f"trackio.{module}.TRACKIO_DIR", tmp_path / LOGS / "trackio", raising=False)
    return tmp_path / LOGS


@pytest.fixture
def warned() -> list[str]:
    return []


def whole(seed: int) -> TrainResult:
    return train_result(losses_of(seed), {0: 9.0, 3: 8.0})


def check(run: readers.Read, seed: int) -> None:
    """Assert that a tracker has each step of a run once; the losses have no more digits than single precision."""
    assert run.scalars["train/loss"] == [(i + 1, loss) for i, loss in enumerate(losses_of(seed))]
    assert run.scalars["validation/held_out_loss"] == [(0, 9.0), (3, 8.0)]
    assert (run.status, run.reason) == ("ok", None)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_an_attempt_that_goes_on_is_one_run_with_every_step_once(
    tracker: str, tmp_path: Path, logs: Path, warned: list[str]
) -> None:
    folder, facts = tmp_path / "checkpoints" / "a-run", list(recorded_facts(whole(1)))
    (folder / "step-1").mkdir(parents=True)
    (task,) = make_tasks(Store(tmp_path), 1)
    # Steps 0 to 2 are told, then the process is gone; the next goes on from the checkpoint at step 1.
    for uuid, told, ends in (("a" * 32, facts[:3], False), ("b" * 32, [facts[0], *facts[2:]], True)):
        attempt = task.model_copy(update={"uuid": uuid, "checkpoint_folder": folder})
        observer = Followed(ready_loggers([tracker], tmp_path, True), logs, warned.append)
        observer.begins(attempt)
        for one in told:
            observer.told(attempt, one)
        if ends:
            observer.ended(attempt, attempt.record(HERE, datetime.now(UTC), "ok", None, train=whole(1)))
        observer.close()
    assert warned == []
    (run,) = PLACES[tracker](logs)
    check(run, 1)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_runs_at_once_are_runs_of_their_own(tracker: str, tmp_path: Path, logs: Path, warned: list[str]) -> None:
    tasks = make_tasks(Store(tmp_path), 1, 2, 3)
    observer = Followed(ready_loggers([tracker], tmp_path, True), logs, warned.append)
    for together in zip(*(recorded_facts(whole(task.spec.seed)) for task in tasks), strict=True):
        for task, facts in zip(tasks, together, strict=True):
            observer.told(task, facts)
    for task in tasks:
        observer.ended(task, task.record(HERE, datetime.now(UTC), "ok", None, train=whole(task.spec.seed)))
    observer.close()
    assert warned == []
    runs = list(PLACES[tracker](logs))
    assert len(runs) == 3
    assert {run.group for run in runs} == {"tiny"}
    for run in runs:
        seed = int(run.scalars["train/loss"][0][1])
        check(run, seed)
        assert f"full-{seed}" in run.name or f"full/{seed}" in run.name


def told_once(tracker: str, folder: Path, warned: list[str]) -> Iterator[RunTask]:
    """Tell a tracker of a whole run."""
    (task,) = make_tasks(Store(folder), 1)
    observer = Followed(ready_loggers([tracker], folder, True), folder / LOGS, warned.append)
    for facts in recorded_facts(whole(1)):
        observer.told(task, facts)
    observer.ended(task, task.record(HERE, datetime.now(UTC), "ok", None, train=whole(1)))
    observer.close()
    yield task


@pytest.mark.parametrize("tracker", [one for one in TRACKERS if one.values[0] == "mlflow"])
def test_a_place_that_is_looked_at_beforehand_is_refused(tracker: str, tmp_path: Path, logs: Path) -> None:
    logs.mkdir()
    (logs / tracker).write_text("a file is in the way")
    with pytest.raises(HarnessError, match=r"^--log mlflow cannot be used: NotADirectoryError: "):
        ready_loggers([tracker], tmp_path, True)


@pytest.mark.parametrize("tracker", [one for one in TRACKERS if one.values[0] == "tensorboard"])
def test_a_place_that_cannot_be_written_is_one_warning(
    tracker: str, tmp_path: Path, logs: Path, warned: list[str]
) -> None:
    logs.mkdir()
    (logs / tracker).write_text("a file is in the way")
    assert list(told_once(tracker, tmp_path, warned))
    (sentence,) = warned
    assert sentence.startswith(f"--log {tracker}: the log of tiny/full/1 ends here: ")


@pytest.mark.parametrize("tracker", [one for one in TRACKERS if one.values[0] == "mlflow"])
def test_a_server_that_is_down_is_one_warning(
    tracker: str, tmp_path: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert list(told_once(tracker, tmp_path, warned))
    (sentence,) = warned
    assert "127.0.0.1" in sentence and "\n" not in sentence


@pytest.mark.parametrize("tracker", [one for one in TRACKERS if one.values[0] == "wandb"])
def test_wandb_without_an_account_is_refused_online_and_offline_where_the_network_is_not_to_be_touched(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(HarnessError, match="this machine is not logged in"):
        ready_loggers([tracker], tmp_path, offline=False)
    assert ready_loggers([tracker], tmp_path, offline=True)["wandb"]._mode == "offline"  # type: ignore[attr-defined]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert ready_loggers([tracker], tmp_path, offline=False)["wandb"]._mode == "offline"  # type: ignore[attr-defined]
