"""One child process a run, so that one run's allocator, crash or out-of-memory never touches the next.

The child leads a process group of its own. It leaves a record in its work folder; a child that dies without one gets a
record from the parent, so a crash is written down too. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Literal

from pydantic import ValidationError

from harness.engine.child import ORPHANED, RECORD_FILE
from harness.engine.task import RunTask
from harness.errors import HarnessError
from harness.record import Environment, Record, Status

Progress = Callable[[str, int, int | None], None]

GRACE_SECONDS = 30.0
"""How long an interrupted child may take to leave its record."""
LOG_LINES = 40


class Interrupted(Exception):
    """The user, or the end of the time there was, asked to stop; the record of what was running is attached."""

    def __init__(self, record: Record, by_user: bool) -> None:
        super().__init__("interrupted")
        self.record = record
        self.by_user = by_user
        """False where the time was up."""


def launch(
    task: RunTask,
    environment: Environment,
    progress: Progress,
    timeout_seconds: float | None = None,
    stop_at: float | None = None,
) -> Record:
    """Execute a task in a child process and return its record, files not yet moved.

    Args:
        task: The run; its work folder is made here.
        environment: The parent's, for the record of a child that leaves none.
        progress: Called with what is going on, how much is done, of how much.
        timeout_seconds: After this long the child is killed and recorded as ``timed_out``.
        stop_at: When ``time.monotonic()`` reaches it, the child is interrupted as by Ctrl-C.

    Raises:
        Interrupted: Ctrl-C, or ``stop_at`` has come; the child's record is attached.
        HarnessError: the work folder cannot be made or the child cannot be started.
    """
    started_at = datetime.now(UTC)
    try:
        task.work_folder.mkdir(parents=True)
        child = subprocess.Popen(
            # -P: the child imports the harness that its parent runs, not a folder of that name where it was started.
            [sys.executable, "-P", "-m", "harness.engine.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise HarnessError(f"the run's process cannot be started: {error}") from error
    assert child.stdin and child.stdout and child.stderr
    log: deque[str] = deque(maxlen=LOG_LINES)
    listener = threading.Thread(target=_collect, args=(child.stderr, log), daemon=True)
    listener.start()
    status: Status = "failed"
    by_user = False
    try:
        try:
            child.stdin.write(task.model_dump_json().encode() + b"\n")
            child.stdin.flush()
            end = _follow(child, progress, timeout_seconds, stop_at)
            if end == "timed_out":
                status = "timed_out"
                _kill(child)
            elif end == "interrupted":
                status = "interrupted"
                _interrupt(child)
            child.wait()
        except BrokenPipeError:
            child.wait()
        except KeyboardInterrupt:
            status, by_user = "interrupted", True
            _interrupt(child)
    finally:
        _kill(child)
        listener.join(timeout=5)
    reason = {
        "timed_out": f"timed out after {timeout_seconds} s",
        "interrupted": "interrupted",
    }.get(status, _death(child.returncode))
    record = left_record(task.work_folder) or task.record(
        environment, started_at, status, reason, log_tail="".join(log) or None
    )
    if status == "interrupted":
        if record.status == "interrupted" and not by_user:
            record = record.model_copy(update={"reason": f"{record.reason}: the budget of seconds had ended"})
        raise Interrupted(record, by_user)
    return record


def probe_environment() -> Environment:
    """Return the environment as a run's process sees it.

    Asked of a process of its own: looking at a CUDA device makes a context on it, which would stay beside every run.

    Raises:
        ModuleNotFoundError: torch is not installed.
        HarnessError: the process failed.
    """
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    command = [sys.executable, "-P", "-m", "harness.engine.environment"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise HarnessError(f"this machine's environment cannot be described: {last}")
    return Environment.model_validate_json(done.stdout)


def keep_files(work: Path, record: Record, folder: Path) -> Record:
    """Move a run's items and weights from its work folder into the folder of the records; return the record with them.

    What was moved by an earlier call, whose process was killed, stays where it is.

    Raises:
        HarnessError: they cannot be moved.
    """
    stem = f"{record.run_id}-{record.uuid}"
    moved: dict[str, object] = {}
    try:
        if record.items is not None:
            moved["items"] = items = f"items/{stem}.jsonl.zst"
            _move(work / record.items, folder / items)
        if record.mt_bench is not None:
            answers = f"items/{stem}.answers.jsonl"
            _move(work / record.mt_bench.file, folder / answers)
            moved["mt_bench"] = record.mt_bench.model_copy(update={"file": answers})
        if record.weights is not None:
            moved["weights"] = weights = f"weights/{stem}"
            _move(work / record.weights, folder / weights)
    except OSError as error:
        raise HarnessError(
            f"{folder}: the files of run {record.run_id} cannot be moved there: {error.strerror or error}; they lie in "
            f"{work}, and the next run takes them up"
        ) from error
    return record.model_copy(update=moved)


def _move(source: Path, target: Path) -> None:
    if source.exists() or not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)


def _follow(
    child: subprocess.Popen[bytes], progress: Progress, timeout_seconds: float | None, stop_at: float | None
) -> Literal["closed", "timed_out", "interrupted"]:
    """Pass events on until the child closes its output or a time is up; return which it was."""
    assert child.stdout is not None
    lines: Queue[bytes | None] = Queue()
    threading.Thread(target=_enqueue, args=(child.stdout, lines), daemon=True).start()
    deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
    stop = math.inf if stop_at is None else stop_at
    while True:
        try:
            # A finite wait lets Ctrl-C through on every platform.
            line = lines.get(timeout=max(0.0, min(0.5, min(deadline, stop) - time.monotonic())))
        except Empty:
            line = b""
        if line is None:
            return "closed"
        if (now := time.monotonic()) >= min(deadline, stop):
            return "timed_out" if now >= deadline else "interrupted"
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("event") == "progress":
            progress(str(event["what"]), int(event["done"]), event["total"])


def _enqueue(stream: IO[bytes], lines: Queue[bytes | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _collect(stream: IO[bytes], log: deque[str]) -> None:
    for line in stream:
        log.append(line.decode(errors="replace"))


def _interrupt(child: subprocess.Popen[bytes]) -> None:
    """Ask the child to finish its record; a second Ctrl-C, or too long a wait, ends it at once."""
    try:
        os.killpg(child.pid, signal.SIGINT)
        child.wait(timeout=GRACE_SECONDS)
    except (ProcessLookupError, subprocess.TimeoutExpired, KeyboardInterrupt):
        _kill(child)


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _death(returncode: int) -> str:
    if returncode < 0:
        name = signal.Signals(-returncode).name
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"the run's process was ended by {name}{hint}"
    if returncode == ORPHANED:
        return "the run's process lost its parent"
    return f"the run's process ended with exit status {returncode} and left no record"


def left_record(work: Path) -> Record | None:
    """Return the record that a child left in its work folder, or None."""
    try:
        return Record.model_validate_json((work / RECORD_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
