"""The view of a report: what the runs of one table have in common, chosen from the records, and how others differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from harness.answers import answers
from harness.record import Record
from harness.record_environment import Environment
from harness.report.units import memory_text
from harness.settings import EvaluationSettings
from harness.suite import Suite


@dataclass(frozen=True)
class View:
    """What the runs of one table have in common."""

    suite_version: int
    protocol: str
    evaluation: EvaluationSettings
    max_steps: int | None
    environment: Environment
    environment_id: str
    _told: dict[int, tuple[Environment, str]] = field(default_factory=dict, repr=False, compare=False)
    """By the identity of an environment, which is held meanwhile."""

    def differences(self, record: Record) -> tuple[str, ...]:
        """Return how a record differs from the view, in words; nothing when it belongs."""
        spec = record.spec
        found = []
        for what, ours, theirs in (
            ("suite version", self.suite_version, spec.suite_version),
            ("protocol", self.protocol, spec.protocol),
        ):
            if ours != theirs:
                found.append(f"{what} {theirs} instead of {ours}")
        if record.is_run:
            if not answers(spec.evaluation, self.evaluation):
                found += _changed_fields(_told(self.evaluation), _told(spec.evaluation))
            if spec.train is not None and spec.max_steps != self.max_steps:
                found.append(f"max_steps {_said(spec.max_steps)} instead of {_said(self.max_steps)}")
        if not record.ran_in(self.environment_id):
            found.append(f"environment {record.environment_id[:8]} ({self._changes(record.environment)})")
        return tuple(found)

    def _changes(self, other: Environment) -> str:
        """Return how an environment differs; of one that many records share it is found once."""
        key = id(other)
        if key not in self._told or self._told[key][0] is not other:
            changes = _changed_fields(_flat(self.environment), _flat(other))
            changes = [change for change in changes if not change.startswith("source_checksum ")]
            self._told[key] = other, "; ".join(changes or ["other source code"])
        return self._told[key][1]


def view_of(record: Record) -> View:
    """Return the view of what ran like one record, and under its bound of steps."""
    spec = record.spec
    return View(
        spec.suite_version, spec.protocol, spec.evaluation, spec.max_steps, record.environment, record.environment_id
    )


def choose_view(suite: Suite, records: Sequence[Record]) -> View:
    """Return the view of the newest record, those preferred that ran what the suite asks for now, uncut."""

    settings = {id(record.evaluation_settings): record.evaluation_settings for record in records}
    asked = _told(suite.evaluation)
    is_asked = {key: _told(evaluation) == asked for key, evaluation in settings.items()}

    def rank(item: tuple[int, Record]) -> tuple[bool, bool, bool, int]:
        position, record = item
        spec = record.spec
        return (
            spec.suite_version == suite.version,
            spec.protocol == suite.protocol,
            is_asked[id(spec.evaluation)],
            position,
        )

    best = max(enumerate(records), key=rank)[1]
    view, spec = view_of(best), best.spec
    answering = {key: answers(evaluation, view.evaluation) for key, evaluation in settings.items()}
    bounds = [
        (record.spec.max_steps is None, position, record.spec.max_steps)
        for position, record in enumerate(records)
        if record.train_settings is not None
        and record.ran_in(view.environment_id)
        and (record.spec.suite_version, record.spec.protocol) == (spec.suite_version, spec.protocol)
        and answering[id(record.evaluation_settings)]
    ]
    return replace(view, max_steps=max(bounds)[2] if bounds else None)


def view_notes(suite: Suite, view: View) -> list[str]:
    """Return a sentence for each way in which the view is not what the suite asks for now."""
    notes = []
    if view.suite_version != suite.version:
        notes.append(
            f"The records are of version {view.suite_version} of the suite; it is at version {suite.version} now."
        )
    if view.protocol != suite.protocol:
        notes.append(f"The records follow protocol {view.protocol}; the suite follows {suite.protocol} now.")
    changes = _changed_fields(_told(suite.evaluation), _told(view.evaluation))
    if view.max_steps is not None:
        changes.append(f"at most {view.max_steps} optimizer steps")
    if changes:
        notes.append(f"These runs were cut or changed against the suite: {'; '.join(changes)}.")
    return notes


def _told(evaluation: EvaluationSettings) -> dict[str, object]:
    """Return what moves a score: how many tokens a forward pass takes does not."""
    return evaluation.model_dump(exclude={"batch_tokens"})


def _flat(environment: Environment) -> dict[str, object]:
    beside = {"device_memory": memory_text(environment), "num_ranks": environment.num_ranks}
    return environment.told_by_name() | beside | environment.packages


def _changed_fields(ours: dict[str, object], theirs: dict[str, object]) -> list[str]:
    return [
        f"{key} {_said(theirs.get(key))} instead of {_said(ours.get(key))}"
        for key in dict.fromkeys((*ours, *theirs))
        if ours.get(key) != theirs.get(key)
    ]


def _said(value: object) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
