"""``harness plan --fit``: the largest batch and length of each label on a device, and what makes the others fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.commands._output import Display, note, print_table, say
from harness.planning.largest import Largest
from harness.planning.making_fit import Answers, Way, largest_that_fits, making_fit
from harness.planning.questions import PlanAnswer, PlanTask, Predictor, cores
from harness.planning.savers import as_arguments
from harness.record_training import Prediction
from harness.report.units import NOTHING, gib
from harness.spec import RunSpec

MOST_ROWS = 1024
"""Rows of a micro-batch above which none are asked for."""
MOST_TOKENS = 1 << 15
"""Tokens of a row above which none are asked for, where the model does not say how many positions it has."""

NOTES = (
    "batch: most rows of a micro-batch, at the tokens above the table; tokens: most of a row, at the rows there. One "
    "more is predicted not to fit; +: more were not asked for.",
    "Counted are the peak of a step and the CUDA context; near the limit torch gives back what it keeps cached.",
    "exact: losses and weights stay as they are, but for rounding and the masks of dropout. Tried in the order of the "
    "predicted operations of a step, then of what crosses to the host; times were not measured.",
)


@dataclass(frozen=True)
class Room:
    """What runs are to fit in."""

    title: str
    memory: int
    context_bytes: int
    num_ranks: int = 1
    """Devices that share each run: each is to have room for what the one that holds most needs."""

    def needs(self, prediction: Prediction) -> int:
        """Return what a run takes of the device: its peak and the CUDA context, not what the allocator keeps cached."""
        return max(prediction.peak_bytes, prediction.probe_peak_bytes or 0) + self.context_bytes


@dataclass(frozen=True)
class Fit:
    """What was found of one label of one model."""

    spec: RunSpec
    answer: PlanAnswer
    """As the suite has it."""
    fits: bool
    rows: Largest | None
    """None: there is no prediction."""
    tokens: Largest | None
    way: Way | None
    """What makes it fit; None: it fits as it is, or nothing does."""
    least: Way | None
    """Where it does not fit: what was found to need least."""


def fits_of(
    specs: Sequence[RunSpec], room: Room, task_of: Callable[[RunSpec], PlanTask], source_checksum: str
) -> list[Fit]:
    """Return what fits, for the first seed of each label and model.

    Args:
        specs: Runs that train.
        room: What they are to fit in.
        task_of: The question about a run.
        source_checksum: Of the harness.
    """
    first: dict[tuple[str, str], RunSpec] = {}
    for spec in specs:
        first.setdefault((spec.model_name, spec.label), spec)
    chosen = list(first.values())
    positions = {spec.run_id: _positions(task_of(spec)) for spec in chosen}
    with Display() as display, Predictor(source_checksum, cores()) as predictor:

        def ask(runs: Sequence[RunSpec]) -> Answers:
            return predictor.answers([task_of(run) for run in runs], display.progress)

        answers = dict(zip((spec.run_id for spec in chosen), ask(chosen), strict=True))
        needed = {name: room.needs(one.prediction) for name, one in answers.items() if one.prediction is not None}
        searches: dict[Hashable, Generator[list[RunSpec], Answers, Any]] = {}
        for spec in chosen:
            name, prediction = spec.run_id, answers[spec.run_id].prediction
            if prediction is None:
                continue
            limit = positions[name]
            for what, most in (("batch_size", MOST_ROWS), ("sequence_length", limit)):
                searches[name, what] = largest_that_fits(spec, what, most, room.needs, room.memory)
            if needed[name] > room.memory:
                searches[name, "way"] = making_fit(spec, prediction, limit, room.needs, room.memory)
        found = all_at_once(searches, ask)
    return [
        Fit(
            spec,
            answers[spec.run_id],
            needed.get(spec.run_id, room.memory + 1) <= room.memory,
            found.get((spec.run_id, "batch_size")),
            found.get((spec.run_id, "sequence_length")),
            *found.get((spec.run_id, "way"), (None, None)),
        )
        for spec in chosen
    ]


def all_at_once(
    searches: Mapping[Hashable, Generator[list[RunSpec], Answers, Any]], ask: Callable[[Sequence[RunSpec]], Answers]
) -> dict[Hashable, Any]:
    """Take searches on together, so that what they ask is predicted together; return what each found."""
    found: dict[Hashable, Any] = {}
    waiting: dict[Hashable, list[RunSpec]] = {}

    def go_on(key: Hashable, answers: Answers | None) -> None:
        try:
            waiting[key] = next(searches[key]) if answers is None else searches[key].send(answers)
        except StopIteration as end:
            found[key] = end.value

    for key in searches:
        go_on(key, None)
    while waiting:
        asked = dict(waiting)
        waiting.clear()
        answers = iter(ask([run for runs in asked.values() for run in runs]))
        for key, runs in asked.items():
            go_on(key, [next(answers) for _ in runs])
    return found


def print_fits(fits: Sequence[Fit], room: Room) -> None:
    """Print a table for each model and shape of its batches, and below it what makes labels fit."""
    for model, rows, tokens in dict.fromkeys(_group(one) for one in fits):
        group = [one for one in fits if _group(one) == (model, rows, tokens)]
        where = room.title if room.num_ranks == 1 else f"each of {room.num_ranks} x {room.title}"
        say(
            f"{model} on {where}, {rows} rows of {tokens} tokens: {gib(room.memory)} GiB, "
            f"{gib(room.context_bytes)} GiB of it for the CUDA context"
        )
        print()
        print_table([_row(one) for one in group])
        print()
        for one in group:
            for sentence in _sentences(one, room):
                say(sentence)
        print()
    for sentence in NOTES:
        note(sentence)


def fits_as_json(fits: Sequence[Fit], room: Room) -> str:
    """Return the same as JSON, a list of labels."""
    return json.dumps([_line(one, room) for one in fits], indent=1)


def _positions(task: PlanTask) -> int:
    return MOST_TOKENS if task.model.shape is None else task.model.shape.max_positions


def _group(one: Fit) -> tuple[str, int, int]:
    train = one.spec.train
    assert train is not None
    return one.spec.model_name, train.batch_size, train.sequence_length


def _row(one: Fit) -> dict[str, str]:
    told = one.answer.prediction
    if one.fits:
        how = "yes"
    elif told is None:
        how = "no prediction"
    elif one.way is None:
        how = "nothing does"
    else:
        how = "exact savers" if one.way.exact else "changes results"
    return {
        "label": one.spec.label,
        "peak GiB": NOTHING if told is None else gib(told.peak_bytes),
        "fits": how,
        "batch": _size(one.rows),
        "tokens": _size(one.tokens),
    }


def _size(found: Largest | None) -> str:
    if found is None:
        return NOTHING
    return "none" if found.size == 0 else f"{found.size}{'+' * found.at_limit}"


def _sentences(one: Fit, room: Room) -> list[str]:
    """Return what makes a label fit, its settings in a line of their own, to be copied."""
    label, way = one.spec.label, one.way
    if one.fits:
        return []
    if one.answer.prediction is None:
        return [f"{label}: {'refused' if one.answer.refused else 'no prediction'}: {one.answer.error}"]
    if way is None:
        assert one.least is not None
        arguments = f" {as_arguments(one.least.changes)}" if one.least.changes else " as it is"
        return [
            f"{label}: nothing that was tried makes it fit; the least that it needs is {gib(one.least.needed_bytes)} "
            "GiB, the CUDA context included, with",
            f" {arguments}",
        ]
    kind = "exact" if way.exact else "changes the result"
    return [
        f"{label} ({kind}): {gib(way.needed_bytes - room.context_bytes)} GiB, {_cost(one.spec, way)}, with",
        f"  {as_arguments(way.changes)}",
    ]


def _cost(spec: RunSpec, way: Way) -> str:
    train = spec.train
    assert train is not None
    same = way.changes.get("sequence_length", train.sequence_length) == train.sequence_length
    batch = way.changes.get("batch_size", train.batch_size)
    steps = way.changes.get("gradient_accumulation_steps", train.gradient_accumulation_steps)
    assert isinstance(batch, int) and isinstance(steps, int)
    same = same and batch * steps == train.batch_size * train.gradient_accumulation_steps
    more = 100 * (way.operations - 1.0)
    costs = [("the same operations" if abs(more) < 0.05 else f"{more:+.1f}% operations") + " a step"]
    if not same:
        costs = ["fewer tokens a step"]
    if batch != train.batch_size and same:
        costs.append(f"{steps} micro-batches in place of {train.gradient_accumulation_steps}")
    return ", ".join([*costs, *(f"{what} to the host" for what in way.host)])


def _line(one: Fit, room: Room) -> dict[str, Any]:
    told = one.answer.prediction
    model, batch_size, sequence_length = _group(one)
    return {
        "model": model,
        "label": one.spec.label,
        "error": one.answer.error,
        "device": room.title,
        "num_ranks": room.num_ranks,
        "device_memory_bytes": room.memory,
        "context_bytes": room.context_bytes,
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "peak_bytes": None if told is None else told.peak_bytes,
        "fits": one.fits,
        "largest_batch_size": None if one.rows is None else asdict(one.rows),
        "largest_sequence_length": None if one.tokens is None else asdict(one.tokens),
        "makes_it_fit": None if one.way is None else _way_line(one.way),
        "needs_least": None if one.least is None or one.way is not None else _way_line(one.least),
    }


def _way_line(way: Way) -> dict[str, Any]:
    return {**asdict(way), "changes": dict(way.changes), "arguments": as_arguments(way.changes)}
