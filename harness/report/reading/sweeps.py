"""Which labels of a report are a sweep: the same method on the same model, one numeric setting apart.

Found from what was recorded of each run, not from the suite's file, so that labels written out by hand count too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.report.reading.summary import Row, Summary
from harness.report.table import one_line
from harness.spec import RunSpec
from harness.suite import label_with

LEAST_VALUES = 3
"""Two values are a comparison, which the tables make; any two labels of a method may happen to differ in one number."""


@dataclass(frozen=True)
class Sweep:
    """Labels of one model and method that differ in one numeric setting alone."""

    model: str
    setting: str
    name: str
    """What the labels have in common."""
    values: tuple[float, ...]
    """Rising."""
    rows: tuple[Row, ...]
    """One a value."""


def find_sweeps(summary: Summary) -> list[Sweep]:
    """Return the sweeps of at least three values, by model and then by setting.

    Two labels with the same settings at all count once, the first of them. A label without any record says nothing of
    its settings and is in no sweep; one that failed is.
    """
    found = []
    for model in summary.models:
        stems = dict.fromkeys((*summary.suite.labels, *(row.label for row in summary.rows_of(model))))
        groups: dict[tuple[str, str], dict[float, Row]] = {}
        for row in summary.rows_of(model):
            spec = row.spec
            if spec is None or spec.train is None:
                continue
            settings = _settings(spec)
            for setting, value in settings.items():
                if not isinstance(value, bool) and isinstance(value, int | float):
                    rest = json.dumps({**settings, setting: None}, sort_keys=True)
                    groups.setdefault((setting, f"{spec.method} {rest}"), {}).setdefault(float(value), row)
        for (setting, _), rows in sorted(groups.items(), key=lambda group: group[0][0]):
            if len(rows) >= LEAST_VALUES:
                values = tuple(sorted(rows))
                ordered = tuple(rows[value] for value in values)
                found.append(Sweep(model, setting, _common_name(ordered, setting, stems), values, ordered))
    return found


def _settings(spec: RunSpec) -> dict[str, Any]:
    """Return the resolved settings of method and training under one name each; a setting of both keeps its table."""
    train = {} if spec.train is None else spec.train.model_dump(mode="json")
    both = spec.config.keys() & train.keys()
    return {
        (f"{table}.{key}" if key in both else key): value
        for table, settings in (("config", spec.config), ("train", train))
        for key, value in _flat(settings)
    }


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _common_name(rows: Sequence[Row], setting: str, stems: Iterable[str]) -> str:
    """Return the label without the setting, or the method where the labels then still differ."""
    specs = [spec for row in rows if (spec := row.spec) is not None]
    names = {_without(spec, setting, (*stems, spec.method)) for spec in specs}
    return one_line(names.pop() if len(names) == 1 else specs[0].method)


def _without(spec: RunSpec, setting: str, stems: Iterable[str]) -> str:
    """Return a run's label without one of the settings that it tells.

    A record does not say which of its settings the label tells: that is found by building labels from its settings
    until one is the run's. A label that none of them gives, as one written out by hand, stays as it is.
    """
    settings = {**({} if spec.train is None else spec.train.model_dump(mode="json")), **spec.config}
    told = {key: value for key, value in settings.items() if label_with("", {key: value})[1:-1] in spec.label}
    stem = next((stem for stem in stems if label_with(stem, told) == spec.label), None)
    if stem is None:
        return spec.label
    return label_with(stem, {key: value for key, value in told.items() if key != setting})
