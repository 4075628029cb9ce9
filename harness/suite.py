"""Suites: what is run. A suite file (TOML, strict) becomes RunSpecs in a fixed order, each with an identity of its own.

Precedence of a setting, weakest first: the suite's ``[train]``, the label's entry in methods.toml (or in the suite's
``[methods]``), the suite's ``[settings.LABEL]``, a tuned learning rate, one point of the suite's ``[sweep.LABEL]``,
``--set``. The last two show in the label, as in ``owlore[rank=64]``, so that a plain label never names two
configurations of one suite.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field, JsonValue, PositiveInt, model_validator

from harness.datasets import find_dataset, load_datasets
from harness.errors import HarnessError, near_miss
from harness.labels import LabelEntry, load_labels, with_aliases
from harness.method import METHODS, Method
from harness.models import BaseModelSpec, Weights
from harness.settings import (
    CalibrationSettings,
    EvaluationSettings,
    GeneralTextSettings,
    Name,
    Seed,
    Strict,
    TrainSettings,
    TuneSettings,
)
from harness.toml_files import packaged_toml_names, read_toml, validate
from harness.tuned import ENDING, Tuned, read_tuned, tuned_file

NOT_SUITES = frozenset({"models.toml", "methods.toml", "datasets.toml", "devices.toml"})


MOST_RUNS = 10_000
"""Of one suite: the points of a sweep multiply, and each is checked when the file is read."""


class Rung(Strict):
    """Some of a suite's runs, which come before those of the next rung: every model with every label."""

    models: Annotated[tuple[Name, ...], Field(min_length=1)]
    labels: Annotated[tuple[Name, ...], Field(min_length=1)]


class Suite(Strict):
    """A suite file."""

    name: Name
    version: PositiveInt
    protocol: Name
    """Scores of different protocols never share a table."""
    description: str
    notes: tuple[str, ...] = ()
    """Sentences that the report prints below its table."""
    ranking: bool = True
    """False: the report marks nothing as best."""
    models: tuple[Name, ...]
    weights: Weights = "pretrained"
    """``random``: every model is built from its shape, nothing is downloaded; for memory and speed alone."""
    labels: tuple[Name, ...]
    seeds: tuple[Seed, ...]
    ladder: tuple[Rung, ...] = ()
    """Which model runs which label, in order; empty: every model every label."""
    train: dict[str, Any]
    evaluation: EvaluationSettings
    """``tasks = []``: lm-eval scores nothing."""
    conversation: dict[Name, Name] = Field(default_factory=dict)
    """Conversation template by model: of training prompts where ``prompt = 'conversation'``, and of MT-Bench."""
    calibration: CalibrationSettings | None = None
    general: GeneralTextSettings | None = None
    """Every run that trains takes the loss of this text before and after."""
    tune: TuneSettings | None = None
    tuned: Name | None = None
    """File beside the suite's own with the learning rates that ``harness tune`` chose; its name ends in
    ``.tuned.toml``."""
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    sweep: dict[str, dict[str, list[Any]]] = Field(default_factory=dict)
    methods: dict[str, LabelEntry] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        for what in ("models", "labels", "seeds"):
            values = getattr(self, what)
            if not values:
                raise ValueError(f"{what} is empty")
            if len(set(values)) != len(values):
                raise ValueError(f"{what} names something twice")
        for rung in self.ladder:
            for what in ("models", "labels"):
                if others := set(getattr(rung, what)) - set(getattr(self, what)):
                    raise ValueError(f"[[ladder]] takes {sorted(others)[0]}, which is none of the suite's {what}")
        if self.tuned is not None and not self.tuned.endswith(ENDING):
            raise ValueError(f"tuned = '{self.tuned}' does not end in {ENDING}")
        for table in ("settings", "sweep"):
            for label in getattr(self, table):
                if label not in self.labels:
                    raise ValueError(f"[{table}.{label}] is for a label that the suite does not run")
        points = sum(math.prod(map(len, self.sweep.get(label, {}).values())) for label in self.labels)
        if (runs := points * len(self.models) * len(self.seeds)) > MOST_RUNS:
            raise ValueError(f"it asks for {runs} runs, over {MOST_RUNS}: take a value out of a [sweep]")
        if self.evaluation.mt_bench is not None:
            for model in self.models:
                if model not in self.conversation:
                    raise ValueError(f"[evaluation.mt_bench] needs a template of model '{model}' in [conversation]")
        return self


LATER_SETTINGS: dict[str, JsonValue] = {
    "loss_chunk_columns": None,
    "checkpoint_granularity": "block",
    "offload_checkpoints": False,
    "update_slice_elements": None,
    "two_pass_clipping": False,
    "project_vocabulary": False,
    "validation_every_steps": None,
    "mt_bench": None,
    "subtasks": None,
    "first_period_steps": None,
    "reset_each_period": False,
}
"""Settings that came after the first records, each at the value that leaves a run as it was before there was one."""


class RunSpec(Strict):
    """Everything that was asked of one run. Plain JSON; validates without the method being installed."""

    suite: Name
    suite_version: int
    protocol: Name
    model: dict[str, str | None]
    label: str
    method: Name
    config: dict[str, JsonValue]
    train: TrainSettings | None
    evaluation: EvaluationSettings
    calibration: CalibrationSettings | None
    general: GeneralTextSettings | None = None
    sources: dict[str, str]
    """What identifies the data: ``train``, ``evaluation``, ``calibration``, ``general`` -> name and checksum or
    revision."""
    max_steps: PositiveInt | None
    seed: Seed
    conversation: Name | None = None
    """Template of training prompts and of MT-Bench; None where neither uses one."""

    @model_validator(mode="after")
    def _names_its_model(self) -> RunSpec:
        if not self.model.get("name"):
            raise ValueError("model has no name")
        return self

    @property
    def run_id(self) -> str:
        """Return the first 16 hex digits of the SHA-256 of the canonical JSON of :meth:`asked`."""
        return identity(self.asked())

    def asked(self) -> dict[str, Any]:
        """Return this spec as JSON, without the later settings that say nothing: one question, one spelling."""
        asked = self.model_dump(mode="json")
        if self.conversation is None:
            del asked["conversation"]
        for settings in (asked["config"], asked["train"] or {}, asked["evaluation"]):
            for name, value in LATER_SETTINGS.items():
                if name in settings and settings[name] == value:
                    del settings[name]
        if asked["general"] is None:
            del asked["general"]
        return asked

    @property
    def model_name(self) -> str:
        """Return the base model's name."""
        return str(self.model["name"])


def identity(value: Any) -> str:
    """Return 16 hex digits: the start of the SHA-256 of a value's canonical JSON (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def suite_names() -> list[str]:
    """Return the names of the packaged suites."""
    names = [file for file in packaged_toml_names() if file not in NOT_SUITES and not file.endswith(ENDING)]
    return [file.removesuffix(".toml") for file in names]


def load_suite(name: str) -> Suite:
    """Return a packaged suite by name, or the suite in a file when ``name`` ends in ``.toml``.

    Raises:
        HarnessError: no such suite, or the file is not valid, a label is unknown, or a setting is not the method's.
    """
    if name.endswith(".toml"):
        table, where = read_toml(Path(name))
    else:
        known = suite_names()
        if name not in known:
            raise HarnessError(f"there is no suite '{name}'{near_miss(name, known)}")
        table, where = read_toml(f"{name}.toml")
    suite = validate(Suite, table, f"{where}:")
    labels = labels_for(suite, where)
    for label in suite.labels:
        for settings in sweep_points(suite.sweep.get(label, {})):
            _resolve(suite, label, labels, settings, where)
    return suite


def load_tuned(name: str, suite: Suite) -> Tuned | None:
    """Return the tuned learning rates of a suite, or None when it names no file of them.

    Args:
        name: As given to :func:`load_suite`.
        suite: What that returned.

    Raises:
        HarnessError: the file is missing or not valid, or is another suite's, version's or grid's.
    """
    if suite.tuned is None:
        return None
    file = tuned_file(name, suite.tuned)
    if not file.is_file():
        raise HarnessError(
            f"suite '{suite.name}' takes its learning rates from {file}, which is not there: run harness tune --suite "
            f"{name} first"
        )
    tuned = read_tuned(file)
    tuned.check(suite.name, suite.version, suite.tune, str(file))
    return tuned


def labels_for(suite: Suite, where: str) -> dict[str, LabelEntry]:
    """Return the named configurations that a suite may use: its own before those of methods.toml.

    Raises:
        HarnessError: an alias is of no label.
    """
    known = load_labels()
    return known | with_aliases(suite.methods, known | suite.methods, where)


def parse_assignment(text: str) -> tuple[str, Any]:
    """Return key and value of ``key=value``; the value is read as TOML, and as a plain string where it is none.

    Raises:
        HarnessError: there is no ``=``.
    """
    import tomllib

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise HarnessError(f"--set {text}: expected key=value, such as rank=64")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def expand(
    suite: Suite,
    *,
    models: Mapping[str, BaseModelSpec],
    sources: Mapping[str, str],
    labels: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    limit: int | None = None,
    max_steps: int | None = None,
    tuned: Tuned | None = None,
) -> list[RunSpec]:
    """Return the suite's runs in a fixed order: model, then label, then seed; with a ladder in that of its rungs.

    Args:
        suite: As read by :func:`load_suite`.
        models: The base models to run, in order, identities resolved as far as they are known.
        sources: Identity of each data set by name.
        labels: Labels to run instead of the suite's; any of methods.toml or the suite's own.
        seeds: Seeds instead of the suite's.
        overrides: ``--set`` values, of the method or of training; each must fit every label that is run.
        limit: Items of each task instead of the suite's.
        max_steps: Upper bound of optimizer steps.
        tuned: Learning rates by model and label, from :func:`load_tuned`; None: those of the settings.

    Raises:
        HarnessError: a label is unknown, a setting does not fit, or a learning rate was to be tuned and was not.
    """
    assert all(model.weights == suite.weights for model in models.values())
    entries = labels_for(suite, f"suite '{suite.name}'")
    evaluation = suite.evaluation if limit is None else suite.evaluation.model_copy(update={"limit": limit})
    runs = []
    for name, label in model_labels(suite, models, labels):
        model = models[name]
        for point in sweep_points(suite.sweep.get(label, {})):
            changes = {**point, **(overrides or {})}
            choice = None if tuned is None else tuned.choice(model.name, label_with(label, point))
            rate = {} if choice is None else {"learning_rate": choice.learning_rate}
            method, entry, config, train = _resolve(suite, label, entries, changes, f"suite '{suite.name}'", tuned=rate)
            if tuned is not None and method.trains and not rate and "learning_rate" not in changes:
                raise HarnessError(
                    f"suite '{suite.name}': no learning rate was tuned for label '{label_with(label, point)}' on "
                    f"model '{model.name}': run harness tune, or give one with --set learning_rate=X"
                )
            needs_scores = method(config).block_scores_needed() is not None
            if needs_scores and suite.weights == "random":
                raise HarnessError(
                    f"suite '{suite.name}': label '{label}' draws blocks by scores, and scores of random weights "
                    "mean nothing; set probability = 'uniform'"
                )
            if needs_scores and suite.calibration is None:
                raise HarnessError(
                    f"suite '{suite.name}': label '{label}' needs block scores; name their data in [calibration]"
                )
            calibration = suite.calibration if needs_scores else None
            general = suite.general if method.trains else None
            conversation = _conversation_of(suite, model.name, train)
            for seed in (seeds if seeds is not None else suite.seeds)[: None if method.trains else 1]:
                runs.append(
                    RunSpec(
                        suite=suite.name,
                        suite_version=suite.version,
                        protocol=suite.protocol,
                        model=model.identity(),
                        label=label_with(label, changes),
                        method=entry.method,
                        config=config.model_dump(mode="json"),
                        train=train,
                        evaluation=evaluation,
                        calibration=calibration,
                        general=general,
                        sources=_sources_of(train, evaluation, calibration, general, sources),
                        max_steps=max_steps if method.trains else None,
                        seed=seed,
                        conversation=conversation,
                    )
                )
    return runs


def model_labels(suite: Suite, models: Iterable[str], labels: Sequence[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield which model runs which label, in order.

    Args:
        suite: Its ladder, if it has one, says which.
        models: Those to run. One that is on no rung runs every label.
        labels: Those to run, one that is on no rung by every model; None: those of the rungs.
    """
    asked = [(model, label) for model in models for label in (labels if labels is not None else suite.labels)]
    if not suite.ladder:
        yield from asked
        return
    rungs = dict.fromkeys((model, label) for rung in suite.ladder for model in rung.models for label in rung.labels)
    its_models, its_labels = {model for model, _ in rungs}, {label for _, label in rungs}
    yield from (pair for pair in rungs if pair in set(asked))
    for model, label in asked:
        if model not in its_models or (labels is not None and label not in its_labels):
            yield model, label


def training_labels(suite: Suite, labels: Sequence[str] | None = None) -> list[str]:
    """Return which of some labels, or of the suite's, train.

    Raises:
        HarnessError: a label is unknown.
    """
    entries = labels_for(suite, f"suite '{suite.name}'")
    return [
        label
        for label in labels or suite.labels
        if METHODS.get(entries[label].method if label in entries else label).trains
    ]


def labels_of(suite: Suite, model: str) -> tuple[str, ...]:
    """Return the labels that a suite's runs of a model carry, in order, sweep points in their label's place."""
    labels = [label for _, label in model_labels(suite, [model])]
    return tuple(label_with(label, point) for label in labels for point in sweep_points(suite.sweep.get(label, {})))


def _conversation_of(suite: Suite, model: str, train: TrainSettings | None) -> str | None:
    """Return the conversation template that a run of a model uses, in training and in generation alike."""
    if suite.evaluation.mt_bench is None and (train is None or train.prompt != "conversation"):
        return None
    if model not in suite.conversation:
        raise HarnessError(
            f"suite '{suite.name}': names no conversation template for model '{model}'; give it in [conversation]"
        )
    return suite.conversation[model]


def _sources_of(
    train: TrainSettings | None,
    evaluation: EvaluationSettings,
    calibration: CalibrationSettings | None,
    general: GeneralTextSettings | None,
    sources: Mapping[str, str],
) -> dict[str, str]:
    used: dict[str, str] = {} if evaluation.rows is None else {"evaluation": evaluation.rows}
    if train is not None:
        used["train"] = train.data
    if calibration is not None:
        used["calibration"] = calibration.data
    if general is not None:
        used["general"] = general.data
    if evaluation.mt_bench is not None:
        used["mt_bench"] = evaluation.mt_bench.data
    return {role: sources.get(name, name) for role, name in sorted(used.items())}


def sweep_points(sweep: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Yield each combination of a sweep's values; of none the empty one."""
    keys = list(sweep)
    for values in itertools.product(*(sweep[key] for key in keys)):
        yield dict(zip(keys, values, strict=True))


def label_with(label: str, changes: Mapping[str, Any]) -> str:
    """Return a label with the settings in which it differs from the plain one."""
    if not changes:
        return label
    return f"{label}[{','.join(f'{key}={_shown(changes[key])}' for key in sorted(changes))}]"


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) or value is None else str(value)


def _resolve(
    suite: Suite,
    label: str,
    entries: Mapping[str, LabelEntry],
    changes: Mapping[str, Any],
    where: str,
    *,
    tuned: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[type[Method], LabelEntry, Any, TrainSettings | None]:
    """Return the method, its entry, its checked config and the train settings of one label at one sweep point."""
    entry = entries.get(label)
    if entry is None:
        if label not in METHODS.names():
            raise HarnessError(
                f"{where}: there is no label '{label}'{near_miss(label, list(entries) + METHODS.names())}"
            )
        entry = LabelEntry(method=label)
    try:
        method = METHODS.get(entry.method)
    except HarnessError as error:
        raise HarnessError(f"{where}: label '{label}': {error}") from error
    config: dict[str, Any] = {}
    train: dict[str, Any] = dict(suite.train)
    layers: Iterable[tuple[str, Mapping[str, Any]]] = (
        ("methods.toml" if label not in suite.methods else f"[methods.{label}]", entry.values()),
        (f"[settings.{label}]", suite.settings.get(label, {})),
        (f"tuned = '{suite.tuned}'", tuned),
        ("the sweep or --set", changes),
    )
    method_keys, train_keys = set(method.Config.model_fields), set(TrainSettings.model_fields)
    for origin, values in layers:
        for key, value in values.items():
            if key in method_keys:
                config[key] = value
            elif key in train_keys and method.trains:
                train[key] = value
                _keep_one_length(train, key)
            else:
                known = method_keys | (train_keys if method.trains else set())
                raise HarnessError(
                    f"{where}: {origin}: label '{label}' (method {entry.method}) has no setting '{key}'"
                    f"{near_miss(key, known)}"
                )
    checked = validate(method.Config, config, f"{where}: label '{label}' (method {entry.method}):")
    settings = validate(TrainSettings, train, f"{where}: [train] of label '{label}':") if method.trains else None
    _check_data(suite, settings, f"{where}: label '{label}'")
    method.check(checked, settings)
    return method, entry, checked, settings


def _check_data(suite: Suite, train: TrainSettings | None, where: str) -> None:
    """Refuse what lacks a tokenizer where one is needed, or would score what learnt from noise."""
    datasets = load_datasets()
    dataset = None if train is None else datasets.get(train.data)
    drawn = dataset is not None and dataset.drawn is not None
    texts = {"calibration": suite.calibration, "general": suite.general}
    found = {table: datasets.get(text.data) for table, text in texts.items() if text is not None}
    for used in (dataset, *found.values()):
        if used is not None and used.layout == "mt-bench":
            raise HarnessError(f"{where}: data set '{used.name}' is asked by MT-Bench and never trained on")
    for table, used in found.items():
        if used is not None and used.drawn is not None:
            raise HarnessError(f"{where}: [{table}] needs a data set of text, and '{used.name}' holds none")
    if suite.general is not None and suite.weights == "random":
        raise HarnessError(f"{where}: random weights have no text to forget: leave [general] out")
    bench = suite.evaluation.mt_bench
    if bench is not None and find_dataset(bench.data, datasets).layout != "mt-bench":
        raise HarnessError(f"{where}: [evaluation.mt_bench]: data set '{bench.data}' is not of the layout mt-bench")
    if (suite.evaluation.tasks or bench is not None) and (drawn or suite.weights == "random"):
        what = f"data '{train.data}' are random tokens" if train is not None and drawn else "weights are random"
        rest = "" if bench is None else " and drop [evaluation.mt_bench]"
        raise HarnessError(f"{where}: its {what}, so scores would mean nothing: set tasks = [] in [evaluation]{rest}")
    if suite.weights == "random" and train is not None and not drawn:
        raise HarnessError(
            f"{where}: random weights come without a tokenizer, which data '{train.data}' need: set data = "
            "'random-tokens'"
        )


def _keep_one_length(train: dict[str, Any], key: str) -> None:
    other = {"num_steps": "num_epochs", "num_epochs": "num_steps"}.get(key)
    if other is not None:
        train.pop(other, None)
