"""Which runs are not started because of how others ended: after so many failures, or as another seed did.

Another seed of a run, everything else alike, would end as the first did where the seed had no part in it:

- it was refused, or it failed or ran out of memory before its first optimizer step or after its last: by then nothing
  that the seed draws decides over shapes, files or names;
- it ran out of memory in a later step, as had been predicted from shapes that every seed shares.

A divergence, a failure between two steps, a process that was killed or lost, a run that took too long and a proof that
fails are tried with every seed. The newest ending decides, so that a seed that works opens the way for the others.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from harness.readings import own_prediction, question
from harness.record import Record
from harness.spec import RunSpec, identity

ASIDES = frozenset({"probe", "validate_during"})
"""Phases that interrupt ``train`` and are kept behind it."""


def is_failure(record: Record) -> bool:
    """Return whether a run ended so that ``harness run`` exits with 1; an interrupt says nothing of the run."""
    return not record.was_interrupted and (not record.has_outcome() or record.is_unproven)


def holds_for_every_seed(record: Record) -> bool:
    """Return whether the same run with another seed would end so too; see this module."""
    status, _ = record.ending
    if status == "refused":
        return True
    if status not in ("failed", "out_of_memory") or not record.phases:
        return False  # without a phase the record is not the run's own word, but that of who missed it
    inner = [phase.name for phase in record.phases if phase.name not in ASIDES]
    if record.train is None or inner[-1:] != ["train"]:
        return True
    prediction = own_prediction(record)
    return status == "out_of_memory" and prediction is not None and not record.environment.holds(prediction)


class Endings:
    """How runs ended that every seed would end so, by what was asked but for the seed."""

    def __init__(self, tried: Collection[str] = ()) -> None:
        """Take the endings that keep no seed from being tried."""
        self._tried = frozenset(tried)
        self._newest: dict[str, Record] = {}

    @classmethod
    def recorded(cls, records: Iterable[Record], environment_id: str | None, tried: Collection[str]) -> Endings:
        """Return what records, in the order of time, say of an environment (None: of any).

        One that failed is no answer: it is tried again, and with it the others.
        """
        endings = cls(tried)
        for record in records:
            if record.is_run and record.ran_in(environment_id) and record.has_outcome():
                endings.note(record)
        return endings

    def note(self, record: Record) -> None:
        """Take in how a run ended."""
        if record.has_outcome() or holds_for_every_seed(record):
            key = identity(question(record))
            self._newest.pop(key, None)
            if record.ending[0] not in self._tried and holds_for_every_seed(record):
                self._newest[key] = record

    def of(self, spec: RunSpec) -> Record | None:
        """Return the run of another seed whose ending this one would meet, or None: nothing is known against it."""
        if not self._newest:
            return None
        found = self._newest.get(identity(spec.asked() | {"seed": None}))
        return found if found is not None and found.run_id != spec.run_id else None


@dataclass(frozen=True)
class NotStarted:
    """A run that was not started, as it would have ended as another seed's did."""

    spec: RunSpec
    ending: Record


def told(spared: Iterable[NotStarted]) -> list[str]:
    """Return a sentence for each label of a model whose other seeds were not started."""
    groups: dict[str, list[NotStarted]] = {}
    for one in spared:
        groups.setdefault(one.ending.uuid, []).append(one)
    sentences = []
    for group in groups.values():
        ending, spec = group[0].ending, group[0].spec
        status, reason = ending.ending
        seeds = ", ".join(map(str, sorted({one.spec.seed for one in group})))
        sentences.append(
            f"{spec.model_name} {spec.label}: not started with seed {seeds}, as seed {ending.seed} ended for a "
            f"reason that every seed meets ({status}: {reason}); --retry {status} tries them"
        )
    return sentences
