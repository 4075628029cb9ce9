"""Equal tuning: the same learning rates and as many trials for every label, chosen by the held-out loss alone.

A suite's ``[tune]`` makes a suite of trials, named and recorded apart: ``<suite>-tune`` under a protocol of its own,
which scores nothing, so that no trial ever stands in a table of results and no scored item has a say in a choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.catalogue.resolved import Catalogue
from harness.catalogue.tuned import Choice, Trial, Tuned, best_rate, tuned_on
from harness.errors import HarnessError
from harness.expansion import training_labels
from harness.label_text import read_label
from harness.quantities import HELD_OUT_LOSS
from harness.record import Record
from harness.settings import EvaluationSettings, TuneSettings
from harness.spec import RunSpec
from harness.store import newest_outcomes
from harness.suite import Suite, label_with, sweep_points

RATE = "learning_rate"


def trial_suite(suite: Suite, labels: Sequence[str] | None = None, catalogue: Catalogue | None = None) -> Suite:
    """Return the suite of trials of a suite.

    Args:
        suite: With a ``[tune]`` table.
        labels: To tune, instead of the suite's; those that do not train are left out.
        catalogue: What names stand for beside the suite's own; None: the packaged one.

    Raises:
        HarnessError: there is no ``[tune]``, a label is unknown or sweeps over learning rates itself, or none trains.
    """
    grid = grid_of(suite)
    for label in labels or ():
        if (plain := read_label(label).label) != label:
            raise HarnessError(f"label '{label}': every point of a label's sweep is tuned alike: give --label {plain}")
    trained = training_labels(suite, labels, catalogue)
    if not trained:
        raise HarnessError(f"suite '{suite.name}': nothing of what is chosen trains, so there is nothing to tune")
    for label in trained:
        if RATE in suite.sweep.get(label, {}):
            raise HarnessError(f"suite '{suite.name}': [sweep.{label}] sets learning_rate, which [tune] is to choose")
    changes = {
        "name": f"{suite.name}-tune",
        "protocol": f"{suite.protocol}-tune",
        "labels": tuple(trained),
        "seeds": grid.seeds,
        "sweep": {label: {**suite.sweep.get(label, {}), RATE: list(grid.learning_rates)} for label in trained},
        "evaluation": EvaluationSettings(tasks=()),
        "general": None,
        "tuned": None,
    }
    return suite.model_copy(update=changes)


def grid_of(suite: Suite) -> TuneSettings:
    """Return the suite's grid.

    Raises:
        HarnessError: it has none.
    """
    if suite.tune is None:
        raise HarnessError(f"suite '{suite.name}' has no [tune] table: give it learning_rates and seeds to try")
    return suite.tune


def choices(
    suite: Suite, trials: Suite, specs: Sequence[RunSpec], records: Sequence[Record], environment_id: str | None
) -> tuple[list[Choice], list[str]]:
    """Return the choice for each label on each model, and a sentence for each that has none.

    Args:
        suite: The suite that is tuned.
        trials: Its :func:`trial_suite`.
        specs: The trials' runs; all have an outcome.
        records: Of the trials.
        environment_id: Whose records count; None: those of any.
    """
    labels = _tuned_labels(suite, trials)
    newest = newest_outcomes(records, environment_id)
    groups: dict[tuple[str, str], list[RunSpec]] = {}
    for spec in specs:
        groups.setdefault((spec.model_name, labels[spec.label]), []).append(spec)
    found, missing = [], []
    for (model, label), group in groups.items():
        made = tuple(_trial(spec, newest[spec.run_id]) for spec in group)
        rate = best_rate(made)
        if rate is None:
            statuses = ", ".join(dict.fromkeys(trial.status for trial in made))
            missing.append(f"{label} on {model}: no learning rate has a result in all its trials ({statuses})")
            continue
        where = newest[group[0].run_id].environment_id
        on = tuned_on(group[0], group[0].max_steps)
        found.append(Choice(model=model, label=label, learning_rate=rate, environment_id=where, on=on, trials=made))
    return found, missing


def merged(before: Tuned | None, suite: Suite, made: Sequence[Choice]) -> Tuned:
    """Return a file's choices with new ones in the place of those for the same label and model."""
    new = {(choice.model, choice.label): choice for choice in made}
    old = {(choice.model, choice.label): choice for choice in before.choices} if before is not None else {}
    return Tuned(suite=suite.name, suite_version=suite.version, choices=tuple({**old, **new}.values()))


def _tuned_labels(suite: Suite, trials: Suite) -> Mapping[str, str]:
    """Return the label that a trial's label tries a learning rate for: without that rate."""
    return {
        label_with(label, point): label_with(label, {key: value for key, value in point.items() if key != RATE})
        for label in trials.labels
        for point in sweep_points(trials.sweep[label])
    }


def _trial(spec: RunSpec, record: Record) -> Trial:
    assert spec.train is not None
    loss = HELD_OUT_LOSS.read(record) if record.is_ok else None
    return Trial(
        learning_rate=spec.train.learning_rate,
        seed=spec.seed,
        run_id=spec.run_id,
        status=record.status,
        validation_loss=loss,
    )
