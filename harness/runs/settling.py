"""From a run's work folder into the results: its files first, then the record that names them. Imports no torch.

The files of a run stay in its work folder until its record is appended; what a parent that was killed before that has
left there is taken up by the next.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.beside import within
from harness.files import put, said_as, sync, sync_tree
from harness.record import Record, Status
from harness.record_environment import Environment
from harness.run_names import folder_name
from harness.runs.child import TRAINED_FILE, left_record
from harness.runs.claims import Claims
from harness.runs.describing import Card, describe, describe_again
from harness.runs.executor import Runs, Tally, Watcher
from harness.runs.queue import RunQueue
from harness.store import Store
from harness.task import RunTask

WORK = ".work"


class Ledger:
    """The records of one call of an executor: each settled, its claim given back and the watcher told as it comes."""

    def __init__(self, runs: Runs, queue: RunQueue, watcher: Watcher) -> None:
        self._store = runs.store
        self._card = runs.card
        self._queue = queue
        self._watcher = watcher
        self._observer = runs.observer
        self._records: list[Record] = []

    def keep(self, task: RunTask, record: Record, work: Path | None = None) -> None:
        """Take the record of a run that ended.

        Args:
            task: The run.
            record: Its record, files not yet moved.
            work: Where its files lie; None: in its work folder.

        Raises:
            HarnessError: it cannot be stored.
        """
        kept = settle(work or task.work_folder, record, self._store, task.checkpoint_folder, self._card)
        self.forget(task)
        self._let_go(task.finishes, kept)
        self.take(task, kept)

    def take(self, task: RunTask, kept: Record) -> None:
        """Take the record of a run that another process has stored for this call."""
        self._queue.release(task)
        self._records.append(kept)
        self._queue.note(kept)
        self._watcher.run_ended(kept)
        self._observer.ended(task, kept)

    def _let_go(self, before: Record | None, kept: Record) -> None:
        """Remove weights that were held to be scored, once they are and nobody wants them."""
        scored = (kept.is_ok or kept.is_unproven) and kept.weights is None
        if scored and before is not None and before.weights_held and before.weights:
            shutil.rmtree(within(self._store.folder, before.weights), ignore_errors=True)

    def forget(self, task: RunTask) -> None:
        """Remove what a run has left in its work folder."""
        shutil.rmtree(task.work_folder, ignore_errors=True)

    def keep_refusal(self, task: RunTask, environment: Environment) -> None:
        """Record that a run cannot be done, for good or until what is missing is there.

        Raises:
            HarnessError: it cannot be stored.
        """
        ending: tuple[Status, str | None] = ("failed", task.unready)
        if task.refusal is not None:
            ending = ("refused", task.refusal)
        self.keep(task, task.record(environment, datetime.now(UTC), *ending))

    def tally(self, **how: Any) -> Tally:
        """Return what there is, with how the call ended."""
        queue = self._queue
        others, spared = queue.num_by_others, tuple(queue.not_started)
        left = queue.num_left() or None if queue.closed and not how.get("left_by_budget") else None
        return Tally(tuple(self._records), num_by_others=others, left_by_failures=left, not_started=spared, **how)


def settle(work: Path, record: Record, store: Store, checkpoints: Path | None, card: Card | None = None) -> Record:
    """Move a run's files beside the records, append its record, and then remove what the run left; return the record.

    In this order a parent may be killed at any moment: the work folder, with the child's record in it, is there until
    the record is in the store, and kept weights that it gave scores to are described with them. See ``recover``.

    Args:
        work: Folder that the run left.
        record: Of the run, its files not yet moved.
        store: Where the record goes.
        checkpoints: Of the run; None: it has none.
        card: What writes the card of kept weights; None: they have none.

    Raises:
        HarnessError: the files cannot be moved or the record cannot be stored; the work folder stays.
    """
    kept = keep_files(work, record, store.folder, card)
    store.append(kept)
    _describe_scored(kept, record, store, card)
    if checkpoints is not None and kept.has_outcome():
        shutil.rmtree(checkpoints, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
    return kept


def recover(store: Store, card: Card | None = None) -> int:
    """Take up what processes that are gone have left: append the records of their finished runs, remove the rest.

    Return how many records were appended.

    Raises:
        HarnessError: claims or records cannot be written.
    """
    recovered = 0
    with Claims(store.folder) as claims, claims.abandoned(store.folder / WORK) as folders:
        for folder in folders:
            record = left_record(folder) or left_record(folder, TRAINED_FILE)
            if record is None or not folder.name.endswith(record.uuid):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            if all(record.uuid != known.uuid for known in store.read(record.suite).records):
                settle(folder, record, store, checkpoint_folder(store, record.run_id, record.environment), card)
                recovered += 1
            else:
                _describe_scored(record, record, store, card)
            shutil.rmtree(folder, ignore_errors=True)
    return recovered


def checkpoint_folder(store: Store, run_id: str, environment: Environment) -> Path:
    """Return where the checkpoints of a run lie, whichever process attempts it, on however many devices like this."""
    return store.folder / "checkpoints" / f"{run_id}-{environment.of_ranks(1).environment_id}"


def work_folder(store: Store, run_id: str, uuid: str) -> Path:
    """Return where a run leaves its files until they are moved beside its record."""
    return store.folder / WORK / f"{run_id}-{uuid}"


def keep_files(work: Path, record: Record, folder: Path, card: Card | None = None) -> Record:
    """Move a run's items and weights from its work folder into the folder of the records; return the record with them.

    There they are as durable as the record that will name them. What was moved by an earlier call, whose process was
    killed, stays where it is.

    Raises:
        HarnessError: they cannot be moved.
    """
    stem = record.file_stem
    moved: dict[str, object] = {}
    advice = f"they lie in {work}, and the next run takes them up"
    with said_as(f"{folder}: the files of {record.called} cannot be moved there", advice):
        if record.items is not None and not _settled(record.items, "items"):
            moved["items"] = items = f"items/{stem}.jsonl.zst"
            _move(work / record.items, folder / items)
        if record.mt_bench is not None and not _settled(record.mt_bench.file, "items"):
            answers = f"items/{stem}.answers.jsonl"
            _move(work / record.mt_bench.file, folder / answers)
            moved["mt_bench"] = record.mt_bench.model_copy(update={"file": answers})
        if record.weights is not None and not _settled(record.weights, "weights"):
            moved["weights"] = weights = f"weights/{folder_name(record)}"
            if (source := work / record.weights).is_dir():
                describe(source, record.model_copy(update=moved), (), card)
            _move(source, folder / weights)
    return record.model_copy(update=moved)


def _describe_scored(kept: Record, left: Record, store: Store, card: Card | None) -> None:
    """Describe kept weights anew that lay beside the records already and were given scores.

    Args:
        kept: The record as it is stored.
        left: As the run left it.
        store: Where it is.
        card: What writes the card.
    """
    lay_there = left.weights is not None and _settled(left.weights, "weights")
    if kept.of is not None or lay_there:
        describe_again(store, kept, card)


def _settled(name: str, folder: str) -> bool:
    """Return whether a file lies beside the records already: that of an earlier record, which this one finishes."""
    return name.startswith(f"{folder}/")


def _move(source: Path, target: Path) -> None:
    if source.exists() or not target.exists():
        put(source, target)
    else:  # by a process that was killed, it may be before it had made them durable
        sync_tree(target)
        sync(target.parent)
