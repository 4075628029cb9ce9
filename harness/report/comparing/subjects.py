"""What was measured on one side of a comparison, gathered by subject: a label on a model in a suite, or a benchmark.

The run id is no key here, since it changes with every resolved setting, a default that someone changed among them; that
is just what a comparison should catch. Subjects match by suite, model and label. Of what differs between two subjects

- *conditions* say that the question was another one, or the device: the suite's version, the protocol, weights, data,
  evaluation, the bound of steps. Nothing is compared then.
- *settings* (the method's and the training's) can only differ under one label and one version of a suite when a default
  changed: compared, and said.
- *environment* (packages, driver, source) is what regressions are looked for in: compared, and said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, PositiveFloat

from harness.answers import asks_alike
from harness.proof import ending_of
from harness.readings import headline_scores, question
from harness.record import Record, Score
from harness.report.comparing.measures import TIME, measures
from harness.report.reading.chosen import own_scores
from harness.report.reading.joined import joined, seed_of
from harness.report.reading.summary import newest_records
from harness.toml_files import validate

Key = tuple[str, str, str]
"""Suite, model and label; of a benchmark its group, nothing, and its full name."""


class Value(NamedTuple):
    """What a measure says of one run, or of a benchmark's round."""

    seed: int
    value: float


class ScoreSample(NamedTuple):
    """One score of one run, and where its items are."""

    seed: int
    score: Score
    items: str | None


@dataclass
class Subject:
    """One label on one model, or one benchmark, on one side."""

    key: Key
    conditions: dict[str, str]
    settings: dict[str, str]
    environment: dict[str, str]
    uuids: frozenset[str] = frozenset()
    statuses: dict[int, tuple[str, str | None]] = field(default_factory=dict)
    """Newest outcome and its reason, by seed."""
    values: dict[str, list[Value]] = field(default_factory=lambda: defaultdict(list))
    """One a seed and repeat, by measure."""
    scores: dict[str, list[ScoreSample]] = field(default_factory=lambda: defaultdict(list))
    """By ``task metric``; of a judged one with the judge."""
    by_seed: dict[str, dict[int, list[ScoreSample]]] = field(default_factory=dict, compare=False)
    """The same by seed, once it was asked for."""
    device_type: str | None = None
    """Of the newest environment; None of a benchmark."""
    trains: bool = True

    def repeats(self, other: Subject) -> bool:
        """Return whether it holds just what another does, and no measurement of its own."""
        return all(
            getattr(self, part) == getattr(other, part)
            for part in ("uuids", "statuses", "environment", "values", "scores")
        )

    def scores_by_seed(self, title: str) -> dict[int, list[ScoreSample]]:
        """Return the samples of a score by their seeds; repeats of one seed stand together."""
        if title not in self.by_seed:
            found: dict[int, list[ScoreSample]] = defaultdict(list)
            for sample in self.scores[title]:
                found[sample.seed].append(sample)
            self.by_seed[title] = found
        return self.by_seed[title]

    @property
    def title(self) -> str:
        """Return what the subject is called."""
        suite, model, label = self.key
        return label if not model else f"{suite} / {model} / {label}"

    @property
    def has_result(self) -> bool:
        """Return whether any run has a result."""
        return any(status == "ok" for status, _ in self.statuses.values())


def subjects_of_records(
    records: Sequence[Record], others: Iterable[Record] = ()
) -> tuple[dict[Key, Subject], dict[str, int]]:
    """Return the subjects of some records, and how many runs were left out, by reason.

    Of each subject the newest environment and the newest question count.

    Args:
        records: In the order of time.
        others: Those of the other side; what is among them too counts only for a subject that has nothing else.
    """
    shared = {record.uuid for record in others}
    groups: dict[Key, list[Record]] = defaultdict(list)
    added: dict[str, list[Record]] = defaultdict(list)
    for record in joined(records):
        if record.is_run:
            groups[record.suite, record.model_name, record.label].append(record)
        elif record.of is not None and record.is_ok:
            added[record.of].append(record)
    left_out: dict[str, int] = defaultdict(int)
    subjects = {}
    for key, group in groups.items():
        own = [record for record in group if record.uuid not in shared] or group
        newest = newest_records(own)[-1]
        kept = []
        for record in own:
            if not record.ran_in(newest.environment_id):
                left_out["of an older environment"] += 1
            elif not asks_alike(record, newest):
                left_out["with other settings than the newest of their label"] += 1
            else:
                kept.append(record)
        subjects[key] = _subject(key, newest, kept, added)
    return subjects, dict(left_out)


def _subject(key: Key, newest: Record, records: Sequence[Record], added: Mapping[str, Sequence[Record]]) -> Subject:
    conditions, settings = _asked(newest)
    where, environment = _environment(records[-1])
    subject = Subject(key, conditions | where, settings, environment, frozenset(record.uuid for record in records))
    subject.device_type, subject.trains = newest.environment.device_type, newest.train_settings is not None
    outcomes = {record.uuid: ending_of(record) for record in records}
    judged = tuple(measures().items())
    for record in newest_records(records):
        subject.statuses[seed_of(record) or 0] = outcomes[record.uuid]
    for record in records:
        if outcomes[record.uuid][0] != "ok":
            continue
        seed = seed_of(record) or 0
        for name, measure in judged:
            if (value := measure.read(record)) is not None and isfinite(value):
                subject.values[name].append(Value(seed, value))
        later = [one for one in added.get(record.uuid, ()) if one.ran_in(newest.environment_id)]
        for score, items in own_scores(record, later):
            if score.headline and isfinite(score.value):
                subject.scores[score.title].append(ScoreSample(seed, score, items))
        for one in later:
            judge = "" if one.judging is None else f", judged by {one.judging.identity}"
            for score in headline_scores(one) if judge else ():
                if isfinite(score.value):
                    subject.scores[score.title + judge].append(ScoreSample(seed, score, one.items))
    return subject


def _asked(record: Record) -> tuple[dict[str, str], dict[str, str]]:
    """Return what makes the question, and the settings of method and training."""
    asked = question(record)
    conditions = {"suite version": str(asked["suite_version"]), "protocol": asked["protocol"]}
    conditions["precision of the weights"] = record.scored_dtype
    conditions |= _flat("weights", {name: value for name, value in asked["model"].items() if name != "name"})
    for name in ("sources", "evaluation", "calibration", "general"):
        conditions |= _flat(name, asked.get(name) or {})
    conditions |= {name: str(asked[name]) for name in ("max_steps", "conversation") if asked.get(name) is not None}
    settings = {"method": asked["method"]} | _flat("config", asked["config"]) | _flat("train", asked["train"] or {})
    return conditions, settings


def _environment(record: Record) -> tuple[dict[str, str], dict[str, str]]:
    """Return the device, which must be the same, and all else of where a run took place."""
    where = record.environment
    device = {"device": where.device_text}
    rest = {
        "driver": where.driver or "none",
        "device memory (bytes)": str(where.device_memory_bytes),
        "platform": where.platform,
        "Python": where.python,
        **where.packages,
        "source checksum": where.source,
        "commit": f"{(where.commit or 'outside a checkout')[:12]}{' with uncommitted changes' if where.dirty else ''}",
        "in use by others at the start": where.device_busy or "nothing seen",
    }
    (rest if where.on_cuda else device)["CPU threads"] = str(where.num_threads)
    return device, rest


def subjects_of_benchmarks(documents: Sequence[Mapping[str, Any]], where: str) -> dict[Key, Subject]:
    """Return one subject a benchmark of pytest-benchmark's documents; rounds of several documents are put together.

    Without the rounds' own times (``--benchmark-save-data`` keeps them) the mean stands for all.

    Raises:
        HarnessError: a benchmark has no name or no time, or a part is not of its type.
    """
    subjects: dict[Key, Subject] = {}
    for found in documents:
        document = validate(_Document, found, f"{where}:", at_once=False)
        machine, commit = document.machine_info, document.commit_info
        cpu = machine.cpu
        device = {"device": f"{cpu.brand_raw or machine.machine}, {cpu.count} processors"}
        environment = {
            "system": f"{machine.system} {machine.release}",
            "Python": str(machine.python_version),
            "commit": f"{str(commit.id)[:12]}{' with uncommitted changes' if commit.dirty else ''}",
            "pytest-benchmark": str(document.version),
        }
        for benchmark in document.benchmarks:
            key: Key = (benchmark.group or "", "", benchmark.fullname)
            subject = subjects.setdefault(key, Subject(key, device, {}, environment))
            subject.statuses[0] = "ok", None
            subject.values[TIME] += [Value(0, value) for value in benchmark.stats.data or [benchmark.stats.mean]]
    return subjects


class _Part(BaseModel):
    """A part of pytest-benchmark's document; what we do not read may be anything."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Processor(_Part):
    brand_raw: str | None = None
    count: int | None = None


class _Machine(_Part):
    machine: str | None = None
    cpu: _Processor = _Processor()
    system: str | None = None
    release: str | None = None
    python_version: str | None = None


class _Commit(_Part):
    id: str | None = None
    dirty: bool | None = None


class _Stats(_Part):
    data: list[PositiveFloat] = []
    mean: PositiveFloat


class _Benchmark(_Part):
    group: str | None = None
    fullname: str
    stats: _Stats


class _Document(_Part):
    machine_info: _Machine = _Machine()
    commit_info: _Commit = _Commit()
    benchmarks: list[_Benchmark]
    version: str | None = None


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (name, old, new) of what differs; ``none`` stands for what one of them lacks."""
    names = dict.fromkeys((*old, *new))
    return [(n, old.get(n, "none"), new.get(n, "none")) for n in names if old.get(n, "none") != new.get(n, "none")]


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        title = f"{prefix}.{name}"
        if isinstance(value, Mapping):
            found |= _flat(title, value)
        else:
            found[title] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found
