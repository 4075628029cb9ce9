"""A job as the parent follows it: whether it is over, by Slurm's own word, and how that is recorded.

submitit's ``done`` takes a suspended or configuring job for one that has ended, and one that was preempted for good for
one that never will: so the states are read here. Imports neither torch nor submitit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.record import LOG_LINES, Status
from harness.task import RunTask

ALIVE = frozenset(
    (
        *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "RESIZING", "SIGNALING", "STAGE_OUT"),
        *("STOPPED", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD", "UNKNOWN", ""),
    )
)
"""Slurm's states of jobs that may still do something; UNKNOWN is submitit's for one that Slurm does not tell of yet."""
PREEMPTED_SECONDS = 120.0
"""A job that is preempted and not queued again within this is over: the partition cancels what it preempts."""
ENDINGS: dict[str, tuple[Status, str]] = {
    "OUT_OF_MEMORY": ("failed", "ran out of host memory: ask for more with --slurm mem_gb=N"),
    "TIMEOUT": ("timed_out", "reached its time limit: --slurm timeout_min=N sets it"),
    "DEADLINE": ("timed_out", "reached its deadline"),
    "CANCELLED": ("interrupted", "was cancelled"),
    "PREEMPTED": ("interrupted", "was preempted"),
    "NODE_FAIL": ("failed", "lost its node"),
    "BOOT_FAIL": ("failed", "had a node that did not boot"),
}


class Job(Protocol):
    """What is used of submitit's ``SlurmJob`` and ``LocalJob``."""

    @property
    def job_id(self) -> str:
        """Return its id."""

    @property
    def state(self) -> str:
        """Return its state, as it was last asked for."""

    @property
    def paths(self) -> Any:
        """Return where its files are."""

    def get_info(self, mode: str = ...) -> dict[str, str]:
        """Ask for the states of all jobs of this process."""

    def cancel(self, check: bool = ...) -> None:
        """Cancel it."""

    def stderr(self) -> str | None:
        """Return its error output."""


@dataclass
class Followed:
    """A job that is waited for."""

    job: Job
    task: RunTask | None = None
    """Its run; None: it only says what its node is."""
    began: bool = False
    """Whether it was seen to run."""
    cancelled: bool = False
    """Whether this call has cancelled it."""
    recalled: bool = False
    """Whether that was because of how others ended."""
    _since: dict[str, float] = field(default_factory=dict)
    """Time of ``time.monotonic()`` at which a state was first seen, while it lasts."""

    @property
    def state(self) -> str:
        """Return its state in one word."""
        return (self.job.state.split() or [""])[0].rstrip("+").upper()

    def is_over(self, lag_seconds: float) -> bool:
        """Return whether it has ended, and for so long that what it wrote last is seen from here.

        Args:
            lag_seconds: Of the file system between the node and here.
        """
        state, now = self.state, time.monotonic()
        self._since = {state: self._since.get(state, now)}
        if state in ALIVE:
            return False
        return now - self._since[state] >= (PREEMPTED_SECONDS if state == "PREEMPTED" else lag_seconds)

    def cancel(self, *, recalled: bool = False) -> None:
        """Have Slurm end it; ``recalled``: because of how others ended."""
        self.cancelled, self.recalled = True, recalled
        self.job.cancel(check=False)

    @property
    def never_began(self) -> bool:
        """Return whether it was cancelled while it was queued."""
        return (self.cancelled or self.state == "CANCELLED") and not self.began

    @property
    def ending(self) -> tuple[Status, str]:
        """Return status and reason of a run whose job ended so and left no record."""
        if self.cancelled:
            return "interrupted", "interrupted"
        state = self.state
        status, how = ENDINGS.get(state, ("failed", f"ended ({state}) and left no record"))
        return status, f"its job {self.job.job_id} {how}"

    @property
    def log_tail(self) -> str | None:
        """Return the last lines of its error output."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return "".join((self.job.stderr() or "").splitlines(keepends=True)[-LOG_LINES:]) or None
        return None

    def clear(self) -> None:
        """Remove submitit's files of it."""
        paths = self.job.paths
        for file in (paths.submission_file, paths.submitted_pickle, paths.result_pickle, paths.stdout, paths.stderr):
            with contextlib.suppress(OSError):
                Path(file).unlink(missing_ok=True)


def ask(jobs: Iterable[Followed]) -> None:
    """Ask Slurm for the states of all jobs of this process, in one call."""
    for first in jobs:
        first.job.get_info(mode="force")
        return
