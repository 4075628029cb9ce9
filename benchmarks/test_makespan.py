"""How long 1,000 runs of mixed length take on 64 GPUs, over the least that any order could: aim at most 1.1.

    pytest benchmarks/test_makespan.py -s

Simulated: the clock and the children. Real: the queue, the claims as files in one results folder, the records that say
what is still wanted (8 processes of 8 GPUs each claim from it), and for Ray the executor, on a stand-in that places
what it is given first come, first served, and puts what it lost behind all that waits; the last test holds that model
against a cluster. Lengths are log-normal; what is predicted is off by a fifth. Of the attempts 3% fail and 5% of
first ones run out of memory, somewhere between their begin and their end; under claims another process takes such a run
up (``--retry out_of_memory``), under Ray it is lost with its worker and Ray begins it again.

The lower bound counts the work that was done, failed attempts too, over all GPUs, and the longest run with its own.
HARNESS_BENCH_RUNS, HARNESS_BENCH_SEEDS: how many runs (1000) and how many draws (3).
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.catalogue.models import load_models
from harness.commands.run import _Wanted
from harness.record import Record, Status
from harness.record_training import Prediction
from harness.runs.claims import Claims
from harness.runs.executor import Runs
from harness.runs.queue import RunQueue
from harness.runs.ray import LOOPBACK, RETRIES, SETTINGS, RayCluster, run_task
from harness.runs.ray_worker import Order, pack
from harness.runs.settling import Ledger, work_folder
from harness.source import source_checksum
from harness.store import Store
from harness.task import RunTask

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own models and records
from tests.records import ENVIRONMENT, make_spec

NUM_RUNS = int(os.environ.get("HARNESS_BENCH_RUNS", "1000"))
NUM_DRAWS = int(os.environ.get("HARNESS_BENCH_SEEDS", "3"))
NUM_NODES, GPUS_A_NODE = 8, 8
NUM_GPUS = NUM_NODES * GPUS_A_NODE
LABELS = 100
"""Of which each has as many seeds as it takes."""
SPREAD, NOISE, ERROR = 0.8, 0.05, 0.2
"""Deviations of the logarithm: of the lengths of labels, of runs of a label, and of what is predicted."""
FAILS, OUT_OF_MEMORY = 0.03, 0.05
LIMIT = 1.1
START = datetime(2026, 1, 1, tzinfo=UTC)
HERE = ENVIRONMENT.model_copy(update={"source_checksum": source_checksum()})
RETRY = frozenset({"out_of_memory"})


@dataclass
class Workload:
    """Runs, how long each takes, and how its attempts end."""

    draw: int
    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    tasks: list[RunTask] = field(default_factory=list)
    attempts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds that each attempt at a run took."""

    def __post_init__(self) -> None:
        chance = random.Random(f"lengths {self.draw}")
        labels = [(3600 * chance.lognormvariate(0, SPREAD), chance.lognormvariate(0, ERROR)) for _ in range(LABELS)]
        store = Store(self.folder)
        for number in range(NUM_RUNS):
            seed, label = divmod(number, LABELS)
            length, error = labels[label]
            spec = make_spec(label=f"label{label}", config={"rank": label}, seed=seed)
            name = f"{number:032x}"
            self.seconds[spec.run_id] = length * chance.lognormvariate(0, NOISE)
            self.tasks.append(
                RunTask(
                    spec=spec,
                    uuid=name,
                    model=load_models()["smollm2-135m"],
                    model_folder=None,
                    rows_folder=None,
                    cache_folder=self.folder,
                    work_folder=work_folder(store, spec.run_id, name),
                    run_id=spec.run_id,
                    claim=spec.run_id,
                    prediction=predicted(int(1e9 * length * error)),
                )
            )
        chance.shuffle(self.tasks)  # the order of a file says nothing of lengths

    def attempt(self, run_id: str) -> tuple[float, Status]:
        """Return how long the next attempt at a run takes and how it ends: the same in every simulation."""
        before = len(self.attempts[run_id])
        chance = random.Random(f"{self.draw} {run_id} {before}")
        ending, at = chance.random(), chance.random()
        status: Status = "failed" if ending < FAILS else "ok"
        if not before and FAILS <= ending < FAILS + OUT_OF_MEMORY:
            status = "out_of_memory"
        seconds = self.seconds[run_id] * (1.0 if status == "ok" else at)
        self.attempts[run_id].append(seconds)
        return seconds, status

    @property
    def lower_bound(self) -> float:
        """Return the seconds that no order of these attempts could do with less of."""
        chains = [sum(tries) for tries in self.attempts.values()]
        return max(sum(chains) / NUM_GPUS, *chains)


def predicted(flops: int) -> Prediction:
    parts = ("weights_bytes", "gradients_bytes", "optimizer_state_bytes", "activations_bytes", "other_bytes")
    values: dict[str, Any] = {"device": "cpu", "horizon": "run", "peak_bytes": 5, "peak_phase": "backward"}
    values |= {"weights_bytes": 1, "gradients_bytes": 1, "optimizer_state_bytes": 1, "peak_step": 1}
    values |= {"at_peak": dict.fromkeys(parts, 1), "trainable_params": 1, "flops_per_step": flops}
    values |= {"recomputed_flops_per_step": 0, "predict_seconds": 1.0, "torch": "2.13.0"}
    return Prediction.model_validate(values)


class Silent:
    def run_begins(self, task: RunTask) -> None:
        """Ignore it."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Ignore it."""

    def run_ended(self, record: Record) -> None:
        """Ignore it."""

    def waits(self, num_runs: int) -> None:
        """Ignore it."""


class InOrderOfFile(RunQueue):
    """The queue as it was: whatever is first in the file."""

    def _put_in_order(self, *, beside_others: bool) -> None:
        pass


def record_of(task: RunTask, begun: float, ended: float, status: Status) -> Record:
    started_at, finished_at = (START + timedelta(seconds=seconds) for seconds in (begun, ended))
    record = task.record(HERE, started_at, status, None if status == "ok" else "simulated")
    return record.model_copy(update={"uuid": f"{task.uuid}-{int(begun)}", "finished_at": finished_at})


@dataclass
class Claiming:
    """What claiming took, beside the makespan."""

    makespan: float
    claims: int
    seconds: float
    """Of this process, in all calls for a next run."""
    slowest: float


def by_claims(load: Workload, kind: type[RunQueue]) -> Claiming:
    """Return how long all runs take 8 processes that share a results folder."""
    store = Store(load.folder)
    now, numbers = 0.0, itertools.count()
    asked: list[float] = []
    events: list[tuple[float, int, int, RunTask, float, Status]] = []
    idle = deque(node for _ in range(GPUS_A_NODE) for node in range(NUM_NODES))
    with ExitStack() as stack:
        queues, ledgers = [], []
        for _ in range(NUM_NODES):
            wanted = _Wanted(store, "tiny", HERE.environment_id, RETRY)
            runs = Runs(load.tasks, store, wanted=lambda task, wanted=wanted: wanted(task.spec), tried=RETRY)  # type: ignore[misc]
            queues.append(kind(runs, stack.enter_context(Claims(load.folder)), at_once=True))
            ledgers.append(Ledger(runs, queues[-1], Silent()))
        while True:
            waiting = []
            while idle:
                node = idle.popleft()
                begun = time.perf_counter()
                task = queues[node].next()
                asked.append(time.perf_counter() - begun)
                if task is None:
                    waiting.append(node)
                    continue
                seconds, status = load.attempt(task.run_id)
                heapq.heappush(events, (now + seconds, next(numbers), node, task, now, status))
            if not events:
                break
            ended, _, node, task, began, status = heapq.heappop(events)
            now = ended
            ledgers[node].keep(task, record_of(task, began, now, status))
            idle.extend([node, *waiting])
    return Claiming(now, sum(map(len, load.attempts.values())), sum(asked), max(asked))


class Lost(Exception):
    """Ray's word for a run whose worker was lost too often."""


class SimulatedRay:
    """As much of Ray as the executor uses: places for 64 runs, first come, first served, on a clock of its own."""

    exceptions = SimpleNamespace(RayError=Lost, TaskCancelledError=type("Cancelled", (Exception,), {}))

    def __init__(self, load: Workload, places: int = NUM_GPUS) -> None:
        self.now = 0.0
        self._load = load
        self._free = places
        self._numbers = itertools.count()
        self._queue: deque[tuple[int, Order]] = deque()
        self._running: list[tuple[float, int, Order, float, Status]] = []
        self._done: dict[int, Any] = {}
        self._tries: dict[int, int] = defaultdict(int)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 16.0 * NUM_GPUS, "GPU": float(NUM_GPUS)}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"memory": 2.0**40, "GPU": GPUS_A_NODE}}] * NUM_NODES

    def remote(self, **_: Any) -> Callable[[Any], Any]:
        return lambda what: SimpleNamespace(remote=lambda *given: self._sent(what, given))

    def _sent(self, what: Any, given: Sequence[Any]) -> Any:
        if what is run_task:
            number = next(self._numbers)
            self._queue.append((number, Order.model_validate_json(given[0])))
            self._place()
            return number
        if isinstance(what, type):  # the actor that is told what runs do
            return SimpleNamespace(take=SimpleNamespace(remote=dict))
        return HERE.model_dump_json().encode()

    def _place(self) -> None:
        while self._free and self._queue:
            number, order = self._queue.popleft()
            seconds, status = self._load.attempt(order.task.run_id)
            self._free -= 1
            heapq.heappush(self._running, (self.now + seconds, number, order, self.now, status))

    def wait(self, references: Sequence[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        while self._running and not any(number in self._done for number in references):
            self.now, number, order, began, status = heapq.heappop(self._running)
            self._free += 1
            self._tries[number] += 1
            if status == "ok":
                record = record_of(order.task, began, self.now, "ok")
                self._done[number] = pack(record, order.task.work_folder, send_files=False)
            elif self._tries[number] <= RETRIES:
                self._queue.append((number, order))
            else:
                self._done[number] = Lost("lost too often")
            self._place()
        ready = [number for number in references if number in self._done]
        return ready, [number for number in references if number not in self._done]

    def get(self, reference: Any) -> Any:
        found = self._done.get(reference) if isinstance(reference, int) else reference
        if isinstance(found, Exception):
            raise found
        return found

    def cancel(self, reference: Any, force: bool) -> None:
        raise AssertionError("nothing is cancelled here")

    def kill(self, actor: Any) -> None:
        """Ignore it."""


class AllAtOnce(RayCluster):
    """The executor as it was: Ray is given every run at once, in the order of the file."""

    def places(self) -> int:
        return 1 if self._asked_for_queue() else 10**6

    def _asked_for_queue(self) -> bool:
        self.calls = getattr(self, "calls", 0) + 1
        return self.calls == 1


def by_ray(load: Workload, kind: type[RayCluster]) -> float:
    """Return how long all runs take the executor on a simulated cluster."""
    ray = SimulatedRay(load)
    tally = kind(ray, 16).run(Runs(load.tasks, Store(load.folder)), Silent())
    assert len(tally.records) == NUM_RUNS
    return ray.now


def draws(tmp_path: Path, name: str) -> Iterator[Workload]:
    for draw in range(1, NUM_DRAWS + 1):
        folder = tmp_path / f"{name}-{draw}"
        folder.mkdir()
        yield Workload(draw, folder)


def done(load: Workload) -> set[str]:
    return {record.run_id for record in Store(load.folder).read("tiny").records if record.is_ok}


def test_makespan_by_our_claims(tmp_path: Path) -> None:
    print(f"\n{NUM_RUNS} runs, {NUM_NODES} processes of {GPUS_A_NODE} GPUs; makespan / lower bound")
    print("draw  in the file's order  longest first   claims  ms a claim  slowest ms")
    ratios = []
    files, longest = draws(tmp_path, "file"), draws(tmp_path, "longest")
    for before, now in zip(files, longest, strict=True):
        in_order, ours = by_claims(before, InOrderOfFile), by_claims(now, RunQueue)
        assert len(done(now)) == NUM_RUNS
        assert done(before) == done(now)
        ratios.append(ours.makespan / now.lower_bound)
        print(
            f"{now.draw:4d}  {in_order.makespan / before.lower_bound:19.3f}  {ratios[-1]:13.3f}  {ours.claims:7d}"
            f"  {1000 * ours.seconds / ours.claims:10.1f}  {1000 * ours.slowest:10.1f}",
            flush=True,
        )
    assert max(ratios) <= LIMIT


def test_makespan_by_ray(tmp_path: Path) -> None:
    print(f"\n{NUM_RUNS} runs, {NUM_GPUS} GPUs under Ray; makespan / lower bound")
    print("draw  all at once, in the file's order  longest first, as there is place")
    ratios = []
    for before, now in zip(draws(tmp_path, "file"), draws(tmp_path, "longest"), strict=True):
        in_order, ours = by_ray(before, AllAtOnce), by_ray(now, RayCluster)
        assert done(before) | done(now) <= {task.run_id for task in now.tasks}
        ratios.append(ours / now.lower_bound)
        print(f"{now.draw:4d}  {in_order / before.lower_bound:32.3f}  {ratios[-1]:32.3f}")
    assert max(ratios) <= LIMIT


SECONDS = (0.2, 0.4, 0.8, 1.6)


def sleep_once_lost(mark: str, seconds: float, lost: bool) -> tuple[float, float]:
    """Sleep, and return when that began and ended; where it is to be lost once, the first attempt's worker dies."""
    begun = time.time()
    if lost and not os.path.exists(mark):  # noqa: PTH110 - it runs in a worker that may not have this module's names
        with open(mark, "x"):  # noqa: PTH123
            os._exit(1)
    time.sleep(seconds)
    return begun, time.time()


def test_ray_places_first_come_first_served_and_what_it_lost_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster of four places is given 40 tasks at once: who begins when is as on the stand-in."""
    for name, value in SETTINGS.items():  # read when ray is imported
        monkeypatch.setenv(name, value)
    ray = pytest.importorskip("ray")
    chance = random.Random(1)
    lengths = [chance.choice(SECONDS) for _ in range(40)]
    lost = {2, 3}
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a socket's path is short
        own: dict[str, Any] = {"_temp_dir": folder, "_node_ip_address": LOOPBACK, "include_dashboard": False}
        ray.init(address="local", num_cpus=4, log_to_driver=False, **own)
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(sleep_once_lost)
        ray.get([remote.remote("", 0.1, False) for _ in range(8)])  # starts the workers
        references = [remote.remote(str(tmp_path / f"{i}"), lengths[i], i in lost) for i in range(40)]
        spans = ray.get(references)
        ray.shutdown()
    began = [begun for begun, _ in spans]
    order = sorted(range(40), key=began.__getitem__)
    kept = [number for number in order if number not in lost]
    print(f"\nbegun on the cluster in the order {order}")
    overtaken = {number: sum(other > number for other in kept[: kept.index(number)]) for number in kept}
    assert max(overtaken.values()) <= 2 * 4  # workers that have to be started first let a few pass
    assert sorted(order.index(number) for number in lost)[0] >= 20  # behind most of what waited when it was lost
