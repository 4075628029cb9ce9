"""One child process a run, so that one run's allocator, crash or out-of-memory never touches the next.

The child leads a process group of its own. It leaves a record in its work folder; a child that dies without one gets a
record from the parent, so a crash is written down too, with what the process used. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from queue import Empty, Queue
from typing import IO, Literal, cast

from harness.errors import HarnessError
from harness.progress import Progress
from harness.record import LOG_LINES, Record, RunProcess, Status
from harness.record_environment import Environment
from harness.runs.child import ORPHANED, TRAINED_FILE, left_record
from harness.runs.executor import NO_LIMITS, Limits
from harness.task import RunTask

GRACE_SECONDS = 30.0
"""How long an interrupted child may take to leave its record."""
POLL_SECONDS = 0.2
"""How soon a stop is noticed."""
End = Literal["closed", "timed_out", "stopped", "out_of_time"]
"""What a child was waited for until."""


class Stop:
    """The wish that runs end before their time: asked once, they leave their records; asked again, they are killed."""

    def __init__(self) -> None:
        self._times = 0

    def ask(self) -> None:
        """Ask once more."""
        self._times += 1

    @property
    def asked(self) -> bool:
        """Return whether it was asked."""
        return self._times > 0

    @property
    def at_once(self) -> bool:
        """Return whether it was asked again."""
        return self._times > 1


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
    limits: Limits = NO_LIMITS,
    *,
    stop: Stop | None = None,
    variables: Mapping[str, str] | None = None,
) -> Record:
    """Execute a task in a child process and return its record, files not yet moved.

    Args:
        task: The run; its work folder is made here.
        environment: Of the device, for the record of a child that leaves none.
        progress: Called with what is going on, how much is done, of how much.
        limits: After the time of one run the child is killed and recorded as ``timed_out``; when the time of all is
            up, it is interrupted as by Ctrl-C.
        stop: Interrupts the child when it is asked; Ctrl-C, where this thread meets it, asks too.
        variables: Environment variables of the child beside the parent's.

    Raises:
        Interrupted: ``stop`` was asked, or the time of all runs is up; the child's record is attached.
        HarnessError: the work folder cannot be made or the child cannot be started.
    """
    started_at, began = datetime.now(UTC), time.monotonic()
    stop = stop if stop is not None else Stop()
    try:
        task.work_folder.mkdir(parents=True)
        child = _Child(variables or {})
    except OSError as error:
        raise HarnessError(f"the run's process cannot be started: {error}") from error
    end: End = "closed"
    try:
        try:
            child.send(task)
            end = _follow(child, progress, limits, stop)
        except BrokenPipeError:
            pass
        except KeyboardInterrupt:
            stop.ask()
            end = "stopped"
        if end in ("stopped", "out_of_time"):
            child.interrupt(stop)
        elif end == "closed":
            child.wait()
    finally:
        child.kill()
    status, reason = {
        "closed": ("failed", _death(child.returncode)),
        "timed_out": ("timed_out", f"timed out after {limits.timeout_seconds} s"),
        "stopped": ("interrupted", "interrupted"),
        "out_of_time": ("interrupted", "interrupted"),
    }[end]
    record = left_record(task.work_folder)
    if record is None:
        ended = task.record(environment, started_at, cast(Status, status), reason, log_tail=child.log_tail())
        record = _with_trained(task, ended)
    if end == "out_of_time" and record.was_interrupted:
        record = record.model_copy(update={"reason": f"{record.reason}: the budget of seconds had ended"})
    used = child.used(time.monotonic() - began) if task.finishes is None else task.finishes.process
    record = record.model_copy(update={"process": used})
    if status == "interrupted":
        raise Interrupted(record, by_user=end == "stopped")
    return record


def _with_trained(task: RunTask, ended: Record) -> Record:
    """Return the record of a run whose child left none at its end: with what it had trained, if it had kept that."""
    trained = left_record(task.work_folder, TRAINED_FILE)
    if trained is None:
        return ended
    changes = {
        "status": ended.status,
        "reason": task.unscored(ended.reason),
        "finished_at": max(trained.finished_at, ended.finished_at),
        "log_tail": ended.log_tail,
    }
    return Record.model_validate(trained.model_dump() | changes)


class _Child:
    """The process of a run, reaped by ``wait4`` so that what it used is known however it ended."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            # -P: the child imports the harness that its parent runs, not a folder of that name where it was started.
            [sys.executable, "-P", "-m", "harness.runs.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **variables},
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._usage: resource.struct_rusage | None = None
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._listener = threading.Thread(target=collect_lines, args=(self._process.stderr, self._log), daemon=True)
        self._listener.start()
        self.events: Queue[bytes | None] = Queue()
        threading.Thread(target=enqueue_lines, args=(self._process.stdout, self.events), daemon=True).start()

    @property
    def returncode(self) -> int:
        """Return how it ended, as ``subprocess`` says it."""
        assert self._process.returncode is not None
        return self._process.returncode

    def send(self, task: RunTask) -> None:
        """Tell it what to do."""
        assert self._process.stdin is not None
        self._process.stdin.write(task.model_dump_json().encode() + b"\n")
        self._process.stdin.flush()

    def wait(self, seconds: float = math.inf, stop: Stop | None = None) -> bool:
        """Return whether it has ended, after at most ``seconds`` or until a stop at once is asked."""
        deadline = time.monotonic() + seconds
        while self._process.returncode is None:
            ended, status, usage = os.wait4(self._process.pid, 0 if seconds == math.inf else os.WNOHANG)
            if ended:
                self._usage, self._process.returncode = usage, os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= deadline or (stop is not None and stop.at_once):
                return False
            else:
                time.sleep(0.02)
        return True

    def interrupt(self, stop: Stop) -> None:
        """Ask it to finish its record; a second stop, or too long a wait, leaves it to ``kill``."""
        with contextlib.suppress(ProcessLookupError, KeyboardInterrupt):
            os.killpg(self._process.pid, signal.SIGINT)
            self.wait(GRACE_SECONDS, stop)

    def kill(self) -> None:
        """End it and whatever it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.wait()
        self._listener.join(timeout=5)

    def log_tail(self) -> str | None:
        """Return the last lines of its error output."""
        return "".join(self._log) or None

    def used(self, seconds: float) -> RunProcess:
        """Return what it used in so many seconds; it has ended."""
        assert self._usage is not None
        # Linux counts the resident set in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        cpu = self._usage.ru_utime + self._usage.ru_stime
        return RunProcess(seconds=seconds, cpu_seconds=cpu, host_peak_bytes=self._usage.ru_maxrss * unit)


def probe_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """Return the environment as a run's process with these environment variables sees it.

    Asked of a process of its own: looking at a CUDA device makes a context on it, which would stay beside every run.

    Raises:
        ModuleNotFoundError: torch is not installed.
        HarnessError: the process failed.
    """
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    command = [sys.executable, "-P", "-m", "harness.engine.environment"]
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise HarnessError(f"this machine's environment cannot be described: {last}")
    return Environment.model_validate_json(done.stdout)


def _follow(child: _Child, progress: Progress, limits: Limits, stop: Stop) -> End:
    """Pass events on until the child closes its output, a time is up or a stop is asked; return which it was."""
    deadline = math.inf if limits.timeout_seconds is None else time.monotonic() + limits.timeout_seconds
    budget_end = math.inf if limits.stop_at is None else limits.stop_at
    while True:
        try:
            wait = min(POLL_SECONDS, min(deadline, budget_end) - time.monotonic())
            line = child.events.get(timeout=max(0.0, wait))
        except Empty:
            line = b""
        if line is None:
            return "closed"
        if stop.asked:
            return "stopped"
        if (now := time.monotonic()) >= min(deadline, budget_end):
            return "timed_out" if now >= deadline else "out_of_time"
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == "progress":
            progress(str(event["what"]), int(event["done"]), event["total"])


def enqueue_lines(stream: IO[bytes], lines: Queue[bytes | None]) -> None:
    """Put each line of a process's output into a queue, and None at its end."""
    for line in stream:
        lines.put(line)
    lines.put(None)


def collect_lines(stream: IO[bytes], log: deque[str]) -> None:
    """Keep the last lines of a process's error output."""
    for line in stream:
        log.append(line.decode(errors="replace"))


def _death(returncode: int) -> str:
    if returncode < 0:
        name = signal.Signals(-returncode).name
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"the run's process was ended by {name}{hint}"
    if returncode == ORPHANED:
        return "the run's process lost its parent"
    return f"the run's process ended with exit status {returncode} and left no record"
