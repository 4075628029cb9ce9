"""Runs a list of tasks on a Ray cluster: one Ray task a run, whose placement and retries are Ray's alone.

The parent submits, appends each record as it comes, and shows the whole cluster. A cluster that it starts itself
listens on 127.0.0.1 only and is stopped at the end; one at an address is left as it was. Imports no torch.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.engine.claims import Claims
from harness.engine.executors import RunQueue, Tally, Watcher, settle
from harness.engine.ray_worker import Order, describe_node, run_task, unpack
from harness.engine.task import RunTask
from harness.errors import HarnessError
from harness.record import Environment, Record
from harness.source import source_checksum
from harness.store import Store

RETRIES = 3
"""How often Ray starts a run again whose worker or node was lost."""
LIBRARIES_BYTES = 2 * 10**9
"""Host memory asked for beside the model's, for torch, transformers and what they load: an allowance, not measured."""
CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.5
GRACE_SECONDS = 45.0
"""How long cancelled runs may take to hand in their records."""
SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else 127.0.0.1 is replaced by the machine's own address
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Read by Ray when it is imported."""
LOOPBACK = "127.0.0.1"


class _Events:
    """Actor: the last thing that each run was doing."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, str, int, int | None]] = {}

    def say(self, task: str, node: str, what: str, done: int, total: int | None) -> None:
        """Note what a run does."""
        self._last[task] = node, what, done, total

    def take(self) -> dict[str, tuple[str, str, int, int | None]]:
        """Return what was noted since the last call."""
        taken, self._last = self._last, {}
        return taken


@contextmanager
def ray_cluster(address: str | None, threads: int) -> Iterator[RayCluster]:
    """Connect to the cluster at an address, or start one on this machine and stop it at the end.

    Args:
        address: As ``ray.init`` takes it, ``auto`` among others; None starts one.
        threads: CPUs of a run, and threads of its torch.

    Raises:
        HarnessError: ray is not installed, or there is no cluster at the address.
    """
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    try:
        import ray
    except ModuleNotFoundError as error:
        raise HarnessError("--executor ray needs the extra: pip install 'finetune-harness[ray]'") from error
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
            yield RayCluster(ray, threads)
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


@dataclass
class _Batch:
    """The runs of one call: those that were submitted and have no record yet, and whom to tell."""

    environment: Environment
    watcher: Watcher
    events: Any
    done: Callable[[RunTask, Record, Path], None]
    """Called with the folder of its files."""
    pending: dict[Any, RunTask] = field(default_factory=dict)
    """By Ray's reference."""
    doing: dict[str, tuple[str, str, int, int | None]] = field(default_factory=dict)
    """By uuid: node, what, how much is done, of how much."""


class RayCluster:
    """A cluster that this process is connected to."""

    def __init__(self, ray: Any, threads: int) -> None:
        self._ray = ray
        self._threads = threads
        self._num_gpus = 1 if ray.cluster_resources().get("GPU") else 0

    def environment(self) -> Environment:
        """Return the environment of a run there, asked of a worker.

        Raises:
            HarnessError: no worker could say, or it has another version of the harness.
        """
        probe = self._remote(describe_node)
        try:
            environment = Environment.model_validate_json(self._ray.get(probe.remote(self._threads)))
        except self._ray.exceptions.RayError as error:
            raise HarnessError(f"the cluster's environment cannot be described: {_first_line(error)}") from error
        if environment.source_checksum != source_checksum():
            raise HarnessError(
                f"the cluster's harness has source checksum {environment.source_checksum[:12]}, this one "
                f"{source_checksum()[:12]}; install the same version on every node"
            )
        return environment

    def run(
        self,
        tasks: Sequence[RunTask],
        *,
        store: Store,
        environment: Environment,
        watcher: Watcher,
        timeout_seconds: float | None = None,
        stop_at: float | None = None,
        wanted: Callable[[RunTask], bool] = lambda task: True,
    ) -> Tally:
        """Execute tasks wherever Ray places them; arguments and return as :func:`executors.run_locally`.

        Raises:
            HarnessError: a record cannot be stored.
        """
        records: list[Record] = []
        events = self._ray.remote(num_cpus=0)(_Events).remote()
        with Claims(store.folder) as claims, _marker(store.folder) as marker, _sigterm_interrupts():
            queue = RunQueue(tasks, claims, wanted)

            def done(task: RunTask, record: Record, work: Path) -> None:
                records.append(settle(work, record, store, task.checkpoint_folder))
                shutil.rmtree(task.work_folder, ignore_errors=True)
                queue.release(task)
                watcher.run_ended(records[-1])

            batch = _Batch(environment, watcher, events, done)

            def begin(task: RunTask) -> None:
                if task.refusal is not None:
                    refused = task.record(environment, datetime.now(UTC), "refused", task.refusal)
                    done(task, refused, task.work_folder)
                    return
                order = Order(
                    task=task,
                    environment=environment,
                    marker=marker,
                    threads=self._threads,
                    timeout_seconds=timeout_seconds,
                )
                batch.pending[self._submit(order, events)] = task

            def tally(**more: Any) -> Tally:
                return Tally(tuple(records), num_by_others=queue.num_by_others, **more)

            try:
                in_time = self._collect(batch, queue, begin, stop_at)
            except KeyboardInterrupt:
                self._cancel(batch)
                return tally(interrupted=True)
            finally:
                self._ray.kill(events)
            return tally() if in_time else tally(left_by_budget=queue.num_left(*batch.pending.values()) or None)

    def _submit(self, order: Order, events: Any) -> Any:
        spec = order.task.spec
        remote = self._remote(run_task, name=f"{spec.model_name} {spec.label}", memory=self._memory(order.task))
        return remote.remote(order.model_dump_json(), events)

    def _remote(self, function: Callable[..., bytes], **options: Any) -> Any:
        asked = {"num_cpus": self._threads, "num_gpus": self._num_gpus, "max_retries": RETRIES, **options}
        return self._ray.remote(**asked)(function)

    def _memory(self, task: RunTask) -> int:
        """Return the host memory that is asked for, at most what the largest node has."""
        prediction, needed = task.prediction, LIBRARIES_BYTES
        if prediction is not None:
            needed += prediction.weights_bytes if self._num_gpus else prediction.peak_bytes
        nodes = [node["Resources"].get("memory", 0) for node in self._ray.nodes() if node["Alive"]]
        return int(min(needed, max(nodes, default=0)))

    def _collect(self, batch: _Batch, queue: RunQueue, begin: Callable[[RunTask], None], stop_at: float | None) -> bool:
        """Begin every run that nobody does and take results as they come; return False when the time was up first."""
        waiting = False
        while True:
            while (task := queue.next()) is not None:
                begin(task)
            if not batch.pending and not queue.pending:
                return True
            if stop_at is not None and time.monotonic() >= stop_at:
                self._cancel(batch)
                return False
            if not batch.pending:  # nothing is left but what other processes do
                if not waiting:
                    batch.watcher.waits(len(queue.pending))
                waiting = True
                time.sleep(POLL_SECONDS)
                continue
            ready, _ = self._ray.wait(list(batch.pending), num_returns=1, timeout=POLL_SECONDS)
            self._show(batch)
            for reference in ready:
                self._take(batch, reference)

    def _take(self, batch: _Batch, reference: Any) -> bool:
        """Hand in the record of a run that ended; return False where it was cancelled before it began."""
        task = batch.pending[reference]
        exceptions, work = self._ray.exceptions, task.work_folder
        try:
            record, work = unpack(self._ray.get(reference), work)
        except exceptions.TaskCancelledError:
            return False
        except (exceptions.RayError, HarnessError) as error:
            reason = f"the cluster lost the run: {_first_line(error)}"
            record = task.record(batch.environment, datetime.now(UTC), "failed", reason)
        batch.done(task, record, work)
        del batch.pending[reference]
        batch.doing.pop(task.uuid, None)
        return True

    def _cancel(self, batch: _Batch) -> None:
        """Interrupt what runs, take its records, and leave what has not begun; a second Ctrl-C ends all at once."""
        references = list(batch.pending)
        for reference in references:
            self._ray.cancel(reference, force=False)
        try:
            ready, _ = self._ray.wait(references, num_returns=len(references), timeout=GRACE_SECONDS)
        except KeyboardInterrupt:
            ready = []
        for reference in ready:
            self._take(batch, reference)
        for reference in set(references) - set(ready):
            self._ray.cancel(reference, force=True)

    def _show(self, batch: _Batch) -> None:
        """Tell the watcher what begins, and what the cluster is doing."""
        said = self._ray.get(batch.events.take.remote())
        waiting = {task.uuid: task for task in batch.pending.values()}
        for name, now in said.items():
            if name not in waiting:
                continue
            if name not in batch.doing:
                batch.watcher.run_begins(waiting[name])
            batch.doing[name] = now
        if said and batch.doing:
            nodes = len({node for node, *_ in batch.doing.values()})
            name, (_, what, done, total) = list(batch.doing.items())[-1]
            counts = f"{len(batch.doing)} running on {nodes} nodes, {len(waiting) - len(batch.doing)} waiting"
            batch.watcher.progress(f"{counts}; {waiting[name].spec.label}: {what}", done, total)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM stop as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
