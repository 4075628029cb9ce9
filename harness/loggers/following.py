"""Follows runs in the parent and hands what they say to loggers: each in a thread of its own, one call after another.

No run waits for a logger, and none ends because of one: what a logger raises ends the log of that run there, with one
warning. At the end of the command loggers have a while to finish.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Queue

from harness.loggers.contract import LoggedRun, Logger, Session
from harness.loggers.scalars import HELD_OUT, figures_of, recorded_facts, scalars_of
from harness.loggers.trail import Trail
from harness.progress import Facts
from harness.readings import steps_done
from harness.record import Record
from harness.run_names import run_folder
from harness.task import RunTask

LAST_SECONDS = 60.0
"""How long loggers may take to finish once all runs have ended."""
TRAILS = "state"
"""Folder, among the logs, of how far they are."""


class Followed:
    """Runs as loggers hear of them; satisfies :class:`harness.runs.executor.Observer`."""

    def __init__(self, loggers: Mapping[str, Logger], logs: Path, warn: Callable[[str], None]) -> None:
        """Begin to listen.

        Args:
            loggers: By what warnings call them.
            logs: Folder ``logs`` beside the records.
            warn: Called with a sentence where the log of a run ends early, from any thread.
        """
        self._warn = warn
        self._threads = [_Thread(name, logger, logs / TRAILS, warn) for name, logger in loggers.items()]

    def begins(self, task: RunTask) -> None:
        """Begin its log."""
        for thread in self._threads:
            thread.put(lambda thread: thread.begin(task), task)

    def told(self, task: RunTask, facts: Facts) -> None:
        """Log what a step says."""
        for thread in self._threads:
            thread.put(lambda thread: thread.log(task, facts), task)

    def ended(self, task: RunTask, record: Record) -> None:
        """Log what is not yet there of the steps, and how the run ended."""
        for thread in self._threads:
            thread.put(lambda thread: thread.end(task, record), task)

    def close(self) -> None:
        """Wait for the loggers, but not for ever."""
        deadline = time.monotonic() + LAST_SECONDS
        for thread in self._threads:
            if not thread.close(max(0.0, deadline - time.monotonic())):
                self._warn(
                    f"--log {thread.name} had not finished {LAST_SECONDS:.0f} s after the last run: left to itself"
                )


@dataclass
class _Log:
    """The log of one run that has not ended."""

    trail: Trail
    session: Session


_Call = Callable[["_Thread"], None]


class _Thread:
    """One logger, the runs that it logs, and the thread in which it is called."""

    def __init__(self, name: str, logger: Logger, trails: Path, warn: Callable[[str], None]) -> None:
        self.name = name
        self._logger = logger
        self._trails = trails
        self._warn = warn
        self._logs: dict[str, _Log] = {}
        self._failed: set[str] = set()
        self._calls: Queue[tuple[_Call, RunTask] | None] = Queue()
        self._thread = threading.Thread(target=self._work, name=f"log {name}", daemon=True)
        self._thread.start()

    def put(self, call: _Call, task: RunTask) -> None:
        """Have something done about a run, after all that was put before."""
        self._calls.put((call, task))

    def close(self, seconds: float) -> bool:
        """Let go of what has not ended, and return whether that was done in time."""
        self._calls.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def begin(self, task: RunTask) -> None:
        """Begin or take up the log of a run."""
        if task.uuid not in self._logs:
            self._logs[task.uuid] = self._begun(task)

    def log(self, task: RunTask, facts: Facts) -> None:
        """Log facts that are not logged yet."""
        self.begin(task)
        log, step, scalars = self._logs[task.uuid], facts.get("step"), scalars_of(facts)
        if step is not None and scalars and log.trail.is_new(int(step), held_out=HELD_OUT in facts):
            log.session.log(int(step), scalars)

    def end(self, task: RunTask, record: Record) -> None:
        """Log what is missing and how it ended; a run that may go on is let go."""
        for facts in () if record.train is None else recorded_facts(record.train):
            self.log(task, facts)
        self.begin(task)
        log = self._logs.pop(task.uuid)
        if not record.has_outcome() and _may_go_on(task, record):
            log.session.leave()
            return
        log.session.end(max(log.trail.step, steps_done(record)), *record.ending, figures_of(record))
        log.trail.forget()

    def _begun(self, task: RunTask) -> _Log:
        folder = task.checkpoint_folder
        file = None if folder is None else self._trails / f"{self.name}-{folder.name}"
        trail = Trail(file, task.uuid, goes_on=_may_go_on(task, task.finishes))
        return _Log(trail, self._logger.begin(_logged(task, trail.key), resumed=trail.resumed))

    def _work(self) -> None:
        while (waiting := self._calls.get()) is not None:
            call, task = waiting
            if task.uuid not in self._failed:
                self._try(partial(call, self), task)
        for log in self._logs.values():
            self._try(log.session.leave, None)

    def _try(self, call: Callable[[], None], task: RunTask | None) -> None:
        """Do something; where that fails, the log of the run ends."""
        try:
            call()
        except (Exception, SystemExit) as error:  # of a stranger's library: whatever it is, the run goes on
            what = "a run" if task is None else task.spec.run_name
            said = next(iter(str(error).strip().splitlines()), "")
            self._warn(
                f"--log {self.name}: the log of {what} ends here: {type(error).__name__}{': ' * bool(said)}{said}"
            )
            if task is not None:
                self._failed.add(task.uuid)
                self._logs.pop(task.uuid, None)


def _may_go_on(task: RunTask, record: Record | None) -> bool:
    """Return whether a run goes on where an attempt ended: from a checkpoint, or with the weights that it left."""
    if record is not None and record.awaits_scores:
        return True
    return (
        task.checkpoint_folder is not None and task.checkpoint_folder.is_dir() and any(task.checkpoint_folder.iterdir())
    )


def _logged(task: RunTask, key: str) -> LoggedRun:
    spec = task.spec
    return LoggedRun(
        key=key,
        name=spec.run_name,
        group=spec.suite,
        folder=f"{spec.suite}/{run_folder(spec, key)}",
        settings=spec.model_dump(mode="json"),
        tags={"run_id": task.run_id, "uuid": task.uuid},
    )
