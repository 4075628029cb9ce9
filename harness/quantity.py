"""The type of a quantity: one thing that is measured of a run, and all that readers of records need to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from harness.record import Record

Unit = Literal["bytes", "seconds", "nats", "tokens/s", "parameters", "FLOP", "fraction", "difference"]
"""``difference``: a fraction with a sign, of what was measured."""
OverSeeds = Literal["largest", "mean", "farthest"]
"""How several runs become one value: ``farthest`` from zero; a mean is only of what every finished run has."""
Place = Literal["table", "terminal", "json", "csv", "show"]
"""``table``: the table of cost in Markdown, LaTeX and HTML."""
EVERYWHERE: frozenset[Place] = frozenset(get_args(Place))
AS_NUMBERS: frozenset[Place] = frozenset({"json", "csv"})
Read = Callable[[Record], float | None]


@dataclass(frozen=True)
class Shown:
    """Where and how a quantity is shown."""

    column: str | None = None
    """Heading in a table; None: the title and the unit."""
    short: str | None = None
    """Heading on a terminal, in its lines; None: the title and the unit, broken between words."""
    places: frozenset[Place] = EVERYWHERE
    brief: str | None = None
    """What it may be called too where columns of a table are chosen; None: nothing else."""
    printed: str | None = None
    """Heading in the column of a paper, in its lines; None: the title and the unit, broken between words."""
    csv: str | None = None
    """Column of runs.csv; None: the quantity's name."""
    optional: bool = False
    """Its column is there only where some run has a value that is not zero."""
    absent: str | None = None
    """What a table says where training has no value; None: a sign alone."""
    needs_cuda: bool = False
    """On another device a table says so, and no value is missed."""
    of_cycle: bool = False
    """Marked where a run was shorter than one refresh cycle, on which the value depends."""
    whole: Read | None = None
    """What a table gives its share of."""


@dataclass(frozen=True)
class Judged:
    """How ``compare``, ``history`` and tables of papers take a quantity."""

    metric: str | None = None
    """What they call it; None: its name."""
    tolerance: str | None = None
    """With which ``compare`` judges it when nobody names one; None: it does so only when asked."""
    only_on: Literal["cpu", "cuda"] | None = None
    """The kind of device on which that is so; None: any."""
    better: Literal["smaller", "larger"] | None = "smaller"
    """None: neither, and ``compare`` does not judge it."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One thing that is measured of a run."""

    name: str
    """In report.json and runs.csv."""
    title: str
    """What it is called in words, everywhere."""
    unit: Unit
    read: Read
    over_seeds: OverSeeds = "mean"
    of_any_run: bool = False
    """Known of runs without a result too."""
    before: Quantity | None = None
    """What it was before training; the two are shown as ``before -> after``."""
    shown: Shown = field(default_factory=Shown)
    judged: Judged = field(default_factory=Judged)
    definition: str
    """What it is, to stand behind the title below a report."""

    @property
    def column_of_runs(self) -> str:
        """Return the name of its column in runs.csv."""
        return self.shown.csv or self.name

    @property
    def metric(self) -> str:
        """Return what ``--fail-on``, ``history`` and tables of papers call it."""
        return self.judged.metric or self.name

    @property
    def follows_seed(self) -> bool:
        """Return whether a seed alone says most of a value: bytes and losses repeat with it, what is timed does not."""
        return self.unit in ("bytes", "nats", "parameters")
