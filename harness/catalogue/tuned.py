"""Learning rates chosen by ``harness tune``, in a TOML file that the suite names, with the trials they rest on.

Only the learning rate enters a run, so a run's identity holds what was chosen and not how. What a choice rests on is
read strictly all the same: it must be the best of its trials, and these the whole grid of the suite. It belongs to what
was tuned, weights by checksum, data, settings: on anything else it is refused.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean

from pydantic import PositiveFloat, PositiveInt, model_validator

from harness.errors import HarnessError
from harness.settings import Name, Seed, Strict, TuneSettings
from harness.spec import RunSpec, identity
from harness.toml_files import read_toml, validate

ENDING = ".tuned.toml"


class Trial(Strict):
    """One recorded run at one learning rate."""

    learning_rate: PositiveFloat
    seed: Seed
    run_id: str
    status: str
    validation_loss: float | None = None
    """Held-out loss after training, nats; None unless the status is ok."""


class TunedOn(Strict):
    """What a learning rate was chosen on, each an identity: on anything else it says nothing."""

    weights: str
    data: str
    settings: str
    """Of the label, of training but for the learning rate, of the trials' steps."""

    def differences(self, other: TunedOn) -> list[str]:
        """Return in what another differs, in words."""
        told = {
            "weights": "other weights",
            "data": "other data",
            "settings": "other settings of the label or of training",
        }
        return [words for name, words in told.items() if getattr(self, name) != getattr(other, name)]


def tuned_on(spec: RunSpec, max_steps: int | None) -> TunedOn:
    """Return what a run would be tuned on.

    Args:
        spec: Of the run, or of a trial for it.
        max_steps: Upper bound of the trials' optimizer steps.
    """
    asked = spec.asked()
    sources = {role: source for role, source in asked["sources"].items() if role in ("train", "calibration")}
    train = {name: value for name, value in (asked["train"] or {}).items() if name != "learning_rate"}
    others = {name: asked.get(name) for name in ("method", "config", "calibration", "code")}
    if spec.train is not None and spec.train.prompt == "conversation":
        others["conversation"] = spec.conversation
    else:
        others["code"] = {what: code for what, code in (spec.code or {}).items() if not what.startswith("template ")}
    return TunedOn(
        weights=identity(asked["model"]),
        data=identity(sources),
        settings=identity(others | {"train": train, "max_steps": max_steps}),
    )


class Choice(Strict):
    """What was chosen for one label on one model."""

    model: Name
    label: str
    learning_rate: PositiveFloat
    environment_id: str
    """Where the trials ran."""
    on: TunedOn | None = None
    """What was tuned; None in files older than the field."""
    trials: tuple[Trial, ...]

    @model_validator(mode="after")
    def _rests_on_its_trials(self) -> Choice:
        if self.learning_rate != best_rate(self.trials):
            raise ValueError(
                f"learning_rate {self.learning_rate:g} of label '{self.label}' on model '{self.model}' is not the best "
                "of its trials"
            )
        return self

    def refusal(self, spec: RunSpec, max_steps: int | None) -> str | None:
        """Return in what a run differs from what was tuned, in words; None where it does not, as far as is known.

        Args:
            spec: Of the run.
            max_steps: As the suite's ``[tune]`` has it now.
        """
        if self.on is None:
            return None
        here = tuned_on(spec, max_steps)
        if "revision" in spec.model and spec.model["revision"] is None:  # known once it is prepared
            here = here.model_copy(update={"weights": self.on.weights})
        if any("@None:" in source for source in spec.sources.values()):
            here = here.model_copy(update={"data": self.on.data})
        return " and ".join(self.on.differences(here)) or None

    def remarks(self) -> list[str]:
        """Return what a reader must know of the choice: an edge of the grid, a tie, trials without a result."""
        means = mean_losses(self.trials)
        found = []
        rates = sorted(rate for rate in means)
        if self.learning_rate in (rates[0], rates[-1]):
            edge = "lowest" if self.learning_rate == rates[0] else "highest"
            found.append(f"the {edge} rate of the grid: a better one may lie outside")
        ties = [rate for rate, loss in means.items() if loss == means[self.learning_rate]]
        if len(ties) > 1:
            found.append(f"a tie of {', '.join(f'{rate:g}' for rate in ties)}: the lowest was taken")
        without = sum(trial.validation_loss is None for trial in self.trials)
        if without:
            found.append(f"{without} of {len(self.trials)} trials without a result")
        if self.on is None:
            found.append("on which weights, data and settings is not known: an older file of choices does not say it")
        return found


class Tuned(Strict):
    """A file of choices."""

    suite: Name
    suite_version: PositiveInt
    choices: tuple[Choice, ...]

    @model_validator(mode="after")
    def _once_each(self) -> Tuned:
        if len({(choice.model, choice.label) for choice in self.choices}) < len(self.choices):
            raise ValueError("a label of one model is chosen for twice")
        return self

    @cached_property
    def _by_label(self) -> dict[tuple[str, str], Choice]:
        return {(choice.model, choice.label): choice for choice in self.choices}

    def choice(self, model: str, label: str) -> Choice | None:
        """Return what was chosen for a label on a model, or None."""
        return self._by_label.get((model, label))

    def check(self, suite: str, version: int, grid: TuneSettings | None, where: str) -> None:
        """Refuse choices that were made for something else.

        Raises:
            HarnessError: the suite, its version or its grid is another.
        """
        again = f"run harness tune --suite {suite}"
        if (self.suite, self.suite_version) != (suite, version):
            raise HarnessError(
                f"{where}: was tuned for version {self.suite_version} of suite '{self.suite}', and this is version "
                f"{version} of '{suite}': {again}"
            )
        if grid is None:
            raise HarnessError(f"{where}: suite '{suite}' has no [tune] table whose grid its choices could rest on")
        asked = sorted((rate, seed) for rate in grid.learning_rates for seed in grid.seeds)
        for choice in self.choices:
            if sorted((trial.learning_rate, trial.seed) for trial in choice.trials) != asked:
                raise HarnessError(
                    f"{where}: the trials of label '{choice.label}' on model '{choice.model}' are not those of the "
                    f"suite's [tune]: {again}"
                )


def mean_losses(trials: Sequence[Trial]) -> dict[float, float | None]:
    """Return the mean held-out loss by learning rate, in ascending order; None where a trial has none."""
    means: dict[float, float | None] = {}
    for rate in sorted({trial.learning_rate for trial in trials}):
        losses = [trial.validation_loss for trial in trials if trial.learning_rate == rate]
        known = [loss for loss in losses if loss is not None]
        means[rate] = fmean(known) if len(known) == len(losses) else None
    return means


def best_rate(trials: Sequence[Trial]) -> float | None:
    """Return the learning rate of the smallest mean loss, the lowest of several; None when no rate has one."""
    known = {rate: loss for rate, loss in mean_losses(trials).items() if loss is not None}
    return min(known, key=lambda rate: (known[rate], rate), default=None)


def tuned_file(suite_argument: str, name: str) -> Path:
    """Return where the file called ``name`` lies: beside the suite's own file.

    Args:
        suite_argument: As given to ``--suite``.
        name: The suite's ``tuned``.
    """
    if suite_argument.endswith(".toml"):
        return Path(suite_argument).parent / name
    return Path(str(importlib.resources.files("harness.suites"))) / name


def read_tuned(file: Path) -> Tuned:
    """Return the choices in a file.

    Raises:
        HarnessError: it cannot be read, or a choice is not what its trials say.
    """
    table, where = read_toml(file)
    return validate(Tuned, table, f"{where}:")


def tuned_text(tuned: Tuned) -> str:
    """Return choices as TOML."""
    lines = [
        "# Written by harness tune: the learning rate of the smallest held-out loss, and every trial it rests on.",
        f"suite = {json.dumps(tuned.suite)}",
        f"suite_version = {tuned.suite_version}",
    ]
    for choice in tuned.choices:
        values = choice.model_dump(mode="json", exclude={"trials", "on"})
        lines += ["", *(f"# {remark}" for remark in choice.remarks()), "[[choices]]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        if choice.on is not None:
            lines.append(f"on = {{ {_inline(choice.on)} }}")
        lines += ["trials = [", *(f"    {{ {_inline(trial)} }}," for trial in choice.trials), "]"]
    return "\n".join(lines) + "\n"


def _inline(table: Trial | TunedOn) -> str:
    return ", ".join(f"{k} = {json.dumps(v)}" for k, v in table.model_dump(mode="json", exclude_none=True).items())
