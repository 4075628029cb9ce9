"""Runs whose training is done already: scored from the weights that were kept, or said to train again and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

from harness.answers import kept_training, trained_alike
from harness.beside import within
from harness.commands._finishing import are_there, awaiting
from harness.kept import ADAPTER
from harness.record import Record
from harness.record_environment import Environment
from harness.spec import RunSpec
from harness.store import Store, runs_of
from harness.task import RunTask

TRAIN = "train"
SCORE = "score kept weights"
AGAIN = "train again: scored otherwise before, and there are no kept weights"
ELSEWHERE = "train again: trained before by other code or on another device"


def way_of(records: Sequence[Record], spec: RunSpec, environment: Environment | None, store: Store) -> str:
    """Return how a run that has no outcome comes to one.

    Args:
        records: Of the suite.
        spec: The run.
        environment: Where it would take place; None: not known.
        store: Where the records and kept weights are.
    """
    if spec.train is None:
        return "score"
    runs = runs_of(records, spec.run_id)
    own = [record for record in runs if environment is None or record.ran_in(environment.environment_id)]
    if awaiting(own, store) is not None:
        return SCORE
    if kept_training(records, spec, environment, partial(are_there, store)) is not None:
        return SCORE
    # Of another evaluation: the same one was not done here, or is to be done once more.
    alike = [record for record in trained_alike(records, spec) if record.run_id != spec.run_id]
    if not alike:
        return TRAIN
    here = [record for record in alike if record.trained_as_in(environment)]
    return AGAIN if here else ELSEWHERE


def ways_sentences(
    records: Sequence[Record], specs: Iterable[RunSpec], environment: Environment, store: Store, *, reached: bool
) -> list[str]:
    """Return a sentence for each way but plain training, with how many runs go it.

    Args:
        records: Of the suite.
        specs: The runs that are to be done.
        environment: Where.
        store: Where the records and kept weights are.
        reached: Whether runs take place on the machine on which kept weights lie.
    """
    counts = Counter(way_of(records, spec, environment, store) for spec in specs)
    runs = {way: f"{count} run{'s' if count > 1 else ''}" for way, count in counts.items()}
    found = []
    if SCORE in runs and reached:
        found.append(f"{runs[SCORE]} trained before: scored from the kept weights, not trained again")
    elif SCORE in runs:
        found.append(f"{runs[SCORE]} to train again: kept weights are scored with --executor local alone")
    if AGAIN in runs:
        found.append(
            f"{runs[AGAIN]} to train again: scored otherwise before, and there are no kept weights (--keep-weights)"
        )
    return found


def from_kept(task: RunTask, store: Store, records: Sequence[Record], environment: Environment) -> RunTask:
    """Return the task that scores the kept weights of a run's training, or the task as it is where there are none."""
    record = kept_training(records, task.spec, environment, partial(are_there, store))
    if record is None or task.refusal is not None:
        return task
    weights = within(store.folder, str(record.weights))
    adapter = weights / ADAPTER
    return task.model_copy(
        update={
            "of": record.uuid,
            "run_id": record.run_id,
            "model_folder": task.model_folder if adapter.is_dir() else weights,
            "adapter_folder": adapter if adapter.is_dir() else None,
            "keep_weights": False,
            "checkpoint_folder": None,
            "checkpoint_every": None,
            "prediction": None,
            "prediction_error": None,
        }
    )
