"""Runs that trained and could not be scored: their kept weights are scored, and nothing is trained again."""

from __future__ import annotations

from collections.abc import Iterable

from harness.beside import within
from harness.kept import ADAPTER, can_be_scored
from harness.record import Record
from harness.store import Store
from harness.task import RunTask


def are_there(store: Store, record: Record) -> bool:
    """Return whether the kept weights that a record names can still be scored."""
    return can_be_scored(within(store.folder, str(record.weights)))


def awaiting(records: Iterable[Record], store: Store) -> Record | None:
    """Return the newest run among some records whose weights wait to be scored; None where it was scored since.

    Args:
        records: Of one run in one environment, in the order of time.
        store: Where they and the weights are.
    """
    for record in reversed([record for record in records if record.is_run]):
        if record.awaits_scores and are_there(store, record):
            return record
        if record.has_outcome() and not record.awaits_scores:
            return None
    return None


def finishing(task: RunTask, record: Record, store: Store) -> RunTask:
    """Return the task of a run as one that scores what another had trained.

    Args:
        task: As the run would be done from its beginning; of an adapter its model folder is the base's.
        record: The run that trained.
        store: Where its weights are.
    """
    weights = within(store.folder, str(record.weights))
    adapter = weights / ADAPTER
    wrapped = adapter.is_dir()
    return task.model_copy(
        update={
            "finishes": record,
            "model_folder": task.model_folder if wrapped else weights,
            "adapter_folder": adapter if wrapped else None,
            "prediction": record.prediction,
            "prediction_error": record.prediction_error,
        }
    )
