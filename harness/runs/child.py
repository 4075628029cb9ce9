"""A run's child process: ``python -m harness.runs.child`` with one RunTask as a JSON line on standard input.

Standard input stays open as a lifeline: when it closes, the parent is gone and the child ends; on Linux the kernel ends
it at once, also within a long call that holds the interpreter. Events go out as
JSON lines on a private copy of standard output; whatever libraries print goes to standard error. The record goes to the
work folder, after the files that it names; the parent alone writes the store.

A run on several devices has a child for each: ranks of one process group. Rank 0 alone writes the run's files and its
record; another leaves a record of its own only where it does not end ok.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.files import write_file
from harness.progress import Facts, Progress, Tell, throttled
from harness.record import Record
from harness.task import RunTask

RANK_VARIABLE = "HARNESS_RANK"
"""Which of a run's children this is, from 0 on; there where a run has several."""
RECORD_FILE = "record.json"
TRAINED_FILE = "trained.json"
"""The record of a run whose weights are kept and that ends before it is scored: of use where no other was left."""
PROGRESS_SECONDS = 0.2
ORPHANED = 17
"""Exit status of a child whose parent went away."""
DESERTED = 18
"""Exit status of a rank that failed only because another went away; rank 0 leaves what it had measured."""
_PR_SET_PDEATHSIG = 1
"""Of <linux/prctl.h>."""


def main() -> None:
    """Execute the task on standard input."""
    die_with_parent()
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        os._exit(ORPHANED)
    task = RunTask.model_validate_json(line)
    threading.Thread(target=end_with_parent, daemon=True).start()
    send = _event_sender()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # a Ray worker blocks it, and its children inherit that
    send({"event": "started", "pid": os.getpid()})

    def told(what: str, done: int, total: int | None) -> None:
        send({"event": "progress", "what": what, "done": done, "total": total})

    def tell(facts: Facts) -> None:
        send({"event": "facts", "facts": facts})

    status = _execute(task, throttled(told, PROGRESS_SECONDS, ends=True), tell)
    send({"event": "finished"})
    # Skip the interpreter's slow teardown: the record is on disk.
    sys.stderr.flush()
    os._exit(status)


def import_libraries(architectures: Sequence[str]) -> None:
    """Import what a run begins with; nothing is computed.

    Args:
        architectures: Names of model classes of transformers.
    """
    from harness.engine.runner import import_libraries as imported

    imported(architectures)


def _execute(task: RunTask, progress: Progress, tell: Tell) -> int:
    """Execute a task as one of its ranks, leave the record, and return the exit status."""
    from harness.engine.ranks import Deserted, joined
    from harness.engine.runner import execute

    def leave(record: Record) -> None:
        if rank == 0:
            write_file(task.work_folder / TRAINED_FILE, record.model_dump_json())

    def end(record: Record) -> None:
        if rank == 0 or not record.is_ok:
            write_file(task.work_folder / record_file(rank), record.model_dump_json())

    rank = int(os.environ[RANK_VARIABLE]) if task.gpus_per_run > 1 else 0
    with ExitStack() as group:
        ranks = group.enter_context(joined(task.gpus_per_run, rank, task.work_folder))
        try:
            record = execute(task, progress, leave, ranks, tell)
        except Deserted as deserted:
            if deserted.record is not None:
                end(deserted.record)
            group.pop_all()
            return DESERTED
        end(record)
        if not record.is_ok:
            group.pop_all()  # to leave it would wait for processes that may be waiting for this one
    return 0


def record_file(rank: int) -> str:
    """Return what the record of a rank is called in the run's work folder."""
    return RECORD_FILE if rank == 0 else f"record-{rank}.json"


def left_record(work: Path, name: str = RECORD_FILE) -> Record | None:
    """Return the record that a child left in its work folder, or None.

    Args:
        work: The folder.
        name: ``TRAINED_FILE``: the one that it left before the evaluation; ``record_file(rank)``: that of a rank.
    """
    try:
        return Record.model_validate_json((work / name).read_bytes())
    except (OSError, ValidationError):
        return None


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends; a parent gone before closes the line."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def end_with_parent() -> None:
    """End this process when standard input, which the parent holds open, is closed."""
    # Not through sys.stdin: its lock, held by this thread, would abort the interpreter's shutdown after a crash.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(ORPHANED)


def _event_sender() -> Callable[[dict[str, Any]], None]:
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(event: dict[str, Any]) -> None:
        try:
            print(json.dumps(event), file=events, flush=True)
        except BrokenPipeError:
            os._exit(ORPHANED)

    return send


if __name__ == "__main__":
    main()
