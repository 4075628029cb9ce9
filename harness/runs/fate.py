"""One fate of all ranks: which of their endings is the run's, and what of the run stays. Imports no torch.

The first that ends badly takes the others with it: their collectives fail, and they end as deserted or are killed. So
what a rank itself says of its end goes before how another died, and an end that is only a consequence counts last.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.record import SCORED_OR_USELESS, Record, Status
from harness.runs.child import DESERTED, ORPHANED, TRAINED_FILE, left_record
from harness.task import RunTask

ENDED_WELL: frozenset[Status] = frozenset({"ok", "unproven"})
"""Statuses of ranks that came to their end."""
OWN_WORD: frozenset[Status] = frozenset({"refused", "diverged", "out_of_memory"})
"""Statuses that no end of another rank brings about."""


@dataclass(frozen=True)
class RankEnd:
    """How one rank ended by itself."""

    rank: int
    returncode: int
    """As ``subprocess`` says it."""
    record: Record | None
    """What it left: of rank 0 always, of another only where it did not end ok, or alone."""
    log_tail: str | None

    @property
    def died(self) -> bool:
        """Return whether it ended without a word where one was due."""
        return self.record is None and (self.returncode != 0 or self.rank == 0)

    @property
    def ends_others(self) -> bool:
        """Return whether the others have nothing to wait for any more."""
        return self.rank == 0 or self.died or (self.record is not None and self.record.status not in ENDED_WELL)

    @property
    def is_ok(self) -> bool:
        """Return whether nothing went wrong."""
        return not self.died and (self.record is None or self.record.is_ok)

    @property
    def order(self) -> int:
        """Return how far it may be the consequence of another's end; 0: not at all."""
        if self.returncode == DESERTED:
            return 4
        if self.record is not None:
            status = self.record.status
            return 0 if status in OWN_WORD else 1 if status == "failed" else 3
        return 1 if self.returncode == -signal.SIGKILL else 2  # a watchdog of collectives aborts, and never kills

    @property
    def ending(self) -> tuple[Status, str | None]:
        """Return status and reason of a run that ended so."""
        return ("failed", death(self.returncode)) if self.record is None else self.record.ending


def cause(ends: Sequence[RankEnd]) -> RankEnd | None:
    """Return the end that brought about the others', or None where all is well.

    Args:
        ends: Of the ranks that ended by themselves, the first one first.
    """
    return min((end for end in ends if not end.is_ok), key=lambda end: end.order, default=None)


def fate(task: RunTask, ends: Sequence[RankEnd], ended: Callable[..., Record]) -> Record:
    """Return the record of a run: rank 0's, or what rank 0 had left of it, ended as the first cause has it.

    Args:
        task: The run.
        ends: Of the ranks that ended by themselves, the first one first; at least one.
        ended: Returns a record of the task with a status, a reason and a log's tail.
    """
    first, own = cause(ends), left_record(task.work_folder)
    if first is None:
        assert own is not None
        return own
    said = [end.record.status for end in ends if end.record is not None and end.returncode != DESERTED]
    if own is not None and said == [first.ending[0]] * task.gpus_per_run:
        return own
    status, reason = first.ending
    reason = reason if task.gpus_per_run == 1 else f"rank {first.rank} of {task.gpus_per_run}: {reason}"
    if first.record is None:
        return with_what_is_left(task, ended(status, reason, log_tail=first.log_tail), own)
    record = first.record.model_copy(update={"reason": reason})
    return record if first.rank == 0 else with_what_is_left(task, record, own)


def with_what_is_left(task: RunTask, ended: Record, own: Record | None = None) -> Record:
    """Return the record of a run that ended so, with what rank 0 had left of it, if it had left anything.

    Args:
        task: The run.
        ended: How it ended.
        own: Rank 0's record; None: what it left before it scored.
    """
    left = own or left_record(task.work_folder, TRAINED_FILE)
    if left is None:
        return ended
    waits = left.weights is not None and ended.status not in SCORED_OR_USELESS
    changes = {
        "status": ended.status,
        "reason": task.unscored(ended.reason) if waits else ended.reason,
        "finished_at": max(left.finished_at, ended.finished_at),
        "out_of_memory_at": ended.out_of_memory_at,
        "log_tail": ended.log_tail,
    }
    return Record.model_validate(left.model_dump() | changes)


def death(returncode: int) -> str:
    """Return how a process ended that left no record, as a sentence."""
    if returncode < 0:
        name = signal.Signals(-returncode).name
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"the run's process was ended by {name}{hint}"
    if returncode == ORPHANED:
        return "the run's process lost its parent"
    if returncode == DESERTED:
        return "the run's process lost the other ranks"
    return f"the run's process ended with exit status {returncode} and left no record"
