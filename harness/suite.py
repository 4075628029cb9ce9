"""Suites: what is run, as a file says it (TOML, strict). ``expansion`` makes runs of one."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from harness.catalogue.models import Weights
from harness.catalogue.resolved import Entries
from harness.catalogue.tuned import ENDING
from harness.settings import (
    CalibrationSettings,
    EvaluationSettings,
    GeneralTextSettings,
    Name,
    Seed,
    Strict,
    TuneSettings,
)
from harness.toml_files import packaged_toml_names

NOT_SUITES = frozenset({"models.toml", "methods.toml", "datasets.toml", "devices.toml"})
MOST_DEVICES = 1024
"""That can share a run."""
MOST_RUNS = 10_000
"""Of one suite: the points of a sweep multiply, and each is checked when the file is read."""


class Rung(Strict):
    """Some of a suite's runs, which come before those of the next rung: every model with every label."""

    models: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Some of the suite's."""
    labels: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Some of the suite's, in order."""


class Suite(Entries):
    """A suite file.

    What it defines for itself: base models, data sets, and labels, which go before those of methods.toml.
    """

    name: Name
    """Records and reports carry it."""
    version: PositiveInt
    """Raised with every change that moves numbers: runs of two versions are never in one table."""
    protocol: Name
    """Scores of different protocols never share a table."""
    description: str
    """What the suite is for, in a sentence."""
    notes: tuple[str, ...] = ()
    """Sentences that the report prints below its table."""
    ranking: bool = True
    """False: the report marks nothing as best."""
    models: tuple[Name, ...]
    """Base models: of models.toml, of ``--catalogue``, or of [base_models]."""
    weights: Weights = "pretrained"
    """``random``: every model is built from its shape, nothing is downloaded; for memory and speed alone."""
    labels: tuple[Name, ...]
    """What is compared: labels of methods.toml, of ``--catalogue`` or of [methods], or methods by name."""
    seeds: tuple[Seed, ...]
    """Every model runs every label with each of them."""
    gpus_per_run: Annotated[PositiveInt, Field(le=MOST_DEVICES)] = 1
    """Devices that share each run, on one machine; on a CPU processes. Where a run is, and no part of what it is."""
    ladder: tuple[Rung, ...] = ()
    """Which model runs which label, in order; empty: every model every label."""
    train: dict[str, Any]
    """How runs train; a label's own settings go before these."""
    evaluation: EvaluationSettings
    """``tasks = []``: lm-eval scores nothing."""
    conversation: dict[Name, Name] = Field(default_factory=dict)
    """Conversation template by model: of training prompts where ``prompt = 'conversation'``, and of MT-Bench."""
    calibration: CalibrationSettings | None = None
    """The text on which block scores are computed, for methods that draw blocks by such scores."""
    general: GeneralTextSettings | None = None
    """Every run that trains takes the loss of this text before and after."""
    tune: TuneSettings | None = None
    """The grid of ``harness tune``; left out: the suite is not tuned."""
    tuned: Name | None = None
    """File beside the suite's own with the learning rates that ``harness tune`` chose; its name ends in
    ``.tuned.toml``."""
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings of a label, by label: of its method, and of training."""
    sweep: dict[str, dict[str, list[Any]]] = Field(default_factory=dict)
    """Lists of values of a label's settings, by label: each combination is a run."""

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


def suite_names() -> list[str]:
    """Return the names of the packaged suites."""
    names = [file for file in packaged_toml_names() if file not in NOT_SUITES and not file.endswith(ENDING)]
    return [file.removesuffix(".toml") for file in names]


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


def labels_of(suite: Suite, model: str) -> tuple[str, ...]:
    """Return the labels that a suite's runs of a model carry, in order, sweep points in their label's place."""
    labels = [label for _, label in model_labels(suite, [model])]
    return tuple(label_with(label, point) for label in labels for point in sweep_points(suite.sweep.get(label, {})))


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
