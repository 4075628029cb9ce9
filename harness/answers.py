"""What there is already: records that answer a run, and trained weights that were kept and only need scoring.

A run asks for a training and for scores of it. Scores do not depend on how many tokens a forward pass takes, and the
first items of a longer evaluation are those of a shorter one: such a record answers as well. Where the training is the
same and the evaluation another, kept weights are scored, and nothing is trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness.record import Record
from harness.record_environment import Environment
from harness.settings import EvaluationSettings
from harness.spec import RunSpec
from harness.store import newest_outcomes, runs_of

NO_RETRY: frozenset[str] = frozenset()


def answer(
    records: Sequence[Record],
    spec: RunSpec,
    environment_id: str | None,
    retry: frozenset[str] = NO_RETRY,
    newest: Mapping[str, Record] | None = None,
) -> Record | None:
    """Return the record that answers a run, its own outcome before another's; None where it is still to be done.

    Args:
        records: Of the suite, in the order of time.
        spec: The run.
        environment_id: Whose records count; None: those of any.
        retry: Statuses that are no answer.
        newest: ``newest_outcomes`` of these records; None: it is looked for.
    """
    known = newest_outcomes(runs_of(records, spec.run_id), environment_id) if newest is None else newest
    own = known.get(spec.run_id)
    if own is not None:
        return own if own.has_outcome(retry) else None
    found = [
        record
        for record in records
        if record.ran_in(environment_id)
        and record.judging is None
        and _is_same_training(record, spec)
        and answers(record.evaluation_settings, spec.evaluation)
        and record.spec.scored_on == spec.scored_on
        and (record.has_outcome(retry) if record.is_run else record.is_ok)
    ]
    return found[-1] if found else None


def asks_alike(record: Record, other: Record) -> bool:
    """Return whether two records are of one question, whatever their seeds."""
    return record.attempted == other.attempted or record.spec.asks_as(other.spec)


def answers(given: EvaluationSettings, asked: EvaluationSettings) -> bool:
    """Return whether scores of one evaluation are those of another, or more items of the same questions."""
    if given is asked:  # as with records that were read together
        return True
    if _without_size(given) != _without_size(asked):
        return False
    return given.limit is None or (asked.limit is not None and given.limit >= asked.limit)


def kept_training(
    records: Sequence[Record], spec: RunSpec, environment: Environment | None, there: Callable[[Record], bool]
) -> Record | None:
    """Return the newest run with kept weights that was trained as a run asks and would be here; None: there is none.

    MT-Bench's answers are judged by the run that gave them, so a run that asks for some trains. So does one that has an
    outcome here already: it is asked for once more.

    Args:
        records: Of the suite, in the order of time.
        spec: The run.
        environment: Where it would take place; None: not known, and anywhere counts.
        there: Says of a record that names kept weights whether they still are where it says.
    """
    if spec.evaluation.mt_bench is not None or not spec.evaluation.tasks:
        return None
    here = None if environment is None else environment.environment_id
    if spec.run_id in newest_outcomes(runs_of(records, spec.run_id), here):
        return None
    found = [
        record
        for record in trained_alike(records, spec)
        if record.weights is not None and record.trained_as_in(environment)
    ]
    return next((record for record in reversed(found) if there(record)), None)


def trained_alike(records: Iterable[Record], spec: RunSpec) -> list[Record]:
    """Return the runs with a result whose training is that of a run, wherever they took place."""
    return [
        record
        for record in records
        if record.is_run and record.is_ok and spec.train is not None and _is_same_training(record, spec)
    ]


def _is_same_training(record: Record, spec: RunSpec) -> bool:
    known = record.spec
    # Cheap questions first: an identity is a checksum.
    if (known.suite, known.label, known.seed, known.method) != (spec.suite, spec.label, spec.seed, spec.method):
        return False
    return known.model == spec.model and known.training_id == spec.training_id


def _without_size(evaluation: EvaluationSettings) -> dict[str, Any]:
    return evaluation.model_dump(exclude={"limit", "batch_tokens"})
