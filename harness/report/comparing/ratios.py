"""The cells of a comparison that are ratios: bytes, times, losses and speeds of one subject on both sides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from statistics import fmean, geometric_mean

from harness.quantities import TRACKED_PEAK
from harness.quantity import Quantity
from harness.report.comparing.cells import Cell, OpenCell, Verdict
from harness.report.comparing.measures import measures
from harness.report.comparing.subjects import Subject, Value
from harness.report.comparing.tolerances import Tolerance
from harness.report.statistics.changes import log_changes

SINGLE = "single value: the tolerance alone decides"
EXACT = "all alike: the tolerance alone decides"
"""All values of a side, or all changes from seed to seed."""
NOT_MEASURED = "not measured"
SMALLEST, LARGEST = 1e-30, 1e30
"""Between these a value is a measurement, of seconds or of bytes, whose ratios and their logarithms are numbers."""


def measured_cells(
    both: Sequence[tuple[Subject, Subject]], tolerances: Mapping[str, Tolerance], *, asked: bool
) -> Iterator[OpenCell | Cell]:
    """Yield a cell a measure and subject that have it.

    Args:
        both: Each subject on both sides.
        tolerances: What is judged.
        asked: Whether someone named it: then a measure that neither side has is told too.
    """
    for name, measure in measures().items():
        if name not in tolerances:
            continue
        waiting: list[_Values] = []
        for old, new in both:
            if tolerances[name].only_on not in (None, new.device_type):
                continue
            before, after = old.values.get(name, []), new.values.get(name, [])
            cell = Cell(
                old.key,
                old.title,
                name,
                measure.title,
                "same",
                tolerance=tolerances[name],
                larger_is_better=measure.judged.better == "larger",
            )
            if before and after:
                waiting.append(_values(cell, before, after, measure.follows_seed))
            elif not (old.has_result and new.has_result):
                continue
            elif before or after:
                yield replace(cell, verdict="missing" if before else "new", basis=NOT_MEASURED)
            elif asked and old.trains:
                yield replace(cell, verdict="not comparable", basis=_on_neither(measure, new))
        yield from _ratios(waiting)


def _on_neither(measure: Quantity, subject: Subject) -> str:
    """Return why neither side has a measure."""
    if not measure.shown.needs_cuda or subject.device_type == "cuda":
        return f"{NOT_MEASURED} on either side"
    return f"measured on CUDA alone, which these runs had not; {TRACKED_PEAK.metric} is known of a CPU too"


@dataclass(frozen=True)
class _Values:
    """The values of one measure and subject on both sides."""

    cell: Cell
    before: list[float]
    after: list[float]
    paired: bool
    """Each place of either side is of one seed."""


def _values(cell: Cell, before: Sequence[Value], after: Sequence[Value], follows_seed: bool) -> _Values:
    """Return the values of a cell: seed by seed where they follow the seed and both sides have the same ones."""
    seeds = dict.fromkeys(seed for seed, _ in before)
    paired = follows_seed and len(seeds) > 1 and seeds.keys() == {seed for seed, _ in after}
    sides = [[value for _, value in side] for side in (before, after)]
    basis = f"{len(before)} against {len(after)} values"
    if paired:
        sides = [_means_by_seed(side, seeds) for side in (before, after)]
        basis = f"paired over {len(seeds)} seeds"
    told = replace(cell, baseline=_mean(sides[0]), candidate=_mean(sides[1]), basis=basis)
    return _Values(told, sides[0], sides[1], paired)


def _means_by_seed(values: Sequence[Value], seeds: Iterable[int]) -> list[float]:
    """Return the mean of the values of each seed."""
    found: dict[int, list[float]] = defaultdict(list)
    for seed, value in values:
        found[seed].append(value)
    return [_mean(found[seed]) for seed in seeds]


def _ratios(cells: Sequence[_Values]) -> Iterator[OpenCell | Cell]:
    """Yield the cells of one measure."""
    tested: list[_Values] = []
    for values in cells:
        if not _has_ratios((*values.before, *values.after)):
            yield _without_ratio(values.cell)
        elif min(len(values.before), len(values.after)) < 2:
            ratio = _mean(values.after) / _mean(values.before)
            told = replace(values.cell, change=ratio - 1, basis=SINGLE)
            yield told.decided(-log(ratio) if told.larger_is_better else log(ratio))
        else:
            tested.append(values)
    changes = log_changes(
        [
            (values.after, values.before) if values.cell.larger_is_better else (values.before, values.after)
            for values in tested
        ],
        paired={i for i, values in enumerate(tested) if values.paired},
    )
    for values, change in zip(tested, changes, strict=True):
        growth = -change.value if values.cell.larger_is_better else change.value
        told = replace(values.cell, change=exp(growth) - 1)
        if change.is_exact:
            yield replace(told, basis=f"{told.basis}; {EXACT}").decided(change.value)
        else:
            yield OpenCell(told, change)


def _without_ratio(cell: Cell) -> Cell:
    """Return a cell with a value of which there is no share, as zero: any growth of the mean is beyond a share."""
    assert cell.baseline is not None and cell.candidate is not None
    change = cell.candidate - cell.baseline if not cell.larger_is_better else cell.baseline - cell.candidate
    verdict: Verdict = "worse" if change > 0 else "improved" if change < 0 else "same"
    return replace(
        cell, verdict=verdict, basis="a value is zero or beyond any measurement, and no share of it can be taken"
    )


def _mean(values: Sequence[float]) -> float:
    """Return the geometric mean, as changes are of logarithms; the arithmetic one where there are no ratios."""
    return geometric_mean(values) if _has_ratios(values) else fmean(values)


def _has_ratios(values: Sequence[float]) -> bool:
    return min(values) >= SMALLEST and max(values) <= LARGEST
