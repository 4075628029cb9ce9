"""What is logged of a run, and under which names: of each step, of the held-out loss, and of the record at the end."""

from __future__ import annotations

from collections.abc import Iterator

from harness import quantities
from harness.progress import Facts
from harness.readings import all_scores, headline_scores
from harness.record import Record
from harness.record_training import NO_NUMBERS, TrainResult

HELD_OUT = "held_out_loss"
STEP_NAMES = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "seconds": "train/step_seconds",
    "tokens": "train/tokens",
    "trainable_params": "train/trainable_params",
    "optimizer_state_bytes": "train/optimizer_state_bytes",
    "allocated_peak_bytes": "train/allocated_peak_bytes",
}
"""Of a step's facts those that are logged, by the names of the record's curve."""
SPEED = "train/tokens_per_second"
HELD_OUT_NAME = "validation/held_out_loss"
FIGURE, SCORE = "figure/", "score/"


def scalars_of(facts: Facts) -> dict[str, float]:
    """Return what is logged of facts, by name; what is None is left out.

    The tokens of a step a second are those without padding over its own synchronised seconds.
    """
    if (loss := facts.get(HELD_OUT)) is not None:
        return {HELD_OUT_NAME: loss}
    found = {name: value for fact, name in STEP_NAMES.items() if (value := facts.get(fact)) is not None}
    tokens, seconds = facts.get("tokens"), facts.get("seconds")
    if tokens is not None and seconds:
        found[SPEED] = tokens / seconds
    return found


def recorded_facts(train: TrainResult) -> Iterator[Facts]:
    """Yield all facts of a training in their order, as its process has told them, from its record."""
    num_steps = len(train.curve.loss)
    columns = {name: own for name, own in train.curve if name not in NO_NUMBERS and len(own) == num_steps}
    losses = dict(zip(train.validation_steps, train.validation_losses, strict=True))
    for step in range(num_steps + 1):
        if step:
            yield {"step": step, **{name: values[step - 1] for name, values in columns.items()}}
        if step in losses:
            yield {"step": step, HELD_OUT: losses[step]}


def figures_of(record: Record) -> dict[str, float]:
    """Return what a record holds in single numbers: every quantity by its name, every score by task and metric."""
    read = {f"{FIGURE}{one.name}": one.read(record) for one in quantities.ALL}
    found = {name: value for name, value in read.items() if value is not None}
    found |= {f"{SCORE}{score.task}/{score.metric}": score.value for score in all_scores(record)}
    headline = headline_scores(record)
    if headline and len({score.unit for score in headline}) == 1:
        found[f"{SCORE}average"] = sum(score.value for score in headline) / len(headline)
    return found
