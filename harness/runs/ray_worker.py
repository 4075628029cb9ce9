"""What a Ray worker does with a run: the same child processes as on one machine, its files sent back as bytes.

Ray carries JSON text out and bytes back. A node that sees the parent's results folder leaves the files there; any other
sends them along. A node without the parent's cache prepares its own. Imports neither torch nor ray.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from harness.errors import HarnessError
from harness.progress import Facts, throttled
from harness.record import Record
from harness.record_environment import Environment
from harness.runs.child import TRAINED_FILE, left_record
from harness.runs.executor import Limits
from harness.runs.fate import with_what_is_left
from harness.runs.node import check_source, devices_of_ranks, localize
from harness.runs.process import Interrupted, launch
from harness.runs.signals import hear_interrupts
from harness.task import RunTask

RECORD, ATTEMPT = "record.json", "attempt"
EVENT_SECONDS = 1.0


class Order(BaseModel):
    """What a worker needs to know to do one run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: RunTask
    environment: Environment
    """What the cluster's probe said, for the record of a child that leaves none."""
    marker: Path
    """A file that only a node with the parent's results folder sees."""
    threads: int
    """Of torch, in each rank."""
    timeout_seconds: float | None


def run_task(order_json: str, events: Any) -> bytes:
    """Execute a run and return its record and files, packed.

    Args:
        order_json: An :class:`Order`.
        events: Actor with ``say``, told what goes on.
    """
    hear_interrupts()
    order = Order.model_validate_json(order_json)
    task, environment = order.task, order.environment
    os.environ["OMP_NUM_THREADS"] = str(order.threads)
    node = socket.gethostname()
    events.say.remote(task.uuid, node, "starting", 0, None)
    started_at = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="harness-run-") as temporary:
        shared = order.marker.exists()
        # Each attempt at a run has a folder of its own: one that Ray gave up may still be writing.
        attempt = f"attempt-{os.getpid()}-{started_at:%H%M%S%f}"
        folder = (task.work_folder if shared else Path(temporary)) / attempt
        try:
            check_source(environment, node)
            here = localize(task.model_copy(update={"work_folder": folder}))
            record = _launched(here, order, events, node)
        except HarnessError as error:
            record = task.record(environment, started_at, "failed", f"on node {node}: {error}")
        return pack(record, folder, send_files=not shared)


def _launched(task: RunTask, order: Order, events: Any, node: str) -> Record:
    facts: list[Facts] = []
    """Since the parent was told last; what is left at the end stands in the record."""

    def progress(what: str, done: int, total: int | None) -> None:
        events.say.remote(task.uuid, node, what, done, total, facts=facts.copy())
        facts.clear()

    limits = Limits(timeout_seconds=order.timeout_seconds)
    told = throttled(progress, EVENT_SECONDS, ends=False)
    try:
        return launch(
            task,
            order.environment,
            told,
            limits,
            variables=devices_of_ranks(task.gpus_per_run, order.environment, "Ray"),
            tell=facts.append,
        )
    except Interrupted as stop:  # the parent cancelled the Ray task
        return stop.record


def pack(record: Record, folder: Path, *, send_files: bool) -> bytes:
    """Return a record with the name of its attempt's folder, and the files in it when they are to be sent.

    The folder is removed once its files are packed.
    """
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        _add(archive, RECORD, record.model_dump_json().encode())
        _add(archive, ATTEMPT, folder.name.encode())
        if send_files and folder.is_dir():
            archive.add(folder, arcname="files")
    if send_files:
        shutil.rmtree(folder, ignore_errors=True)
    return data.getvalue()


def unpack(data: bytes, folder: Path) -> tuple[Record, Path]:
    """Return the record in packed bytes and the folder of its files.

    Args:
        data: From :func:`pack`.
        folder: The run's work folder: files that were sent along go there, others lie in the attempt's folder below it.

    Raises:
        HarnessError: the bytes are none that :func:`pack` made, or a file of them cannot be written.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            record = Record.model_validate_json(_member(archive, RECORD))
            attempt = _member(archive, ATTEMPT).decode()
            if Path(attempt).name != attempt or attempt in ("", ".."):
                raise ValueError("it names a folder elsewhere")
            sent = [member for member in archive.getmembers() if member.name.startswith("files/")]
            for member in sent:
                member.name = member.name.removeprefix("files/")
            archive.extractall(folder, members=sent, filter="data")
    except (tarfile.TarError, KeyError, ValueError, OSError) as error:
        raise HarnessError(f"what a node sent of a run cannot be read: {error}") from error
    return record, folder if sent else folder / attempt


def what_is_left(task: RunTask, ended: Record) -> tuple[Record, Path]:
    """Return the record of a run that no worker handed in, and the folder of its files.

    What an attempt recorded stands; one that had left its weights keeps them. A node that does not see the parent's
    results folder leaves nothing there.

    Args:
        task: The run.
        ended: How it ended: the record where no attempt has left any.
    """
    attempts = sorted(task.work_folder.glob("attempt-*"), key=lambda one: one.stat().st_mtime, reverse=True)
    for attempt in attempts:
        if (record := left_record(attempt)) is not None:
            return record, attempt
    for attempt in attempts:
        if (left := left_record(attempt, TRAINED_FILE)) is not None:
            return with_what_is_left(task, ended, left), attempt
    return ended, task.work_folder


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    assert stream is not None
    return stream.read()
