"""What a comparison says: cells with a verdict each, and what changed around them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp
from typing import Literal, get_args

from harness.report.comparing.measures import SCORE
from harness.report.comparing.subjects import Key
from harness.report.comparing.tolerances import Tolerance
from harness.report.statistics.changes import ROUNDING, Change
from harness.report.statistics.family import smallest_difference

Verdict = Literal[
    "failed", "worse", "missing", "not comparable", "not measured again", "fixed", "improved", "new", "same"
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""In the order in which they are told."""
FAILING: frozenset[Verdict] = frozenset({"worse", "failed", "missing"})
"""What the baseline had and the candidate has no more is no pass: nobody knows what it would have shown."""
RUN = "run"
"""Metric of a cell that says whether there is a result at all."""

LARGEST_LOG = 100.0
"""Of a worsening that is told."""


@dataclass(frozen=True)
class Cell:
    """One metric of one subject on both sides."""

    key: Key
    subject: str
    metric: str
    """A measure, ``score``, or ``run`` for whether there is a result at all."""
    title: str
    verdict: Verdict
    baseline: float | None = None
    """Geometric mean of a measure, mean of a score."""
    candidate: float | None = None
    change: float | None = None
    """Of a measure a fraction of the baseline; of a score a difference."""
    scale: float = 1.0
    """Of a score."""
    larger_is_better: bool = False
    """Of a measure; a score is told by its worsening."""
    tolerance: Tolerance | None = None
    basis: str = ""
    """What the verdict rests on."""
    p_value: float | None = None
    """Of being worse beyond the tolerance, corrected over the comparison; None where no test was made."""
    test: Change | None = None
    level: float | None = None
    """The share of the level that is this cell's for certain."""
    fewest_p_value: float = 0.0
    """Below it no change of these items could bring the test."""

    @cached_property
    def smallest(self) -> float | None:
        """Return the smallest true worsening that would have been found in 80% of cases; None where no test was made.

        In the unit of ``change``, always above 0. None too where the values scatter so much, or the items are so few,
        that none is found; of a score none is larger than its scale.
        """
        if self.test is None or self.level is None or self.tolerance is None or self.fewest_p_value > self.level:
            return None
        beyond = smallest_difference(self.test.standard_error, self.test.degrees, self.level, sides=1)
        if self.metric == SCORE:
            found = self._points() + beyond
            return found if found <= self.scale else None
        found = self.tolerance.log_ratio + beyond
        if self.larger_is_better:
            return 1 - exp(-found)
        return exp(found) - 1 if found < LARGEST_LOG else None

    def limit(self) -> float:
        """Return the tolerance in the unit of the tested change."""
        assert self.tolerance is not None
        return self._points() if self.metric == SCORE else self.tolerance.log_ratio

    def decided(self, worsening: float) -> Cell:
        """Return the cell decided by its tolerance alone; ``worsening`` is in the unit of the tested change."""
        limit = self.limit() + ROUNDING
        return replace(self, verdict="worse" if worsening > limit else "improved" if -worsening > limit else "same")

    def _points(self) -> float:
        assert self.tolerance is not None
        return self.tolerance.amount / 100 * self.scale


@dataclass(frozen=True)
class OpenCell:
    """A cell that waits for the correction over all."""

    cell: Cell
    change: Change
    """For the worse where it is above 0."""
    least_p_value: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """The whole comparison."""

    baseline: str
    candidate: str
    level: float
    cells: tuple[Cell, ...]
    environment: tuple[tuple[str, str, str], ...]
    """What changed of where it ran: name, baseline, candidate."""
    settings: tuple[tuple[str, str, str, str], ...]
    """What changed of a subject's settings: subject, name, baseline, candidate."""
    notes: tuple[str, ...]
    damage: tuple[str, ...] = ()
    """Records of either side that could not be read: what they would have shown is not in the cells."""

    @cached_property
    def counts(self) -> Counter[Verdict]:
        """Return how many cells have each verdict."""
        return Counter(cell.verdict for cell in self.cells)

    @property
    def fails(self) -> bool:
        """Return whether anything became worse, failed or vanished."""
        return any(self.counts[verdict] for verdict in FAILING)

    @property
    def is_empty(self) -> bool:
        """Return whether nothing at all could be compared."""
        return not self.fails and not any(
            (cell.verdict in ("same", "improved") and cell.metric != RUN) or cell.verdict == "fixed"
            for cell in self.cells
        )

    @property
    def is_stale(self) -> bool:
        """Return whether the candidate holds the records of the baseline and no others, of all that both have."""
        return self.is_empty and {cell.verdict for cell in self.cells} == {"not measured again"}

    @property
    def unusable(self) -> str | None:
        """Return why this is no answer where nothing fails: what could not be read, or that nothing was compared."""
        if self.damage:
            more = f"; and {len(self.damage) - 1} more" if len(self.damage) > 1 else ""
            return f"records are damaged, and what they held is not compared: {self.damage[0]}{more}"
        if self.is_stale:
            return (
                f"nothing in {self.candidate} was measured again: it holds the records of {self.baseline}; run "
                "the suite with it first"
            )
        if self.is_empty:
            return (
                f"nothing in {self.candidate} can be compared with {self.baseline}: no metric was measured on "
                "both sides alike"
            )
        return None
