"""Runs a list of tasks on a Ray cluster: one Ray task a run, whose placement and retries are Ray's alone.

A run on several GPUs is one task too, so that it stays on one node. The parent submits, appends each record as it
comes, and shows the whole cluster. A cluster that it starts itself listens on 127.0.0.1 only and is stopped at the end;
one at an address is left as it was. Imports no torch.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.progress import Facts
from harness.record_environment import Environment
from harness.runs.claims import Claims
from harness.runs.executor import Runs, Tally, Watcher
from harness.runs.node import describe_node
from harness.runs.queue import RunQueue
from harness.runs.ray_worker import Order, run_task, unpack, what_is_left
from harness.runs.settling import Ledger
from harness.runs.signals import sigterm_interrupts
from harness.source import source_checksum
from harness.task import RunTask

RETRIES = 3
"""How often Ray starts a run again whose worker or node was lost."""
LIBRARIES_BYTES = 2 * 10**9
"""Host memory asked for beside the model's, for torch, transformers and what they load: an allowance, not measured."""
CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.5
AHEAD = 0.125
"""Runs that wait in the cluster for a place, as a share of its places."""
GRACE_SECONDS = 45.0
"""How long cancelled runs may take to hand in their records."""
SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else 127.0.0.1 is replaced by the machine's own address
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Read by Ray when it is imported."""
LOOPBACK = "127.0.0.1"


_Doing = tuple[str, str, int, int | None]
"""Node, what, how much is done, of how much."""


class _Events:
    """Actor: the last thing that each run was doing, and what its steps said."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[_Doing, list[Facts]]] = {}

    def say(
        self, task: str, node: str, what: str, done: int, total: int | None, *, facts: Sequence[Facts] = ()
    ) -> None:
        """Note what a run does, and what its steps have said since it was noted last."""
        _, before = self._last.get(task, (None, []))
        self._last[task] = (node, what, done, total), [*before, *facts]

    def take(self) -> dict[str, tuple[_Doing, list[Facts]]]:
        """Return what was noted since the last call."""
        taken, self._last = self._last, {}
        return taken


@contextmanager
def ray_cluster(address: str | None, cpus: int, num_ranks: int = 1) -> Iterator[RayCluster]:
    """Connect to the cluster at an address, or start one on this machine and stop it at the end.

    Args:
        address: As ``ray.init`` takes it, ``auto`` among others; None starts one.
        cpus: Of a run; its ranks share them out as threads of their torch.
        num_ranks: Processes of a run, on a GPU each where the cluster has any.

    Raises:
        HarnessError: ray is not installed, there is no cluster at the address, or no node of it has room for a run.
    """
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    try:
        import ray
    except ModuleNotFoundError as error:
        raise HarnessError("--executor ray needs ray: pip install ray, in a checkout pip install '.[ray]'") from error
    if ray.is_initialized():
        raise HarnessError("this process is connected to a Ray cluster already")
    _check_address(address)
    quiet: dict[str, Any] = {"configure_logging": True, "logging_level": "ERROR", "log_to_driver": False}
    with tempfile.TemporaryDirectory(prefix="harness-ray-") as folder:
        own: dict[str, Any] = {"_temp_dir": folder, "_node_ip_address": LOOPBACK, "include_dashboard": False}
        try:
            ray.init(address=address or "local", **quiet, **(own if address is None else {}))
        except (OSError, RuntimeError, ValueError) as error:
            raise HarnessError(
                f"--ray-address {address or 'local'}: no cluster could be joined: {_first_line(error)}"
            ) from error
        try:
            yield RayCluster(ray, cpus, num_ranks)
        finally:
            ray.shutdown()


def _check_address(address: str | None) -> None:
    """Refuse an address where nobody listens; Ray itself tries for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon:
        return
    if not port.isdecimal():
        raise HarnessError(f"--ray-address {address}: expected HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise HarnessError(f"--ray-address {address}: nobody answers there: {error}") from error


class RayCluster:
    """A cluster that this process is connected to; satisfies :class:`harness.runs.executor.Executor`."""

    def __init__(self, ray: Any, cpus: int, num_ranks: int = 1) -> None:
        """Take the connection.

        Args:
            ray: The module, connected.
            cpus: Of a run; its ranks share them out as threads of their torch.
            num_ranks: Processes of a run, on a GPU each where the cluster has any.

        Raises:
            HarnessError: a run has several ranks, and no node has as many GPUs, or as many CPUs as were asked for.
        """
        self.ray = ray
        self.threads = max(1, cpus // num_ranks)
        self._num_ranks = num_ranks
        self._asked = {"num_cpus": cpus, "num_gpus": num_ranks if ray.cluster_resources().get("GPU") else 0}
        if num_ranks > 1:
            self._check_room()
        self._environment: Environment | None = None

    def environment(self) -> Environment:
        """Return the environment of a run there, asked of a worker once.

        Raises:
            HarnessError: no worker could say, or it has another version of the harness.
        """
        if self._environment is None:
            self._environment = self._asked_environment()
        return self._environment

    def run(self, runs: Runs, watcher: Watcher) -> Tally:
        """Do runs wherever Ray places them; see :meth:`harness.runs.executor.Executor.run`."""
        self.environment()
        events = self.ray.remote(num_cpus=0)(_Events).remote()
        store = runs.store
        try:
            with Claims(store.folder) as claims, _marker(store.folder) as marker, sigterm_interrupts():
                queue = RunQueue(runs, claims, at_once=self.places() > 1)
                return _Session(self, runs, watcher, queue, events=events, marker=marker).do()
        finally:
            self.ray.kill(events)

    def places(self) -> int:
        """Return how many runs the cluster can do at once as it is now, at least one."""
        there = self.ray.cluster_resources()
        asked = {"CPU": self._asked["num_cpus"], "GPU": self._asked["num_gpus"]}
        room = [int(there[what] // number) for what, number in asked.items() if number and what in there]
        return max(1, min(room, default=1))

    def submit(self, order: Order, events: Any) -> Any:
        """Have Ray do a run, and return its reference."""
        spec = order.task.spec
        remote = self._remote(run_task, name=f"{spec.model_name} {spec.label}", memory=self._memory(order.task))
        return remote.remote(order.model_dump_json(), events)

    def _asked_environment(self) -> Environment:
        probe = self._remote(describe_node)
        try:
            described = Environment.model_validate_json(self.ray.get(probe.remote(self.threads)))
        except self.ray.exceptions.RayError as error:
            raise HarnessError(f"the cluster's environment cannot be described: {_first_line(error)}") from error
        environment = described.of_ranks(self._num_ranks)
        if not environment.has_source(source_checksum()):
            raise HarnessError(
                f"the cluster's harness has source checksum {environment.source}, this one "
                f"{source_checksum()[:12]}; install the same version on every node"
            )
        return environment

    def _check_room(self) -> None:
        """Refuse what Ray would let wait for ever: a run stays on one node."""
        for what, number in (("GPU", self._asked["num_gpus"]), ("CPU", self._asked["num_cpus"])):
            most = int(max((node["Resources"].get(what, 0) for node in self._nodes()), default=0))
            if most < number:
                raise HarnessError(
                    f"a run takes {number} {what}s of one node (gpus_per_run = {self._num_ranks}), and no node of the "
                    f"cluster has more than {most}"
                )

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _remote(self, function: Callable[..., bytes], **options: Any) -> Any:
        return self.ray.remote(**self._asked, max_retries=RETRIES, **options)(function)

    def _memory(self, task: RunTask) -> int:
        """Return the host memory that is asked for, at most what the largest node has."""
        prediction, needed = task.prediction, LIBRARIES_BYTES
        if prediction is not None:
            needed += prediction.weights_bytes if self._asked["num_gpus"] else prediction.peak_bytes
        needed *= self._num_ranks
        return int(min(needed, max((node["Resources"].get("memory", 0) for node in self._nodes()), default=0)))


class _Session:
    """One call: the runs that were submitted and have no record yet, and what the cluster does."""

    def __init__(
        self, cluster: RayCluster, runs: Runs, watcher: Watcher, queue: RunQueue, *, events: Any, marker: Path
    ) -> None:
        self._cluster = cluster
        self._ray = cluster.ray
        self._limits = runs.limits
        self._watcher = watcher
        self._observer = runs.observer
        self._queue = queue
        self._events = events
        self._marker = marker
        self._ledger = Ledger(runs, queue, watcher)
        self._pending: dict[Any, RunTask] = {}
        """By Ray's reference."""
        self._doing: dict[str, _Doing] = {}
        """By uuid."""
        self._cut: list[RunTask] = []
        """Runs that were interrupted and have a record that says so."""
        self._recalled: set[Any] = set()
        """References of runs that were taken back before they began."""

    def do(self) -> Tally:
        """Do what is to be done, and return how it went."""
        try:
            if self._collect():
                return self._ledger.tally()
            return self._ledger.tally(left_by_budget=self._queue.num_left(*self._cut, *self._pending.values()) or None)
        except KeyboardInterrupt:
            self._cancel()
            return self._ledger.tally(interrupted=True)
        except HarnessError:
            self._end(self._pending)
            raise

    def _collect(self) -> bool:
        """Begin every run that nobody does and take results as they come; return False when the time was up first."""
        waiting = False
        while self._pending or self._queue.waiting:
            if self._limits.over:
                self._cancel()
                return False
            self._fill()
            if self._pending:
                ready, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=POLL_SECONDS)
                self._show()
                for reference in ready:
                    self._take(reference)
                self._recall()
            elif self._queue.waiting:  # nothing is left but what other processes do
                if not waiting:
                    self._watcher.waits(len(self._queue.pending))
                waiting = True
                time.sleep(POLL_SECONDS)
        return True

    def _fill(self) -> None:
        """Begin as many runs as the cluster has places, and some more, so that a place is never without the next.

        All at once, Ray would do in the order of now, and begin a run that it lost behind all others, however long it
        is; a cluster that grows with what waits still sees that something does.
        """
        places = self._cluster.places()
        while len(self._pending) < places + max(1, int(places * AHEAD)) and (task := self._queue.next()) is not None:
            self._begin(task)

    def _begin(self, task: RunTask) -> None:
        if task.cannot_begin:
            self._ledger.keep_refusal(task, self._cluster.environment())
            return
        order = Order(
            task=task,
            environment=self._cluster.environment(),
            marker=self._marker,
            threads=self._cluster.threads,
            timeout_seconds=self._limits.timeout_seconds,
        )
        self._pending[self._cluster.submit(order, self._events)] = task

    def _take(self, reference: Any) -> None:
        """Hand in the record of a run that ended; one that was cancelled may have none."""
        task = self._pending[reference]
        exceptions = self._ray.exceptions
        ended = partial(task.record, self._cluster.environment(), datetime.now(UTC))
        try:
            record, work = unpack(self._ray.get(reference), task.work_folder)
        except exceptions.TaskCancelledError:
            # Before it began, or between two lines of the worker's own: then files of it may lie there.
            record, work = what_is_left(task, cut := ended("interrupted", "interrupted"))
            if record is cut:
                self._forget(reference)
                return
        except (exceptions.RayError, HarnessError) as error:
            record, work = what_is_left(task, ended("failed", f"the cluster lost the run: {_first_line(error)}"))
        if record.was_interrupted:
            self._cut.append(task)
        self._ledger.keep(task, record, work)
        del self._pending[reference]
        self._doing.pop(task.uuid, None)

    def _forget(self, reference: Any) -> None:
        """Remove what a run left that was cancelled and has no record; one that was taken back is still to do."""
        self._ledger.forget(self._pending[reference])
        if reference in self._recalled:
            self._queue.take_back(self._pending.pop(reference))

    def _recall(self) -> None:
        """Take back what has not begun and is not to begin any more; what begins this moment is interrupted."""
        for reference, task in self._pending.items():
            if task.uuid not in self._doing and reference not in self._recalled and self._queue.is_off(task):
                self._recalled.add(reference)
                self._ray.cancel(reference, force=False)

    def _cancel(self) -> None:
        """Interrupt what runs, take its records, and leave what has not begun; a second Ctrl-C ends all at once."""
        references = list(self._pending)
        for reference in references:
            self._ray.cancel(reference, force=False)
        try:
            ready, _ = self._ray.wait(references, num_returns=len(references), timeout=GRACE_SECONDS)
        except KeyboardInterrupt:
            ready = []
        for reference in ready:
            self._take(reference)
        self._end(set(references) - set(ready))

    def _end(self, references: Iterable[Any]) -> None:
        """End runs at once, without records."""
        for reference in references:
            self._ray.cancel(reference, force=True)

    def _show(self) -> None:
        """Tell the watcher what begins, and what the cluster is doing."""
        said = self._ray.get(self._events.take.remote())
        waiting = {task.uuid: task for task in self._pending.values()}
        for name, (now, facts) in said.items():
            if name not in waiting:
                continue
            if name not in self._doing:
                self._watcher.run_begins(waiting[name])
                self._observer.begins(waiting[name])
            self._doing[name] = now
            for one in facts:
                self._observer.told(waiting[name], one)
        if said and self._doing:
            nodes = len({node for node, *_ in self._doing.values()})
            name, (_, what, done, total) = list(self._doing.items())[-1]
            num_waiting = len(waiting) - len(self._doing) + len(self._queue.pending)
            counts = f"{len(self._doing)} running on {nodes} nodes, {num_waiting} waiting"
            self._watcher.progress(f"{counts}; {waiting[name].spec.label}: {what}", done, total)


@contextmanager
def _marker(results: Path) -> Iterator[Path]:
    """Give a file by which a node knows that it sees the results folder."""
    file = results / f".seen-{uuid.uuid4().hex}"
    file.touch()
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
