"""Laps of an evaluation by several language models: kept over calls, weighted over tasks, laid out as a table."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LAPS = "HARNESS_BENCH_LAPS"


@dataclass(frozen=True)
class Lap:
    seconds: float
    clock_seconds: float
    num_tokens: int


@dataclass
class Comparison:
    """Laps of one task: ours, HFLM's by batch size, and the baseline's."""

    task: str
    num_items: int
    full_size: int
    ours: list[Lap] = field(default_factory=list)
    theirs: dict[int, list[Lap]] = field(default_factory=dict)
    before: list[Lap] = field(default_factory=list)
    largest_difference: float = 0.0

    @property
    def best(self) -> int:
        return min(self.theirs, key=lambda size: self.theirs[size][0].seconds)

    def medians(self, quantity: str) -> tuple[float, float, float]:
        """Return HFLM's, our and the baseline's median, for the whole set; the last is nan where it was not asked."""
        scale = self.full_size / self.num_items
        theirs, ours, before = (
            statistics.median(getattr(lap, quantity) for lap in laps) * scale if laps else math.nan
            for laps in (self.theirs[self.best], self.ours, self.before)
        )
        return theirs, ours, before

    def ratio(self, quantity: str) -> float:
        return weighted([self], quantity)

    @classmethod
    def read(cls, kept: dict[str, Any]) -> Comparison:
        """Return what :func:`dataclasses.asdict` made of one, and JSON of that."""
        laps = {name: [Lap(**lap) for lap in kept[name]] for name in ("ours", "before")}
        theirs = {int(size): [Lap(**lap) for lap in laps] for size, laps in kept["theirs"].items()}
        return cls(**{**kept, **laps, "theirs": theirs})


def weighted(comparisons: Sequence[Comparison], quantity: str, over: int = 1) -> float:
    """Return HFLM's sum over ours (``over`` = 1), or the baseline's (2) over ours."""
    sums = [sum(parts) for parts in zip(*(one.medians(quantity) for one in comparisons), strict=True)]
    return sums[0] / sums[1] if over == 1 else sums[2] / sums[1]


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the comparison as a table of Markdown."""
    sizes = sorted(comparisons[0].theirs)
    lines = [
        "| task | items | stands for | HFLM, s at batch "
        + ", ".join(map(str, sizes))
        + " | HFLM, best | build before | "
        "ours | time ratio | by the clock | token ratio | time / token ratio | "
        "build before / ours | largest difference |",
        "| --- " + "| ---: " * 12 + "|",
    ]
    for one in comparisons:
        scale = one.num_items / one.full_size
        theirs, ours, before = (seconds * scale for seconds in one.medians("seconds"))
        sweep = ", ".join(f"{one.theirs[size][0].seconds:.2f}" for size in sizes)
        lines.append(
            f"| {one.task} | {one.num_items} | {one.full_size} | {sweep} | {theirs:.2f} ({one.best}) | {before:.2f} | "
            f"{ours:.2f} | {ratios([one])} | {one.largest_difference:.0e} |"
        )
    lines.append(f"| **weighted** | | {sum(one.full_size for one in comparisons)} | | | | | {ratios(comparisons)} | |")
    return "\n".join(lines)


def ratios(comparisons: Sequence[Comparison]) -> str:
    """Return the cells of the ratios."""
    time_ratio, clock, tokens = (weighted(comparisons, name) for name in ("seconds", "clock_seconds", "num_tokens"))
    found = (time_ratio, clock, tokens, time_ratio / tokens, weighted(comparisons, "seconds", over=2))
    return " | ".join(f"{ratio:.2f}" for ratio in found)


def kept_with(kind: str, measured: Iterable[Comparison]) -> list[Comparison]:
    """Return what is measured now and, from the file of laps, was before; keep each there as it comes."""
    place = os.environ.get(LAPS)
    if not place:
        return list(measured)
    file = Path(place)
    for one in measured:
        kept = json.loads(file.read_text()) if file.exists() else {}
        kept.setdefault(kind, {})[one.task] = asdict(one)
        file.write_text(json.dumps(kept))
    kept = json.loads(file.read_text()) if file.exists() else {}
    return [Comparison.read(one) for one in kept.get(kind, {}).values()]
