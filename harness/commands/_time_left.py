"""How long the rest of some runs may take, from what those that ended took: a span, or nothing where nothing is known.

Runs of one suite differ: a base that is only scored ends in a tenth of the time of a method that trains. So a run that
is left is held to take as long as one of the same model and label did, else between the shortest and the longest of its
model; of a model without two ended runs nothing is known, and nothing is said.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

from harness.commands._result_line import duration
from harness.readings import seconds_taken
from harness.record import Record
from harness.spec import RunSpec

NARROW = 1.25
"""Ends of a span that lie closer than this are one number."""
WIDE = 6.0
"""Ends that lie farther apart than this tell nobody anything."""
Kind = tuple[str, str]


class TimeLeft:
    """What is known of the time that is left."""

    def __init__(self, specs: Iterable[RunSpec], clock: Callable[[], float] = time.monotonic) -> None:
        """Take the runs that are to be done, in any order, and monotonic seconds."""
        self._left = Counter(_kind(spec) for spec in specs)
        self._under_way: dict[str, tuple[Kind, float]] = {}
        self._took: dict[Kind, list[float]] = {}
        self._at_once = 1
        self._clock = clock

    def begins(self, uuid: str, spec: RunSpec) -> None:
        """Take in that a run starts."""
        self._under_way[uuid] = _kind(spec), self._clock()
        self._at_once = max(self._at_once, len(self._under_way))

    def ended(self, record: Record) -> None:
        """Take in that a run ended; what it took counts where it came to its end."""
        kind = _kind(record)
        self._under_way.pop(record.uuid, None)
        self._left[kind] -= self._left[kind] > 0
        if record.is_ok or record.is_unproven:
            self._took.setdefault(kind, []).append(seconds_taken(record))

    def text(self) -> str | None:
        """Return the time that is left as a person reads it; None where it is hardly known, or none is left."""
        found = self.seconds()
        if found is None or found[1] <= 0:
            return None
        low, high = found
        if high > WIDE * max(low, 1.0):
            return None
        if high <= NARROW * low:
            return f"about {duration((low + high) / 2)} left"
        return f"{duration(low)} to {duration(high)} left"

    def seconds(self) -> tuple[float, float] | None:
        """Return the least and the most that is left; None: not known."""
        low = high = 0.0
        now = self._clock()
        begun = Counter(kind for kind, _ in self._under_way.values())
        for kind, number in self._left.items():
            if number <= 0:
                continue
            span = self._span(kind)
            if span is None:
                return None
            waiting = max(0, number - begun[kind])
            low, high = low + waiting * span[0], high + waiting * span[1]
        for kind, since in self._under_way.values():
            span = self._span(kind)
            if span is not None:
                done = now - since
                low, high = low + max(0.0, span[0] - done), high + max(0.0, span[1] - done)
        return low / self._at_once, high / self._at_once

    def _span(self, kind: Kind) -> tuple[float, float] | None:
        """Return how long a run may take, at least and at most."""
        own = self._took.get(kind)
        if own:
            return min(own), max(own)
        of_model = [took for (model, _), some in self._took.items() if model == kind[0] for took in some]
        return (min(of_model), max(of_model)) if len(of_model) > 1 else None


def _kind(run: RunSpec | Record) -> Kind:
    return run.model_name, run.label
