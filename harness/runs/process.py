"""A run in processes of its own, so that its allocator, crash or out-of-memory never touches the next run.

Each child leads a process group of its own, and there is one for each device that a run takes. They leave a record in
the run's work folder; where they die without one the parent makes it, so that a crash is written down too, with what
the processes used. Nothing here imports torch.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from harness.errors import HarnessError
from harness.progress import Progress, Tell, unheard
from harness.record import Record, Status
from harness.record_environment import Environment
from harness.runs.child import left_record
from harness.runs.children import Children, Stop
from harness.runs.executor import NO_LIMITS, Limits
from harness.runs.fate import fate, with_what_is_left
from harness.runs.starting import Start, start_anew
from harness.task import RunTask

POLL_SECONDS = 0.2
"""How soon a stop is noticed."""
ONE_FATE_SECONDS = 20.0
"""How long the other ranks may take to end by themselves once one has ended badly, or rank 0 at all."""
End = Literal["ended", "timed_out", "stopped", "out_of_time"]
"""What the children were waited for until."""


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
    variables: Sequence[Mapping[str, str]] = ({},),
    start: Start = start_anew,
    tell: Tell = unheard,
) -> Record:
    """Execute a task in child processes and return its record, files not yet moved.

    Args:
        task: The run; its work folder is made here.
        environment: Of the device, for the record of a run whose children leave none.
        progress: Called with what is going on, how much is done, of how much.
        limits: After the time of one run the children are killed and it is recorded as ``timed_out``; when the time of
            all is up, they are interrupted as by Ctrl-C.
        stop: Interrupts the children when it is asked; Ctrl-C, where this thread meets it, asks too.
        variables: Of each rank the environment variables beside the parent's; as many as the run takes devices.
        start: What starts the children.
        tell: Called with what each step says of itself; those of a run that is cut off may be missing at its end.

    Raises:
        Interrupted: ``stop`` was asked, or the time of all runs is up; the run's record is attached.
        HarnessError: the work folder cannot be made or a child cannot be started.
    """
    assert len(variables) == task.gpus_per_run
    started_at, began = datetime.now(UTC), time.monotonic()
    stop = stop if stop is not None else Stop()
    try:
        task.work_folder.mkdir(parents=True)
        children = Children(variables, start, lambda: stop.asked)
    except OSError as error:
        raise HarnessError(f"the run's process cannot be started: {error}") from error
    end: End = "ended"
    try:
        try:
            children.send(task)
            end = _follow(children, task, partial(_tell, progress=progress, tell=tell), limits, stop)
        except KeyboardInterrupt:
            stop.ask()
            end = "stopped"
        if end in ("stopped", "out_of_time"):
            children.interrupt(stop)
    finally:
        children.kill()
    ended = partial(task.record, environment, started_at)
    if end == "ended":
        record = fate(task, children.ends(task.work_folder), ended)
    else:
        status: Status = "timed_out" if end == "timed_out" else "interrupted"
        reason = f"timed out after {limits.timeout_seconds} s" if end == "timed_out" else "interrupted"
        own, ending = left_record(task.work_folder), ended(status, reason, log_tail=children.log_tail())
        record = own if own and not children.deserted else with_what_is_left(task, ending, own)
    if end == "out_of_time" and record.was_interrupted:
        record = record.model_copy(update={"reason": f"{record.reason}: the budget of seconds had ended"})
    used = children.used(time.monotonic() - began) if task.finishes is None else task.finishes.process
    record = record.model_copy(update={"process": used})
    if end in ("stopped", "out_of_time"):
        raise Interrupted(record, by_user=end == "stopped")
    return record


def _follow(children: Children, task: RunTask, hear: Callable[[bytes], None], limits: Limits, stop: Stop) -> End:
    """Pass events on until all have ended, or their fate is sealed, a time is up or a stop is asked; return which."""
    deadline = math.inf if limits.timeout_seconds is None else time.monotonic() + limits.timeout_seconds
    budget_end = math.inf if limits.stop_at is None else limits.stop_at
    sealed = math.inf
    while True:
        line = children.listen(min(POLL_SECONDS, min(deadline, budget_end, sealed) - time.monotonic()))
        if children.all_ended:
            return "ended"
        if stop.asked:
            return "stopped"
        if (now := time.monotonic()) >= min(deadline, budget_end):
            return "timed_out" if now >= deadline else "out_of_time"
        if now >= sealed:
            return "ended"
        if sealed == math.inf and any(end.ends_others for end in children.ends(task.work_folder)):
            sealed = now + ONE_FATE_SECONDS
        if line is not None:
            hear(line)


def _tell(line: bytes, progress: Progress, tell: Tell) -> None:
    """Pass on what a child says of its progress and of its steps."""
    try:
        event = json.loads(line)
    except ValueError:
        return
    if isinstance(event, dict) and event.get("event") == "progress":
        progress(str(event["what"]), int(event["done"]), event["total"])
    elif isinstance(event, dict) and event.get("event") == "facts":
        tell(event["facts"])


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
