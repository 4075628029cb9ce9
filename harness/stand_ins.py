"""What stood in for what in a run: a folder in the place of a named model, a file in the place of a named data set.

A name of the packaged catalogue means one thing to everybody who reads it. Where a run had something else under it,
that is said wherever the name is. A name of the user's own stands for what the user says, and nothing stands in for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_

from harness.catalogue.models import HUB
from harness.catalogue.resolved import packaged_catalogue
from harness.spec import RunSpec

FILE = "file:"
"""How the identity of a data set that is a file begins."""


def model_stand_in(spec: RunSpec) -> str | None:
    """Return in words what stood in the place of a run's base model; None where it was the named one itself."""
    named = packaged_catalogue().models.get(spec.model_name)
    source = spec.model.get("source") or ""
    if named is None:
        return None
    if source == "folder":
        return "a folder in its place"
    if source.startswith(HUB) and source != f"{HUB}{named.hub_id}":
        return f"{source} in its place"
    return None


def data_stand_ins(spec: RunSpec) -> dict[str, str]:
    """Return in words what stood in the place of each data set of a run that a file stood in for, by its name."""
    bench = spec.evaluation.mt_bench
    parts = {"train": spec.train, "calibration": spec.calibration, "general": spec.general, "mt_bench": bench}
    named = packaged_catalogue().datasets
    return {
        part.data: "a file in its place"
        for role, part in parts.items()
        if part is not None and part.data in named and spec.sources.get(role, "").startswith(FILE)
    }


def mark_of(specs: Iterable[RunSpec]) -> str:
    """Return what is to be read behind the name of some runs' model, as in ``llama2-7b (a folder in its place)``."""
    said: dict[str, None] = {}
    last: tuple[object, ...] = ()
    for spec in specs:
        told = told_by(spec)
        if len(last) == len(told) and all(map(is_, told, last)):  # as with records that were read together
            continue
        last = told
        if (words := model_stand_in(spec)) is not None:
            said[words] = None
        said |= {f"{name}: {words}": None for name, words in data_stand_ins(spec).items()}
    return f" ({'; '.join(said)})" if said else ""


def told_by(spec: RunSpec) -> tuple[object, ...]:
    """Return the parts of a spec that say what stood in for what: where two share them, the same did."""
    return spec.model, spec.sources, spec.train, spec.calibration, spec.general, spec.evaluation


def called(spec: RunSpec) -> str:
    """Return the name of a run's base model, with what stood in its place and in that of its data sets."""
    return spec.model_name + mark_of((spec,))
