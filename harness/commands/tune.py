"""``harness tune``: every learning rate of the suite's grid for every label, and the choice, in a file it names.

Trials are runs like any others: recorded, skipped once they have an outcome, cut by a budget. They are scored by the
held-out loss of the validation part, never by a scored item.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.catalogue.tuned import ENDING, Choice, Tuned, mean_losses, read_tuned, tuned_file, tuned_text
from harness.commands._executor import environment_for
from harness.commands._output import print_table, warn
from harness.commands._selection import Selection, checked, given_catalogue, known_names
from harness.commands.requests import AssetsRequest, HowToRun, SelectionRequest
from harness.commands.run import execute
from harness.errors import HarnessError
from harness.expansion import expand, load_suite
from harness.report.files import replace_file
from harness.store import Store
from harness.suite import Suite
from harness.tuning import choices, grid_of, merged, trial_suite


def tune(
    chosen: SelectionRequest, how: HowToRun, assets: AssetsRequest, *, results: Path, out: Path | None = None
) -> int:
    """Run the trials and write the choices; return what ``run`` does, and 1 when a label has no choice."""
    catalogue = given_catalogue(chosen.catalogue, chosen.tasks)
    suite = load_suite(chosen.suite, catalogue)
    trials = trial_suite(suite, chosen.labels or None, catalogue)
    file = tuned_file(chosen.suite, suite.tuned or f"{suite.name}{ENDING}") if out is None else out
    code = execute(lambda: _select(chosen, suite, trials), how, assets, results=results)
    if how.dry_run or code:
        return code
    store = Store(results.resolve())
    num_ranks = how.where.gpus_per_run or suite.gpus_per_run
    environment_id = None if how.any_environment else environment_for(num_ranks).environment_id
    selection = _select(chosen, suite, trials)
    made, missing = choices(suite, trials, selection.specs, store.read(trials.name).records, environment_id)
    tuned = merged(_before(file, suite), suite, made)
    replace_file(file, tuned_text(tuned))
    print()
    print_table([_row(choice) for choice in made], keys=2)
    print(f"\nchoices in {file}; trials in {store.file_of(trials.name)}")
    if suite.tuned != file.name:
        print(f"no run takes them yet: set tuned = '{file.name}' in the suite, with the file beside it")
    warn(missing)
    return 1 if missing else 0


def _select(chosen: SelectionRequest, suite: Suite, trials: Suite) -> Selection:
    known = known_names(suite, chosen)
    if known.trains_on is not None:
        raise HarnessError(
            f"--data {known.trains_on}=...: suite '{suite.name}' does not name it, and its choices would be no longer "
            f"those of its own data: tune a suite of yours with data = '{known.trains_on}'"
        )
    steps = grid_of(suite).max_steps
    specs = expand(trials, models=known.models, sources=known.sources, known=known.catalogue, max_steps=steps)
    for spec in specs:
        if spec.train is not None and not spec.train.validation_rows:
            raise HarnessError(
                f"suite '{suite.name}': label '{spec.label}' has validation_rows = 0: nothing to tune by"
            )
    return checked(Selection(trials, known.models, known.datasets, tuple(specs)), chosen)


def _before(file: Path, suite: Suite) -> Tuned | None:
    """Return the choices that a file holds already, unless they were made for another version or grid."""
    if not file.exists():
        return None
    try:
        before = read_tuned(file)
        before.check(suite.name, suite.version, suite.tune, str(file))
    except HarnessError as error:
        warn([f"{error}; its choices are replaced"])
        return None
    return before


def _row(choice: Choice) -> dict[str, str]:
    means: Sequence[tuple[float, float | None]] = tuple(mean_losses(choice.trials).items())
    return {
        "model": choice.model,
        "label": choice.label,
        "learning_rate": f"{choice.learning_rate:g}",
        "held-out loss by rate": ", ".join(
            f"{rate:g}: {'none' if loss is None else format(loss, '.4f')}" for rate, loss in means
        ),
        "remarks": "; ".join(choice.remarks()),
    }
