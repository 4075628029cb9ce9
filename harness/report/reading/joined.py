"""Records that say one run: what does not train is the same whatever seed it was asked for with, and a training whose
kept weights were scored by another evaluation is a run under that evaluation."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence

from harness.readings import question
from harness.record import Record


def joined(records: Sequence[Record]) -> list[Record]:
    """Return records with one for all runs of a question that train nothing in one environment: the newest outcome.

    Older suites recorded one for each seed that was asked for. Scores that were added later to any of them are of the
    one that stays. The repeats of one seed stay as they are: they were asked for as such.

    Args:
        records: In the order of time.
    """
    kept: dict[tuple[str, ...], Record] = {}
    for record in records:
        if _is_still(record):
            known = kept.get(key := _one_run(record))
            if known is None or record.has_outcome() or not known.has_outcome():
                kept[key] = record
    stays: dict[str, str] = {}
    for record in records:
        if _is_still(record) and (newest := kept[_one_run(record)]).seed != record.seed:
            stays[record.uuid] = newest.uuid
    return [
        record if record.of not in stays else record.model_copy(update={"of": stays[record.of]})
        for record in records
        if record.uuid not in stays
    ]


def scored_anew(records: Sequence[Record], evaluations: Collection[str]) -> dict[str, Record]:
    """Return runs as they are under another evaluation that scored their kept weights, by the evaluation's uuid.

    Such a run holds the training of the one and the scores of the other, and took place where its scores did: what
    trains is the same there. It keeps its uuid, so that what was added to it stays its own.

    Args:
        records: In the order of time.
        evaluations: Identities of the evaluations that whole runs were asked for with. Others, of a few tasks or items
            that somebody added, make no run.
    """
    runs = {record.uuid: record for record in records if record.is_run}
    found = {}
    for record in records:
        run = runs.get(record.of or "")
        if run is None or record.is_run or record.judging is not None or not record.is_ok:
            continue
        same = record.spec.evaluation_id == run.spec.evaluation_id and record.ran_in(run.environment_id)
        if same or record.spec.evaluation_id not in evaluations:
            continue
        found[record.uuid] = run.model_copy(
            update={
                "run_id": record.spec.run_id,
                "spec": record.spec,
                "environment_id": record.environment_id,
                "environment": record.environment,
                "scores": record.scores,
                "items": record.items,
                "scoring": record.scoring,
            }
        )
    return found


def with_scored_anew(records: Sequence[Record], anew: Mapping[str, Record]) -> list[Record]:
    """Return records with runs that were scored anew in the place of what they were, and without the evaluations."""
    replaced = {run.uuid: run for run in anew.values()}
    return [replaced.get(record.uuid, record) for record in records if record.uuid not in anew]


def seed_of(record: Record) -> int | None:
    """Return the seed of a run; None of one that does not train, whose seed says nothing."""
    return None if _is_still(record) else record.seed


def joined_note(before: Iterable[Record], after: Iterable[Record]) -> list[str]:
    """Return a sentence on how many records were joined."""
    stayed = {record.uuid for record in after}
    gone = [label for uuid, label in {r.uuid: r.label for r in before}.items() if uuid not in stayed]
    if not gone:
        return []
    return [
        f"What does not train is one run whatever its seed: of {', '.join(dict.fromkeys(gone))} the newest outcome "
        f"counts; records of other seeds: {len(gone)}."
    ]


def _is_still(record: Record) -> bool:
    return record.is_run and record.train_settings is None


def _one_run(record: Record) -> tuple[str, ...]:
    """Return what records of one run that trains nothing have in common."""
    return record.suite, record.environment_id, json.dumps(question(record), sort_keys=True)
