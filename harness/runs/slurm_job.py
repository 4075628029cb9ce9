"""What a Slurm job does on its node: one run, claimed, started, watched and stored as ``harness run`` does there.

The results folder is shared, so the job writes the record itself: whoever submitted it may be gone by then. Slurm's
signals go to every process of a job; the run's children do not hear them, and are told by this process, so that they
leave their record. Imports neither torch nor submitit.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from harness.answers import answer
from harness.errors import HarnessError
from harness.files import said_as, write_file
from harness.readings import recorded_as, scored_run
from harness.record import Record
from harness.runs.describing import Card
from harness.runs.executor import Limits, Runs
from harness.runs.local import Device, LocalMachine
from harness.runs.node import check_source, describe_node, devices_of_ranks, localize
from harness.runs.slurm_files import Answer, Order, SlurmFiles
from harness.runs.starting import Hurried, Process, start_anew
from harness.store import Following, Store
from harness.task import RunTask

SLURM_SIGNALS = frozenset({signal.SIGTERM, signal.SIGUSR2})
"""Sent to all processes of a job: when it is cancelled or preempted, and before its time limit, as submitit asks."""
INTERRUPTED = 130
"""Exit status of a job that was told to end."""


def describe(file: Path, threads: int) -> None:
    """Write the environment of a run on this node, as JSON."""
    with said_as(f"{file}: the node's environment cannot be written"):
        write_file(file, describe_node(threads))


def do_run(order_json: str, card: Card | None) -> None:
    """Do a run, store its record and leave an answer.

    A job that was told to end exits without one that counts: Slurm says whether it begins anew.

    Args:
        order_json: An :class:`Order`.
        card: What writes the card of kept weights; None: they have none.

    Raises:
        HarnessError: a record cannot be stored.
    """
    order = Order.model_validate_json(order_json)
    began = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = str(order.threads)
    for number in SLURM_SIGNALS:  # submitit's own would end this process in the midst of storing
        signal.signal(number, signal.default_int_handler if number == signal.SIGTERM else lambda *_: None)
    store, files = Store(order.results), SlurmFiles(order.results)
    task, variables = _placed(_anew(order.task, store), order)
    machine = LocalMachine([Device(order.environment, variables)], start=_start_unheard)
    left = order.limit_seconds - (time.monotonic() - began)
    limits = Limits(timeout_seconds=left if order.timeout_seconds is None else min(left, order.timeout_seconds))
    runs = Runs([task], store, limits, _Wanted(order, store), frozenset(order.retry), card=card, patient=False)
    tally = machine.run(runs, _Silent())
    record = tally.records[-1] if tally.records else None
    said = Answer(uuid=None if record is None else scored_run(record), interrupted=tally.interrupted)
    with said_as(f"{files.folder}: the job's answer cannot be written"):
        write_file(files.answer_file(order.task.uuid), said.model_dump_json())
    if tally.interrupted:
        sys.exit(INTERRUPTED)


class _Wanted:
    """Whether the run is still to be done, by the records as they are now; what is asked for once more always is."""

    def __init__(self, order: Order, store: Store) -> None:
        task = order.task
        self._always = task.claim is None
        anywhere = task.claim == task.run_id
        self._environment_id = None if anywhere else order.environment.environment_id
        self._retry = frozenset(order.retry)
        self._records = Following(store, task.spec.suite)

    def __call__(self, task: RunTask) -> bool:
        if self._always:
            return True
        return answer(self._records.contents().records, task.spec, self._environment_id, self._retry) is None


class _Silent:
    """Tells nobody how a run goes: the parent hears of its end."""

    def run_begins(self, task: RunTask) -> None:
        """Say nothing."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Say nothing."""

    def run_ended(self, record: Record) -> None:
        """Say nothing."""

    def waits(self, num_runs: int) -> None:
        """Say nothing."""


def _anew(task: RunTask, store: Store) -> RunTask:
    """Return the task as another attempt where Slurm began this job before: that one has a folder or a record."""
    known = recorded_as(store.read(task.spec.suite).records, task.uuid) is not None
    if not known and not task.work_folder.exists():
        return task
    name = uuid.uuid4().hex
    return task.model_copy(update={"uuid": name, "work_folder": task.work_folder.with_name(f"{task.run_id}-{name}")})


def _placed(task: RunTask, order: Order) -> tuple[RunTask, tuple[Mapping[str, str], ...]]:
    """Return the task with the places of this node, and the variables of its ranks.

    Where the node cannot do it, the task says why, and is recorded as failed.
    """
    node = socket.gethostname()
    try:
        check_source(order.environment, node)
        here = localize(task)
        return here, tuple(devices_of_ranks(task.gpus_per_run, order.environment, "Slurm"))
    except HarnessError as error:
        unready = task.model_copy(update={"unready": f"on node {node}: {error}"})
        return unready, ({},) * task.gpus_per_run


def _start_unheard(variables: Mapping[str, str], hurried: Hurried) -> Process:
    """Start a child that does not hear Slurm's signals: a process is born with the signals blocked that its parent's
    thread has blocked.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SLURM_SIGNALS)
    try:
        return start_anew(variables, hurried)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
