"""What every executor keeps, on this machine, on Ray and as Slurm jobs: one contract, four places.

The second place is Ray's own code path with a stand-in for Ray that runs tasks in a thread of this process; the third,
slow, is a cluster, whose workers return records without a child. The fourth is Slurm's code path, of the parent and of
the jobs, with a stand-in for submitit whose jobs are forks of this process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from harness.catalogue.models import load_models
from harness.errors import HarnessError
from harness.record import Record
from harness.record_environment import Environment
from harness.record_training import Phase
from harness.runs import process as launch
from harness.runs import ray as ray_executor
from harness.runs import slurm, slurm_job, slurm_session
from harness.runs.claims import FOLDER, Claims
from harness.runs.executor import Executor, Limits, Runs
from harness.runs.local import Device, LocalMachine
from harness.runs.ray import RayCluster, ray_cluster
from harness.runs.ray_worker import Order, pack
from harness.runs.settling import WORK, work_folder
from harness.runs.slurm import SlurmCluster
from harness.runs.slurm_settings import slurm_settings
from harness.source import source_checksum
from harness.store import Store
from harness.task import RunTask
from tests.records import ENVIRONMENT, make_spec

HERE = ENVIRONMENT.model_copy(update={"source_checksum": source_checksum()})
ITEMS = "items.jsonl.zst"
WORKS = f"""
import json, pathlib, sys
task = json.loads(sys.stdin.readline())
folder = pathlib.Path(task["work_folder"])
(folder / "{ITEMS}").write_bytes(b"items")
(folder / "record.json").write_text((folder.parents[RECORD_AT] / (task["uuid"] + ".json")).read_text())
"""
SLEEPS = "import sys, time\nprint('{}', flush=True)\ntry:\n  time.sleep(60)\nexcept KeyboardInterrupt:\n  sys.exit(3)"
FAILS = "import sys\nsys.exit(7)"


class Cancelled(Exception):
    """Ray's word for a task that was cancelled before it began."""


class Lost(Exception):
    """Ray's word for what went wrong with a task."""


class StandInRay:
    """As much of Ray as an executor uses: one worker, a thread of this process, and actors that answer at once.

    A task that has begun is cancelled as Ray does it, by a KeyboardInterrupt between any two lines. Here they are lines
    of the harness or of this module: to interrupt a thread anywhere, CPython may interrupt the one that it begins.
    """

    exceptions = SimpleNamespace(RayError=Lost, TaskCancelledError=Cancelled)

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._cancelled: set[Any] = set()

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"memory": 8 * 2**30}}]

    def remote(self, **_: Any) -> Callable[[Any], Any]:
        return lambda what: SimpleNamespace(remote=partial(self._made if isinstance(what, type) else self._sent, what))

    def get(self, reference: Any) -> Any:
        if not isinstance(reference, Future):
            return reference
        if reference.cancelled():
            raise Cancelled
        return reference.result()

    def wait(self, references: Sequence[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and sum(one.done() for one in references) < num_returns:
            wait(references, timeout=0.05, return_when="FIRST_COMPLETED")
        return [one for one in references if one.done()], [one for one in references if not one.done()]

    def cancel(self, reference: Any, force: bool) -> None:
        self._cancelled.add(reference)
        reference.cancel()

    def kill(self, actor: Any) -> None:
        pass

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _made(self, kind: type[Any]) -> Any:
        actor = kind()
        return SimpleNamespace(say=SimpleNamespace(remote=actor.say), take=SimpleNamespace(remote=actor.take))

    def _sent(self, function: Callable[..., Any], *arguments: Any) -> Any:
        placed = threading.Event()

        def start() -> Any:
            placed.wait()
            try:
                with interrupted_when(lambda: future in self._cancelled):
                    return function(*arguments)
            except KeyboardInterrupt:  # it came before the task's own code or after it
                raise Cancelled from None

        future = self._pool.submit(start)
        placed.set()
        return future


@contextmanager
def interrupted_when(asked: Callable[[], bool]) -> Iterator[None]:
    """Raise a KeyboardInterrupt once, at the next line of this thread, in code of the harness, when it is asked."""
    raised = False

    def look(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal raised
        if not frame.f_globals.get("__name__", "").startswith(("harness.", __name__)):
            return None
        if event == "line" and not raised and asked():
            raised = True
            raise KeyboardInterrupt
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


class ForkedJob:
    """What an executor uses of a job of submitit: a fork of this process."""

    paths = SimpleNamespace(
        **dict.fromkeys(("submission_file", "submitted_pickle", "result_pickle", "stdout", "stderr"), "/nonexistent")
    )

    def __init__(self, function: Callable[..., None], arguments: Sequence[Any]) -> None:
        self._pid = os.fork()
        if self._pid == 0:
            status = 1
            try:
                function(*arguments)
                status = 0
            finally:
                os._exit(status)
        self._ended = False

    @property
    def job_id(self) -> str:
        return str(self._pid)

    @property
    def state(self) -> str:
        self._ended = self._ended or os.waitpid(self._pid, os.WNOHANG)[0] != 0
        return "COMPLETED" if self._ended else "RUNNING"

    def get_info(self, mode: str = "force") -> dict[str, str]:
        return {"State": self.state}

    def cancel(self, check: bool = True) -> None:
        if self.state == "RUNNING":
            os.kill(self._pid, signal.SIGTERM)

    def stderr(self) -> str | None:
        return None


class StandInSubmitit:
    """As much of submitit as an executor uses."""

    class AutoExecutor:
        def __init__(self, **_: Any) -> None:
            self.asked: list[dict[str, Any]] = []

        def update_parameters(self, **asked: Any) -> None:
            self.asked.append(asked)

        def submit(self, function: Callable[..., None], *arguments: Any) -> ForkedJob:
            return ForkedJob(function, arguments)


@dataclass
class Place:
    """An executor, and how its runs are made to do something small."""

    name: str
    executor: Executor
    do: Callable[[str, Sequence[RunTask]], None]
    """Make every run do one of ``works``, ``breaks``, ``sleeps``, ``fails``."""


@dataclass
class Watcher:
    """Notes what it is told; signals this process when a run has begun."""

    store: Store
    signals: Sequence[int] = ()
    on_wait: Callable[[], None] = lambda: None
    ended: list[Record] = field(default_factory=list)
    waited: list[int] = field(default_factory=list)

    def run_begins(self, task: RunTask) -> None:
        def send() -> None:
            for number in self.signals:
                time.sleep(0.4)
                os.kill(os.getpid(), number)

        threading.Thread(target=send, daemon=True).start()

    def progress(self, what: str, done: int, total: int | None) -> None:
        pass

    def run_ended(self, record: Record) -> None:
        assert record.uuid in {known.uuid for known in self.store.read().records}, "told before it was stored"
        self.ended.append(record)

    def waits(self, num_runs: int) -> None:
        self.waited.append(num_runs)
        self.on_wait()


def describes(threads: int) -> bytes:
    """Stand for a node that says what it is."""
    return HERE.model_dump_json().encode()


def works(order_json: str, events: Any) -> bytes:
    """Stand for the worker's part: return a record and an item at once."""
    order = Order.model_validate_json(order_json)
    folder = order.task.work_folder / "attempt-1"
    folder.mkdir(parents=True)
    (folder / "items.jsonl.zst").write_bytes(b"items")
    record = order.task.record(order.environment, datetime.now(UTC), "ok", None, items="items.jsonl.zst")
    return pack(record, folder, send_files=False)


def sleeps(order_json: str, events: Any) -> bytes:
    """Stand for the worker's part: return a record when it is interrupted."""
    order = Order.model_validate_json(order_json)
    events.say.remote(order.task.uuid, "node", "sleeping", 0, None)
    started_at = datetime.now(UTC)
    with suppress(KeyboardInterrupt):  # Ray raises it between two lines of Python, not within a long call
        for _ in range(600):
            time.sleep(0.1)
    record = order.task.record(order.environment, started_at, "interrupted", "interrupted")
    return pack(record, order.task.work_folder / "attempt-1", send_files=False)


def fails(order_json: str, events: Any) -> bytes:
    """Stand for the worker's part: return a record of a failure."""
    order = Order.model_validate_json(order_json)
    record = order.task.record(order.environment, datetime.now(UTC), "failed", "exit status 7")
    return pack(record, order.task.work_folder / "attempt-1", send_files=False)


def broken(task: RunTask, environment: Environment) -> Record:
    """Return the record of a run that failed before its first step, in its own words."""
    return task.record(
        environment, datetime.now(UTC), "failed", "no such layer", phases=(Phase(name="load", seconds=1),)
    )


def leaves(order_json: str) -> None:
    """Leave what a child has recorded: of seed 2 all, of seed 3 what it does before it scores, of another nothing."""
    order = Order.model_validate_json(order_json)
    (attempt := order.task.work_folder / "attempt-1").mkdir(parents=True)
    if (name := {2: "record.json", 3: "trained.json"}.get(order.task.spec.seed)) is not None:
        (attempt / ITEMS).write_bytes(b"items")
        record = order.task.record(order.environment, datetime.now(UTC), "ok", None, items=ITEMS)
        (attempt / name).write_text(record.model_dump_json())
    (attempt / "begun").touch()


def is_cut(order_json: str, events: Any) -> bytes:
    """Stand for a worker that is interrupted outside the wait for its child; seed 1 fails before that."""
    if Order.model_validate_json(order_json).task.spec.seed == 1:
        return fails(order_json, events)
    leaves(order_json)
    for _ in range(600):
        time.sleep(0.05)
    raise AssertionError("nobody interrupted it")


def breaks(order_json: str, events: Any) -> bytes:
    """Stand for the worker's part: return a record of a failure before the first step."""
    order = Order.model_validate_json(order_json)
    events.say.remote(order.task.uuid, "node", "loading", 0, None)
    time.sleep(1.5)  # so that of a cluster, which begins the next at once, not all are over before the first is known
    return pack(broken(order.task, order.environment), order.task.work_folder / "attempt-1", send_files=False)


def programs(monkeypatch: pytest.MonkeyPatch, depth: int) -> Callable[[str, Sequence[RunTask]], None]:
    """Return what makes the child process of every run a small program.

    Args:
        monkeypatch: Of the test.
        depth: How many folders the files of a run lie below its work folder.
    """
    popen = launch.subprocess.Popen

    def do(what: str, tasks: Sequence[RunTask]) -> None:
        works = WORKS.replace("RECORD_AT", str(depth))
        program = {"works": works, "breaks": works, "sleeps": SLEEPS, "fails": FAILS}[what]
        for task in tasks:
            record = task.record(HERE, datetime.now(UTC), "ok", None, items=ITEMS)
            if what == "breaks":
                record = broken(task, HERE)
            task.work_folder.parent.mkdir(parents=True, exist_ok=True)
            (task.work_folder.parent / f"{task.uuid}.json").write_text(record.model_dump_json())

        def start(command: list[str], **options: Any) -> Any:
            return popen([sys.executable, "-c", program], **options)

        monkeypatch.setattr(launch.subprocess, "Popen", start)

    return do


RAY = pytest.param("ray", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["local", "stand-in", "slurm", RAY])
def where(request: pytest.FixtureRequest) -> str:
    """Return the name of a place; the tests of one go together, so that nothing forks while Ray is connected."""
    return str(request.param)


@pytest.fixture
def place(where: str, request: pytest.FixtureRequest, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a worker sets it for its children: put back at the end
    monkeypatch.setattr(ray_executor, "describe_node", describes)
    if where == "local":
        yield Place("local", LocalMachine([Device(HERE)]), programs(monkeypatch, 0))
    elif where == "stand-in":
        ray = StandInRay()
        yield Place("stand-in", RayCluster(ray, 1), programs(monkeypatch, 1))
        ray.close()
    elif where == "slurm":
        monkeypatch.setattr(slurm_job, "describe_node", describes)
        for module in (slurm, slurm_session):
            monkeypatch.setattr(module, "POLL_SECONDS", 0.1)
        monkeypatch.setitem(slurm.LAG_SECONDS, "local", 0.2)
        settings = slurm_settings(["cluster=local", "timeout_min=60"], 1)
        work = partial(slurm_job.do_run, card=None)
        asked: dict[str, Any] = {"cpus": 1, "num_ranks": 1, "work": work, "told": lambda sentence: None}
        yield Place("slurm", SlurmCluster(StandInSubmitit(), settings, store.folder, **asked), programs(monkeypatch, 0))
    else:
        cluster = RayCluster(request.getfixturevalue("started_ray"), os.cpu_count() or 1)  # one run at a time
        bodies = {"works": works, "breaks": breaks, "sleeps": sleeps, "fails": fails}
        yield Place("ray", cluster, lambda what, _: monkeypatch.setattr(ray_executor, "run_task", bodies[what]))


@pytest.fixture(scope="module")
def started_ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with ray_cluster(None, 1):
        ray.get(ray.remote(describes).remote(1))  # its first worker takes seconds to start
        yield ray


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def make_tasks(store: Store, *seeds: int, **more: Any) -> list[RunTask]:
    return [
        RunTask(
            spec=(spec := make_spec(seed=seed)),
            uuid=f"{seed:032x}",
            model=load_models()["smollm2-135m"],
            model_folder=None,
            rows_folder=None,
            cache_folder=store.folder,
            work_folder=work_folder(store, spec.run_id, f"{seed:032x}"),
            run_id=spec.run_id,
            **more,
        )
        for seed in seeds
    ]


def nothing_is_left(store: Store) -> bool:
    """Return whether no claim and no work folder is left in the results."""
    folders = [path for path in (store.folder / WORK).glob("*") if path.is_dir()]
    return not folders and not list((store.folder / FOLDER).glob("*.lease")) and not list(store.folder.glob(".seen-*"))


def test_the_environment_is_what_the_place_says(place: Place) -> None:
    assert place.executor.environment() == HERE


def test_every_run_has_one_record_stored_with_its_files_before_the_watcher_is_told(place: Place, store: Store) -> None:
    tasks, watcher = make_tasks(store, 1, 2), Watcher(store)
    place.do("works", tasks)
    tally = place.executor.run(Runs(tasks, store), watcher)
    assert {record.uuid for record in tally.records} == {task.uuid for task in tasks}
    assert list(tally.records) == watcher.ended
    assert sorted(record.uuid for record in store.read().records) == sorted(task.uuid for task in tasks)
    assert [record.status for record in tally.records] == ["ok", "ok"]
    assert all((store.folder / str(record.items)).read_bytes() == b"items" for record in tally.records)
    assert (tally.exit_code, tally.interrupted, tally.left_by_budget, tally.num_by_others) == (0, False, None, 0)
    assert nothing_is_left(store)


def test_a_run_that_fails_is_recorded_and_the_next_is_done(place: Place, store: Store) -> None:
    tasks = make_tasks(store, 1, 2)
    place.do("fails", tasks)
    tally = place.executor.run(Runs(tasks, store), Watcher(store))
    assert [record.status for record in tally.records] == ["failed", "failed"]
    assert all("exit status 7" in str(record.reason) for record in tally.records)
    assert tally.exit_code == 1
    assert nothing_is_left(store)


def test_no_run_starts_after_so_many_failures(place: Place, store: Store) -> None:
    tasks = make_tasks(store, 1, 2, 3)
    place.do("fails", tasks)
    tally = place.executor.run(Runs(tasks, store, Limits(max_failures=1)), Watcher(store))
    assert [record.status for record in tally.records][:1] == ["failed"]
    # Of a cluster the next may have begun when the first is known to have failed: it is interrupted.
    assert sum(record.status == "failed" for record in tally.records) + (tally.left_by_failures or 0) >= 2
    if place.name == "local":
        assert (len(tally.records), tally.left_by_failures) == (1, 2)
    assert (tally.left_by_budget, tally.exit_code, tally.not_started) == (None, 1, ())
    assert nothing_is_left(store)


@pytest.fixture
def cut_cluster(where: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    """A place for one run at a time whose workers are cut between two lines of their own."""
    monkeypatch.setattr(ray_executor, "describe_node", describes)
    monkeypatch.setattr(ray_executor, "run_task", is_cut)
    if where == "ray":
        yield RayCluster(request.getfixturevalue("started_ray"), os.cpu_count() or 1)
    else:
        yield RayCluster(ray := StandInRay(), 1)
        ray.close()


class WaitsForTheNext(Watcher):
    """Is told of a run's end only when the next has begun."""

    next: RunTask | None = None

    def run_ended(self, record: Record) -> None:
        super().run_ended(record)
        deadline = time.monotonic() + 60
        while self.next is not None and not list(self.next.work_folder.glob("*/begun")) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.next = None


@pytest.mark.parametrize("where", ["stand-in", RAY], indirect=True)
def test_a_run_that_is_taken_back_as_it_begins_leaves_nothing(cut_cluster: RayCluster, store: Store) -> None:
    tasks, watcher = make_tasks(store, 1, 4), WaitsForTheNext(store)
    watcher.next = tasks[1]
    tally = cut_cluster.run(Runs(tasks, store, Limits(max_failures=1)), watcher)
    assert [(record.spec.seed, record.status) for record in tally.records] == [(1, "failed")]
    assert (tally.left_by_failures, tally.exit_code) == (1, 1)
    assert nothing_is_left(store)


@pytest.mark.parametrize("where", ["stand-in", RAY], indirect=True)
@pytest.mark.parametrize(("seed", "status"), [(2, "ok"), (3, "interrupted")])
def test_what_a_cut_run_has_recorded_stands(cut_cluster: RayCluster, store: Store, seed: int, status: str) -> None:
    tasks, watcher = make_tasks(store, 1, seed), WaitsForTheNext(store)
    watcher.next = tasks[1]
    tally = cut_cluster.run(Runs(tasks, store, Limits(max_failures=1)), watcher)
    assert [(record.spec.seed, record.status) for record in tally.records] == [(1, "failed"), (seed, status)]
    assert (store.folder / str(tally.records[1].items)).read_bytes() == b"items"
    assert nothing_is_left(store)


@pytest.mark.parametrize(("seed", "status"), [(2, "ok"), (3, "failed"), (4, "failed")])
def test_what_a_lost_run_has_recorded_stands(
    store: Store, monkeypatch: pytest.MonkeyPatch, seed: int, status: str
) -> None:
    def dies(order_json: str, events: Any) -> bytes:
        leaves(order_json)
        raise Lost("its node is gone")

    monkeypatch.setattr(ray_executor, "describe_node", describes)
    monkeypatch.setattr(ray_executor, "run_task", dies)
    ray = StandInRay()
    tally = RayCluster(ray, 1).run(Runs(make_tasks(store, seed), store), Watcher(store))
    ray.close()
    (record,) = tally.records
    assert (record.status, record.items is not None) == (status, seed != 4)
    assert record.reason == (None if seed == 2 else "the cluster lost the run: its node is gone")
    assert nothing_is_left(store)


def test_so_many_failures_stop_nothing_that_works(place: Place, store: Store) -> None:
    tasks = make_tasks(store, 1, 2)
    place.do("works", tasks)
    tally = place.executor.run(Runs(tasks, store, Limits(max_failures=1)), Watcher(store))
    assert (len(tally.records), tally.left_by_failures, tally.exit_code) == (2, None, 0)


def test_other_seeds_of_what_failed_before_its_first_step_are_not_started(place: Place, store: Store) -> None:
    tasks = make_tasks(store, 1, 2, 3)
    place.do("breaks", tasks)
    tally = place.executor.run(Runs(tasks, store), Watcher(store))
    ran = {record.spec.seed for record in tally.records if record.status == "failed"}
    spared = {one.spec.seed for one in tally.not_started}
    # a cluster may have begun others before it tells how the first ended: none is lost, none both ran and was spared
    seeds = {record.spec.seed for record in tally.records}
    assert ran and not seeds & spared and seeds | spared == {1, 2, 3}
    if place.name == "local":
        assert (ran, spared) == ({1}, {2, 3})
    assert {one.ending.reason for one in tally.not_started} <= {"no such layer"}
    assert (tally.left_by_failures, tally.num_by_others, tally.exit_code) == (None, 0, 1)
    assert nothing_is_left(store)


def test_every_seed_is_tried_of_what_is_to_be_tried_again(place: Place, store: Store) -> None:
    tasks = make_tasks(store, 1, 2)
    place.do("breaks", tasks)
    tally = place.executor.run(Runs(tasks, store, tried=frozenset({"failed"})), Watcher(store))
    # a cluster tells of endings in no order
    assert (sorted(record.spec.seed for record in tally.records), tally.not_started) == ([1, 2], ())


def test_a_refusal_is_recorded_and_starts_nothing(place: Place, store: Store) -> None:
    tasks, watcher = make_tasks(store, 1, refusal="it needs more than there is"), Watcher(store)
    place.do("fails", tasks)
    tally = place.executor.run(Runs(tasks, store), watcher)
    assert [(record.status, record.reason) for record in watcher.ended] == [("refused", "it needs more than there is")]
    assert tally.records[0].environment == HERE
    assert tally.exit_code == 0
    assert nothing_is_left(store)


def test_a_run_that_could_not_be_scored_is_recorded_as_failed_and_starts_nothing(place: Place, store: Store) -> None:
    tasks, watcher = make_tasks(store, 1, unready="there are no rows"), Watcher(store)
    place.do("works", tasks)
    tally = place.executor.run(Runs(tasks, store), watcher)
    assert [(record.status, record.reason) for record in watcher.ended] == [("failed", "there are no rows")]
    assert tally.exit_code == 1
    assert nothing_is_left(store)


def test_what_is_not_wanted_any_more_is_not_done(place: Place, store: Store) -> None:
    tasks = make_tasks(store, 1, 2)
    place.do("works", tasks)
    tally = place.executor.run(Runs(tasks, store, wanted=lambda task: task.spec.seed == 2), Watcher(store))
    assert [record.spec.seed for record in tally.records] == [2]
    assert tally.num_by_others == 1
    assert nothing_is_left(store)


def test_runs_that_others_have_claimed_are_waited_for_and_done_when_they_are_given_up(
    place: Place, store: Store
) -> None:
    tasks = make_tasks(store, 1, 2)
    place.do("works", tasks)
    with Claims(store.folder) as others:
        assert others.take(tasks[0].uuid, "elsewhere")
        watcher = Watcher(store, on_wait=lambda: others.release(tasks[0].uuid))
        tally = place.executor.run(Runs(tasks, store), watcher)
    assert [record.spec.seed for record in tally.records] == [2, 1]
    assert watcher.waited == [1]
    assert nothing_is_left(store)


def test_no_run_starts_when_the_time_is_up(place: Place, store: Store) -> None:
    tasks = make_tasks(store, 1, 2)
    place.do("works", tasks)
    tally = place.executor.run(Runs(tasks, store, Limits(stop_at=time.monotonic())), Watcher(store))
    assert (tally.records, tally.left_by_budget, tally.exit_code) == ((), 2, 3)
    assert nothing_is_left(store)


def test_the_end_of_the_time_cuts_what_is_under_way_and_counts_it_as_left(place: Place, store: Store) -> None:
    tasks = make_tasks(store, 1, 2)
    place.do("sleeps", tasks)
    seconds = 6.0 if place.name == "ray" else 1.0  # a cluster takes its time to place a run
    tally = place.executor.run(Runs(tasks, store, Limits(stop_at=time.monotonic() + seconds)), Watcher(store))
    assert [(record.status, record.spec.seed) for record in tally.records] == [("interrupted", 1)]
    assert (tally.left_by_budget, tally.interrupted, tally.exit_code) == (2, False, 3)
    assert nothing_is_left(store)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_under_way_with_a_record_and_starts_no_other(
    place: Place, store: Store, number: int
) -> None:
    tasks = make_tasks(store, 1, 2)
    place.do("sleeps", tasks)
    tally = place.executor.run(Runs(tasks, store), Watcher(store, signals=[number]))
    assert [(record.status, record.spec.seed) for record in tally.records] == [("interrupted", 1)]
    assert (tally.interrupted, tally.exit_code) == (True, 130)
    assert nothing_is_left(store)


def test_a_run_that_takes_too_long_is_recorded_as_that(place: Place, store: Store) -> None:
    if place.name == "ray":
        pytest.skip("the worker's part is stood for, and with it the child's time")
    tasks = make_tasks(store, 1)
    place.do("sleeps", tasks)
    tally = place.executor.run(Runs(tasks, store, Limits(timeout_seconds=0.5)), Watcher(store))
    assert [(record.status, record.reason) for record in tally.records] == [("timed_out", "timed out after 0.5 s")]
    assert tally.exit_code == 1
    assert nothing_is_left(store)


def test_a_record_that_cannot_be_stored_ends_the_call_with_its_reason(
    place: Place, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise HarnessError("no space left")

    tasks = make_tasks(store, 1, 2)
    place.do("works", tasks)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", full)
        with pytest.raises(HarnessError, match="no space left"):
            place.executor.run(Runs(tasks, store), Watcher(store))
    assert not list((store.folder / FOLDER).glob("*.lease"))
    assert store.read().records == ()
