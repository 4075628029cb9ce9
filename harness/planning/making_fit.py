"""What makes a run fit a memory: fewer rows at once, then exact savers, then what changes the result. Imports no torch.

Every answer is a prediction of the run as it would be. Exact savers are tried in the order of their cost: operations
of a step, predicted with each alone, then whether anything crosses to the host; times are not known. First each
alone, then all up to each; last, those without which it fits all the same are left out, the dearest first.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from harness.planning.largest import Largest, largest
from harness.planning.questions import PlanAnswer
from harness.planning.savers import Changes, Saver, changed, savers
from harness.record_training import Prediction
from harness.spec import RunSpec

Asked = list[RunSpec]
Answers = list[PlanAnswer]
Needs = Callable[[Prediction], int]
"""Bytes of the device that a run takes."""


@dataclass(frozen=True)
class Way:
    """Settings of a run, and what is predicted with them."""

    changes: Changes
    needed_bytes: int
    operations: float
    """Of a step, over those of the run as it is, recomputation in both."""
    exact: bool
    """Whether losses and weights are those of the run as it is."""
    host: tuple[str, ...]
    """What crosses to the host's memory."""


def largest_that_fits(
    spec: RunSpec, setting: str, limit: int, needs: Needs, memory: int
) -> Generator[Asked, Answers, Largest]:
    """Search for the largest value of a setting of training with which a run fits.

    Args:
        spec: Trains.
        setting: ``batch_size`` or ``sequence_length``.
        limit: Larger values are not asked, unless the run has one.
        needs: Of a prediction.
        memory: Bytes that there are.
    """
    assert spec.train is not None
    start = int(getattr(spec.train, setting))
    search = largest(start, max(start, limit), memory)
    size = next(search)
    while True:
        run = changed(spec, {setting: size})
        (answer,) = (yield [run]) if run is not None else (PlanAnswer(),)
        try:
            size = search.send(None if answer.prediction is None else needs(answer.prediction))
        except StopIteration as end:
            found: Largest = end.value
            return found


def making_fit(
    spec: RunSpec, as_it_is: Prediction, limit: int, needs: Needs, memory: int
) -> Generator[Asked, Answers, tuple[Way | None, Way]]:
    """Search for what makes a run fit; return it, or None where nothing does, and what needed least.

    Args:
        spec: Trains, and does not fit.
        as_it_is: Predicted of it.
        limit: Tokens of a row above which none are asked for.
        needs: Of a prediction.
        memory: Bytes that there are.
    """
    train = spec.train
    assert train is not None
    trials = _Trials(spec, as_it_is, needs, memory)
    rows = train.batch_size * train.gradient_accumulation_steps
    fewer: list[Changes] = [
        {"batch_size": size, "gradient_accumulation_steps": rows // size}
        for size in range(train.batch_size - 1, 0, -1)
        if rows % size == 0
    ]
    ways = yield from trials.ask(fewer, exact=True)
    if (way := trials.first(ways)) is not None:
        return way, trials.least
    base = fewer[-1] if fewer else {}
    for exact in (True, False):
        way, gathered = yield from _gathering(trials, base, exact)
        if way is not None:
            return way, trials.least
        base = gathered if exact else base
    way = yield from _shortening(trials, base, limit)
    return way, trials.least


class _Trials:
    """Asks for a run with changes, and remembers what needed least."""

    def __init__(self, spec: RunSpec, as_it_is: Prediction, needs: Needs, memory: int) -> None:
        self.spec, self.needs, self.memory = spec, needs, memory
        self._operations = _operations(as_it_is)
        self.least = Way({}, needs(as_it_is), 1.0, exact=True, host=())

    def ask(self, tries: Sequence[Changes], *, exact: bool) -> Generator[Asked, Answers, list[Way | None]]:
        """Return what is predicted with each of some changes; None where a run cannot be had with them."""
        runs = [changed(self.spec, changes) for changes in tries]
        had = [run for run in runs if run is not None]
        answers = iter((yield had) if had else [])
        ways = [
            None if run is None else self._way(changes, next(answers), exact)
            for run, changes in zip(runs, tries, strict=True)
        ]
        self.least = min((self.least, *(way for way in ways if way is not None)), key=lambda way: way.needed_bytes)
        return ways

    def first(self, ways: Sequence[Way | None]) -> Way | None:
        """Return the first that fits."""
        return next((way for way in ways if way is not None and way.needed_bytes <= self.memory), None)

    def _way(self, changes: Changes, answer: PlanAnswer, exact: bool) -> Way | None:
        told = answer.prediction
        if told is None:
            return None
        operations = _operations(told) / self._operations if self._operations else 1.0
        return Way(changes, self.needs(told), operations, exact, _host(changes))


def _gathering(trials: _Trials, base: Changes, exact: bool) -> Generator[Asked, Answers, tuple[Way | None, Changes]]:
    """Try savers on top of ``base``: each alone, then all up to each; return what fits, and all of them."""
    on_base = changed(trials.spec, base)
    offered = [one for one in savers(trials.spec if on_base is None else on_base) if one.exact is exact]
    alone = yield from trials.ask([_with(base, [one]) for one in offered], exact=exact)
    had = [(one, way) for one, way in zip(offered, alone, strict=True) if way is not None]
    if exact:
        had.sort(key=lambda one: (one[1].operations, bool(one[1].host)))  # what costs the same keeps its order
    if (way := trials.first([way for _, way in had])) is not None:
        return way, base
    up_to = [[one for one, _ in had[:count]] for count in range(2, len(had) + 1)]
    ways = yield from trials.ask([_with(base, used) for used in up_to], exact=exact)
    way = trials.first(ways)
    if way is None:
        possible = [used for used, found in zip(up_to, ways, strict=True) if found is not None]
        return None, _with(base, possible[-1]) if possible else base
    used = up_to[ways.index(way)]
    for one in reversed(used[:-1]):
        rest = [other for other in used if other is not one]
        found = trials.first((yield from trials.ask([_with(base, rest)], exact=exact)))
        if found is not None:
            way, used = found, rest
    return way, base


def _shortening(trials: _Trials, base: Changes, limit: int) -> Generator[Asked, Answers, Way | None]:
    """Search for the longest row with which a run fits."""
    run = changed(trials.spec, base)
    assert run is not None and run.train is not None
    shortest = changed(run, {"sequence_length": 1})
    if shortest is None:
        return None
    found = yield from largest_that_fits(run, "sequence_length", limit, trials.needs, trials.memory)
    sizes = {"sequence_length": max(1, found.size)}
    return trials.first((yield from trials.ask([{**base, **sizes}], exact=False)))


def _with(base: Changes, used: Sequence[Saver]) -> Changes:
    changes = dict(base)
    for one in used:
        changes |= one.changes
    return changes


def _host(changes: Changes) -> tuple[str, ...]:
    found = ["inputs of blocks at each micro-batch"] if changes.get("offload_checkpoints") else []
    return (*found, *(["states of blocks at each draw"] if changes.get("state_policy") == "offload" else []))


def _operations(prediction: Prediction) -> int:
    return prediction.flops_per_step + prediction.recomputed_flops_per_step
