"""One call of ``harness run`` over Slurm: what it has submitted, and what becomes of it. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from harness.errors import HarnessError
from harness.readings import recorded_as
from harness.record import Record
from harness.record_environment import Environment
from harness.runs.child import left_record
from harness.runs.claims import Claims
from harness.runs.executor import Runs, Tally, Watcher
from harness.runs.fate import with_what_is_left
from harness.runs.queue import RunQueue
from harness.runs.settling import Ledger
from harness.runs.slurm_files import Order, SlurmFiles, Submission
from harness.runs.slurm_jobs import Followed, ask
from harness.runs.slurm_settings import SlurmSettings
from harness.store import Following
from harness.task import RunTask

POLL_SECONDS = 1.0
STATES_SECONDS = 10.0
"""How often Slurm is asked for the states of jobs."""
GRACE_SECONDS = 60.0
"""How long cancelled jobs may take to store the records of what they ran."""


class Cluster(Protocol):
    """What a session uses of :class:`harness.runs.slurm.SlurmCluster`."""

    settings: SlurmSettings
    files: SlurmFiles
    work: Callable[[str], None]
    threads: int
    lag_seconds: float

    def environment(self) -> Environment:
        """Return the environment of a run there."""

    def submit(self, name: str, function: Callable[..., None], *arguments: object) -> Followed:
        """Submit a job."""

    def follow(self, submission: Submission) -> Followed | None:
        """Return a job that an earlier call submitted, if it may still do its run."""


class SlurmSession:
    """The runs that were submitted and have not ended yet."""

    def __init__(self, cluster: Cluster, runs: Runs, watcher: Watcher, *, queue: RunQueue, claims: Claims) -> None:
        """Take what is to be done.

        Args:
            cluster: Where.
            runs: What.
            watcher: Is told how it goes.
            queue: Hands out runs that no other call has submitted.
            claims: Of this process in the results folder, in which jobs hold theirs.
        """
        self._cluster = cluster
        self._files = cluster.files
        self._runs = runs
        self._limits = runs.limits
        self._watcher = watcher
        self._queue = queue
        self._claims = claims
        self._ledger = Ledger(runs, queue, watcher)
        self._pending: list[Followed] = []
        self._cut: list[RunTask] = []
        """Runs that were interrupted and have a record that says so."""
        self._records = {task.spec.suite: Following(runs.store, task.spec.suite) for task in runs.tasks}
        self._asked = float("-inf")

    def do(self) -> Tally:
        """Do what is to be done, and return how it went."""
        try:
            if self._collect():
                return self._ledger.tally()
            tasks = [task for one in self._pending if (task := one.task) is not None]
            return self._ledger.tally(left_by_budget=self._queue.num_left(*self._cut, *tasks) or None)
        except KeyboardInterrupt:
            self._cancel()
            return self._ledger.tally(interrupted=True)
        except HarnessError:
            for one in self._pending:
                one.cancel()
            raise

    def _collect(self) -> bool:
        """Submit every run that nobody does and take what they leave; return False when the time was up first."""
        waiting = False
        while self._pending or self._queue.waiting:
            if self._limits.over:
                self._cancel()
                return False
            self._fill()
            if not self._pending and not self._queue.waiting:
                break
            if not self._pending and not waiting:  # nothing is left but what other processes do
                self._watcher.waits(len(self._queue.pending))
            waiting = not self._pending
            time.sleep(POLL_SECONDS)
            self._look(STATES_SECONDS)
            self._recall()
        return True

    def _fill(self) -> None:
        """Submit as many jobs as there may be at once, those of the longest runs first."""
        jobs = self._cluster.settings.jobs
        while len(self._pending) < jobs and (task := self._queue.next(self._is_free)) is not None:
            self._begin(task)

    def _is_free(self, task: RunTask) -> bool:
        """Return whether no process does a run at present: a job of it would find that out at its start, and end."""
        name = task.claimed_as
        if name not in self._claims.of_others():
            return True
        if self._claims.was_held(name) or not self._claims.take(name, task.work_folder.name):
            return self._submitted(task) is not None
        self._claims.release(name)
        return True

    def _submitted(self, task: RunTask) -> Submission | None:
        return self._files.submission(task.claimed_as)

    def _begin(self, task: RunTask) -> None:
        """Submit the job of a run, or follow the one that an earlier call has submitted for it."""
        environment = self._cluster.environment()
        if task.cannot_begin:
            self._ledger.keep_refusal(task, environment)
            return
        known = self._submitted(task)
        if known is not None and (found := self._cluster.follow(known)) is not None:
            place = task.work_folder.with_name(f"{task.run_id}-{known.uuid}")
            found.task = task.model_copy(update={"uuid": known.uuid, "work_folder": place})
            self._pending.append(found)
            return
        order = Order(
            task=task,
            environment=environment,
            results=self._runs.store.folder,
            threads=self._cluster.threads,
            timeout_seconds=self._limits.timeout_seconds,
            limit_seconds=self._cluster.settings.seconds_of_a_run,
            retry=tuple(sorted(self._runs.tried)),
        )
        one = self._cluster.submit(task.spec.run_name, self._cluster.work, order.model_dump_json())
        one.task = task
        self._pending.append(one)
        submission = Submission(
            job=one.job.job_id,
            cluster=self._cluster.settings.cluster,
            run_id=task.run_id,
            uuid=task.uuid,
            submitted_at=datetime.now(UTC),
        )
        self._files.note(task.claimed_as, submission)

    def _look(self, states_seconds: float) -> None:
        """Take what has ended, and tell the watcher what runs and what is queued."""
        if self._pending and time.monotonic() - self._asked >= states_seconds:
            ask(self._pending)
            self._asked = time.monotonic()
        for one in list(self._pending):
            self._look_at(one)
        if self._pending:
            running = sum(one.began for one in self._pending)
            queued = len(self._pending) - running
            left = len(self._queue.pending)
            number = len(self._runs.tasks)
            said = f"{running} running, {queued} queued at Slurm, {left} to submit"
            self._watcher.progress(said, number - left - len(self._pending), number)

    def _look_at(self, one: Followed) -> None:
        """See how a job goes, and take it where it has ended."""
        task = one.task
        assert task is not None
        said = self._files.answer(task.uuid)
        if not one.began and (one.state == "RUNNING" or (said is not None and said.uuid is not None)):
            one.began = True
            self._watcher.run_begins(task)
        over = one.is_over(self._cluster.lag_seconds)
        if not over and (said is None or said.interrupted):
            return  # one that was told to end may begin anew: Slurm says it
        record = self._stored(task, task.uuid if said is None or said.uuid is None else said.uuid)
        if record is not None:
            self._ledger.take(task, record)
            self._done(one, clear=True)
        elif said is not None and said.uuid is None:
            self._queue.take_back(task)  # somebody else does it, or has done it
            self._done(one, clear=True)
        elif over:
            self._take_dead(one, task)

    def _stored(self, task: RunTask, name: str) -> Record | None:
        """Return the record that a job has stored."""
        records = self._records[task.spec.suite].contents().records
        found = recorded_as(records, name)
        if found is not None and found.was_interrupted:
            self._cut.append(task)
        return found

    def _take_dead(self, one: Followed, task: RunTask) -> None:
        """Record the run of a job that did not live to do so; one that never began is still to do."""
        if one.never_began and not task.work_folder.exists():
            if one.recalled:
                self._queue.take_back(task)
            else:
                self._queue.release(task)
            self._done(one, clear=True)
            return
        status, reason = one.ending
        started_at = datetime.now(UTC)
        ended = task.record(self._cluster.environment(), started_at, status, reason, log_tail=one.log_tail)
        record = left_record(task.work_folder) or with_what_is_left(task, ended)
        # Held where it can be: until the dead job's own lease has stood still, nobody else takes up what it left.
        self._claims.take(task.claimed_as, task.work_folder.name)
        if record.was_interrupted:
            self._cut.append(task)
        try:
            self._ledger.keep(task, record)
        finally:
            self._claims.release(task.claimed_as)
        self._done(one, clear=False)

    def _done(self, one: Followed, *, clear: bool) -> None:
        """Follow a job no longer; the files of one that left no record stay for whoever wants to know why."""
        assert one.task is not None
        self._pending.remove(one)
        self._files.forget(one.task.claimed_as, one.task.uuid)
        if clear:
            one.clear()

    def _recall(self) -> None:
        """Cancel what has not begun and is not to begin any more."""
        for one in self._pending:
            if one.task is not None and not one.began and not one.cancelled and self._queue.is_off(one.task):
                one.cancel(recalled=True)

    def _cancel(self) -> None:
        """Cancel every job, take the records of what ran, leave what has not begun; a second Ctrl-C waits no more."""
        for one in self._pending:
            one.cancel()
        deadline = time.monotonic() + GRACE_SECONDS
        try:
            while self._pending and time.monotonic() < deadline:
                self._look(POLL_SECONDS)
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            return
