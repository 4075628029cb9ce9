"""What is checked: a label or a method by name, and runs of it on a tiny model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from harness.calibration.tiny import COMPARABLE, FITTING, STEPS, TinyRun, fitting_weights, tiny_run, tiny_spec
from harness.catalogue.labels import LabelEntry
from harness.catalogue.resolved import Catalogue, packaged_catalogue
from harness.errors import HarnessError, near_miss
from harness.method import METHODS, Method
from harness.spec import RunSpec

TAKEN = 2 * STEPS
"""Optimizer steps of a whole run."""


@dataclass(frozen=True)
class Subject:
    """A label, or a method by its name with the defaults of its settings."""

    name: str
    method: type[Method]
    method_name: str
    settings: dict[str, Any]
    """Made to fit the tiny model."""

    def run(self, settings: dict[str, Any] | None = None, **train: Any) -> TinyRun:
        """Return a run before its first step, equal from one call to the next.

        Args:
            settings: Of the method, over its own.
            train: Of training.
        """
        given = {**fitting_weights(self.settings, train.get("dtype", "fp32")), **(settings or {})}
        return tiny_run(self.method_name, torch.device("cpu"), given, train, published=False)

    def spec(self, run: TinyRun) -> RunSpec:
        """Return the spec of a run, for planning."""
        return tiny_spec(run, self.name, self.method_name)


def subject_of(name: str, catalogue: Catalogue | None = None) -> Subject:
    """Return what a label or a method's name stands for.

    Raises:
        HarnessError: there is none of that name, or it is a plug-in that cannot be had.
    """
    labels = (catalogue or packaged_catalogue()).labels
    if name not in labels and name not in (*METHODS.names(), *METHODS.broken()):
        raise HarnessError(f"there is no label or method '{name}'{near_miss(name, [*labels, *METHODS.names()])}")
    entry = labels.get(name) or LabelEntry(method=name)
    method = METHODS.get(entry.method)
    fields = method.Config.model_fields
    values = {key: value for key, value in entry.values().items() if key in fields}
    plain = {key: field.get_default() for key, field in fields.items() if not field.is_required()} | values
    settings = {key: plain[key] for key in (*FITTING, *COMPARABLE) if key in plain} | values
    return Subject(
        name, method, entry.method, settings | {k: v for k, v in FITTING.items() if plain.get(k) is not None}
    )
