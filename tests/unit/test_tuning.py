"""Equal tuning: the grid, the trials apart from the suite's runs, the choice and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.models import BaseModelSpec
from harness.catalogue.tuned import Choice, Trial, Tuned, best_rate, read_tuned, tuned_text
from harness.errors import HarnessError
from harness.expansion import expand, load_suite, load_tuned
from harness.record import Record
from harness.record_training import StepCurve, TrainResult
from harness.report.reading.words import TUNED
from harness.report.write import write_report
from harness.spec import RunSpec
from harness.store import Contents
from harness.suite import Suite
from harness.tuning import choices, merged, trial_suite
from tests.records import ENVIRONMENT, make_record
from tests.unit.test_suite import TEXT

GRID = """
[tune]
learning_rates = [1e-4, 1e-3, 1e-2]
seeds = [11, 12]
max_steps = 3
"""
WITH_GRID = TEXT.replace("seeds = [1, 2]", 'seeds = [1, 2]\ntuned = "tiny.tuned.toml"').replace(
    "batch_size = 2", "batch_size = 2\nvalidation_rows = 2"
)
MODELS = {"a": BaseModelSpec(name="a", architecture="LlamaForCausalLM", hub_id="someone/a")}
UNKNOWN = "on which weights, data and settings is not known: an older file of choices does not say it"
CURVE = StepCurve(**{name: () for name, field in StepCurve.model_fields.items() if field.is_required()})


def suite(tmp_path: Path, text: str = WITH_GRID + GRID) -> tuple[str, Suite]:
    file = tmp_path / "tiny.toml"
    file.write_text(text)
    return str(file), load_suite(str(file))


def trial_specs(tmp_path: Path, text: str = WITH_GRID + GRID) -> tuple[Suite, Suite, list[RunSpec]]:
    _, whole = suite(tmp_path, text)
    trials = trial_suite(whole)
    assert whole.tune is not None
    return whole, trials, expand(trials, models=MODELS, sources={}, max_steps=whole.tune.max_steps)


def record(spec: RunSpec, loss: float | None, **changes: Any) -> Record:
    train = TrainResult(
        num_steps=3,
        curve=CURVE,
        block_activity=(),
        num_blocks=1,
        step_seconds_mean=None,
        step_seconds_median=None,
        num_timed_steps=0,
        data_seconds=0.0,
        trainable_params_mean=1.0,
        trainable_params_ever=1,
        total_params=1,
        peak_optimizer_state_bytes=0,
        validation_loss_before=3.0,
        validation_loss_after=loss,
        validation_tokens=7,
    )
    return make_record(uuid=spec.run_id, spec=spec, train=train, status="ok" if loss is not None else "diverged")


def losses(spec: RunSpec) -> float:
    """Return a loss that is smallest at 1e-3 for full and falls to the end of the grid for galore."""
    assert spec.train is not None
    rate = spec.train.learning_rate
    return (abs(rate - 1e-3) if spec.method == "full" else 1.0 - rate) + 0.001 * spec.seed


def test_every_label_that_trains_has_the_same_trials_apart_from_the_suite(tmp_path: Path) -> None:
    whole, _, specs = trial_specs(tmp_path)
    seen: dict[str, list[tuple[float, int]]] = {}
    for spec in specs:
        assert spec.train is not None
        seen.setdefault(spec.method, []).append((spec.train.learning_rate, spec.seed))
        assert (spec.suite, spec.protocol) == ("tiny-tune", "test-tune")
        assert spec.evaluation.tasks == ()
        assert spec.max_steps == 3
    assert seen["full"] == seen["galore"]
    assert seen["full"] == [(rate, seed) for rate in (1e-4, 1e-3, 1e-2) for seed in (11, 12)]
    assert set(seen) == {"full", "galore"}  # base trains nothing
    assert not {spec.run_id for spec in specs} & {
        spec.run_id for spec in expand(whole, models=MODELS, sources={}, tuned=None)
    }


def test_the_smallest_mean_loss_is_chosen_written_and_read_back(tmp_path: Path) -> None:
    name, whole = suite(tmp_path)
    _, trials, specs = trial_specs(tmp_path)
    made, missing = choices(whole, trials, specs, [record(spec, losses(spec)) for spec in specs], None)
    assert missing == []
    assert {choice.label: choice.learning_rate for choice in made} == {"full": 1e-3, "galore": 1e-2}
    assert [choice.remarks() for choice in made] == [[], ["the highest rate of the grid: a better one may lie outside"]]
    tuned = merged(None, whole, made)
    (tmp_path / "tiny.tuned.toml").write_text(tuned_text(tuned))
    assert load_tuned(name, whole) == tuned
    rates = {
        spec.label: spec.train.learning_rate
        for spec in expand(whole, models=MODELS, sources={}, tuned=tuned)
        if spec.train is not None
    }
    assert rates == {"full": 1e-3, "galore": 1e-2}
    given = expand(whole, models=MODELS, sources={}, tuned=tuned, labels=["full"], overrides={"learning_rate": 0.5})
    assert given[0].train is not None
    assert given[0].train.learning_rate == 0.5


def test_a_choice_is_in_the_identity_through_the_rate_alone(tmp_path: Path) -> None:
    _, whole = suite(tmp_path)
    _, trials, specs = trial_specs(tmp_path)
    made, _ = choices(whole, trials, specs, [record(spec, losses(spec)) for spec in specs], None)
    (tuned,) = expand(whole, models=MODELS, sources={}, tuned=merged(None, whole, made), labels=["full"], seeds=[1])
    _, same = suite(tmp_path, (WITH_GRID + GRID).replace("learning_rate = 1e-3", "learning_rate = 0.001"))
    (plain,) = expand(same, models=MODELS, sources={}, labels=["full"], seeds=[1])
    assert tuned.run_id == plain.run_id


def test_a_rate_with_a_trial_without_result_is_not_chosen_and_a_tie_is_said(tmp_path: Path) -> None:
    trials = [
        Trial(learning_rate=rate, seed=seed, run_id="0", status="ok" if loss else "diverged", validation_loss=loss)
        for rate, seed, loss in (
            (1.0, 1, 0.1),
            (1.0, 2, None),
            (2.0, 1, 0.5),
            (2.0, 2, 0.7),
            (3.0, 1, 0.6),
            (3.0, 2, 0.6),
        )
    ]
    choice = Choice(model="a", label="x", learning_rate=2.0, environment_id="e", trials=tuple(trials))
    assert best_rate(trials) == 2.0
    assert choice.remarks() == ["a tie of 2, 3: the lowest was taken", "1 of 6 trials without a result", UNKNOWN]
    assert best_rate([trials[1]]) is None


def test_a_label_without_a_result_has_no_choice_and_stops_the_suite(tmp_path: Path) -> None:
    _, whole = suite(tmp_path)
    _, trials, specs = trial_specs(tmp_path)
    records = [record(spec, None if spec.method == "galore" else losses(spec)) for spec in specs]
    made, missing = choices(whole, trials, specs, records, ENVIRONMENT.environment_id)
    assert [choice.label for choice in made] == ["full"]
    assert missing == ["galore on a: no learning rate has a result in all its trials (diverged)"]
    with pytest.raises(HarnessError, match="no learning rate was tuned for label 'galore' on model 'a'"):
        expand(whole, models=MODELS, sources={}, tuned=merged(None, whole, made))


def test_new_choices_take_the_place_of_old_ones_and_others_stay(tmp_path: Path) -> None:
    _, whole = suite(tmp_path)
    _, trials, specs = trial_specs(tmp_path)
    made, _ = choices(whole, trials, specs, [record(spec, losses(spec)) for spec in specs], None)
    again, _ = choices(whole, trials, specs, [record(spec, -losses(spec)) for spec in specs], None)
    both = merged(merged(None, whole, made), whole, [again[0]])
    assert [choice.learning_rate for choice in both.choices] == [1e-2, 1e-2]
    assert both.choices[1] == made[1]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("suite_version = 1", "suite_version = 2", "was tuned for version 2 of suite 'tiny', and this is version 1"),
        (
            "learning_rate = 0.001\n",
            "learning_rate = 0.01\n",
            "label 'full' on model 'a' is not the best of its trials",
        ),
        ("seed = 12", "seed = 13", "are not those of the suite's [tune]: run harness tune --suite tiny"),
        ("label =", "lable =", "has no setting 'lable'"),
        ('label = "galore"', 'label = "full"', "is chosen for twice"),
    ],
)
def test_a_file_that_was_changed_or_made_for_something_else_is_refused(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    name, whole = suite(tmp_path)
    _, trials, specs = trial_specs(tmp_path)
    made, _ = choices(whole, trials, specs, [record(spec, losses(spec)) for spec in specs], None)
    text = tuned_text(merged(None, whole, made))
    assert old in text
    (tmp_path / "tiny.tuned.toml").write_text(text.replace(old, new))
    with pytest.raises(HarnessError) as caught:
        load_tuned(name, whole)
    assert said in str(caught.value)


def test_a_file_that_is_not_there_says_which_command_makes_it(tmp_path: Path) -> None:
    name, whole = suite(tmp_path)
    with pytest.raises(
        HarnessError, match=r"tiny.tuned.toml, which is not there: run harness tune --suite .*tiny.toml"
    ):
        load_tuned(name, whole)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[1e-4, 1e-3, 1e-2]", "[1e-3]", "learning_rates"),
        ("[1e-4, 1e-3, 1e-2]", "[1e-3, 1e-4]", "must rise from one to the next"),
        ("seeds = [11, 12]", "seeds = [11, 11]", "names something twice"),
        ("max_steps = 3", "num_steps = 3", "has no setting 'num_steps' in tune"),
        ('tuned = "tiny.tuned.toml"', 'tuned = "tiny.toml"', "does not end in .tuned.toml"),
    ],
)
def test_a_fault_in_the_grid_is_one_sentence(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(HarnessError) as caught:
        suite(tmp_path, (WITH_GRID + GRID).replace(old, new))
    assert said in str(caught.value)


def test_what_cannot_be_tuned_is_said(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"suite 'tiny' has no \[tune\] table"):
        trial_suite(suite(tmp_path, WITH_GRID)[1])
    with pytest.raises(HarnessError, match="nothing of what is chosen trains"):
        trial_suite(suite(tmp_path)[1], ["base"])
    swept = WITH_GRID + GRID + "[sweep.full]\nlearning_rate = [1e-3, 1e-2]\n"
    with pytest.raises(HarnessError, match=r"\[sweep.full\] sets learning_rate"):
        trial_suite(suite(tmp_path, swept)[1])


def test_each_point_of_a_sweep_is_tuned_for_itself(tmp_path: Path) -> None:
    whole, trials, specs = trial_specs(tmp_path, WITH_GRID + GRID + "[sweep.galore]\nrank = [2, 4]\n")
    made, _ = choices(whole, trials, specs, [record(spec, losses(spec)) for spec in specs], None)
    assert [choice.label for choice in made] == ["full", "galore[rank=2]", "galore[rank=4]"]
    tuned = merged(None, whole, made)
    assert [spec.label for spec in expand(whole, models=MODELS, sources={}, tuned=tuned, seeds=[1])] == [
        "base",
        "full",
        "galore[rank=2]",
        "galore[rank=4]",
    ]


def test_the_report_marks_what_was_tuned_and_shows_the_trials(tmp_path: Path) -> None:
    _, whole = suite(tmp_path)
    _, trials, specs = trial_specs(tmp_path)
    records = [record(spec, losses(spec)) for spec in specs]
    made, _ = choices(whole, trials, specs, records, None)
    tuned = merged(None, whole, [choice for choice in made if choice.label == "galore"])
    spec = {spec.label: spec for spec in expand(whole, models=MODELS, sources={}, seeds=[1])}
    rated = spec["galore"].model_copy(update={"train": spec["galore"].train.model_copy(update={"learning_rate": 1e-2})})
    runs = [record(rated, 1.0), record(spec["full"], 1.0)]
    write_report(whole, Contents((*records, *runs)), tmp_path / "out", ["md"], tuned)
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"galore {TUNED}" in text and "(1 of 2 seeds" in text
    assert f"full {TUNED}" not in text
    assert "from the same 3 rates with 2 seeds each" in text
    assert "Not tuned: full." in text
    row = "a galore 0.01 1.0114 1.0105 1.0015 6 the highest rate of the grid: a better one may lie outside"
    assert row in [" ".join(line.replace("|", " ").split()) for line in text.splitlines()]
    assert "learning_rate=" not in text  # no trial stands in a table
    untuned = Tuned(suite="tiny", suite_version=1, choices=())
    write_report(whole, Contents(tuple(runs)), tmp_path / "out", ["md"], untuned)
    assert "harness tune" not in (tmp_path / "out" / "report.md").read_text()


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    trial = Trial(learning_rate=1e-05, seed=1, run_id="ab", status="ok", validation_loss=0.25)
    choice = Choice(model="smollm2-135m", label="x[a=1]", learning_rate=1e-05, environment_id="e", trials=(trial,))
    tuned = Tuned(suite="s", suite_version=2, choices=(choice,))
    (tmp_path / "s.tuned.toml").write_text(tuned_text(tuned))
    assert read_tuned(tmp_path / "s.tuned.toml") == tuned


def tuned_file_of(tmp_path: Path) -> tuple[str, Suite, Tuned]:
    name, whole = suite(tmp_path)
    _, trials, specs = trial_specs(tmp_path)
    made, _ = choices(whole, trials, specs, [record(spec, losses(spec)) for spec in specs], None)
    (tmp_path / "tiny.tuned.toml").write_text(tuned_text(merged(None, whole, made)))
    tuned = load_tuned(name, whole)
    assert tuned is not None
    return name, whole, tuned


OTHER_WEIGHTS = {"a": BaseModelSpec(name="a", architecture="LlamaForCausalLM", hub_id="someone/a", revision="f" * 40)}
OTHERS: dict[str, tuple[dict[str, Any], tuple[str, str], str]] = {
    "other weights": ({"models": OTHER_WEIGHTS}, ("", ""), "other weights"),
    "other rows": ({"sources": {"rows": "file:0"}}, ("", ""), "other data"),
    "another rank": (
        {},
        ("[tune]", "[settings.galore]\nrank = 3\n[tune]"),
        "other settings of the label or of training",
    ),
    "a rank of --set": ({"overrides": {"rank": 3}, "labels": ["galore"]}, ("", ""), "other settings of the label"),
    "more steps": ({}, ("num_steps = 4", "num_steps = 5"), "other settings of the label or of training"),
    "another dtype": ({}, ('dtype = "fp32"', 'dtype = "bf16"'), "other settings of the label or of training"),
    "another length": ({}, ("sequence_length = 64", "sequence_length = 32"), "other settings of the label"),
    "longer trials": ({}, ("max_steps = 3", "max_steps = 4"), "other settings of the label or of training"),
    "weights and rows": ({"models": OTHER_WEIGHTS, "sources": {"rows": "x"}}, ("", ""), "other weights and other data"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_rate_is_refused_on_anything_but_what_it_was_tuned_on(tmp_path: Path, what: str) -> None:
    known = {"a": BaseModelSpec(name="a", architecture="LlamaForCausalLM", hub_id="someone/a", revision="a" * 40)}
    name, whole = suite(tmp_path)
    assert whole.tune is not None
    trials = trial_suite(whole)
    specs = expand(trials, models=known, sources={}, max_steps=whole.tune.max_steps)
    made, _ = choices(whole, trials, specs, [record(spec, losses(spec)) for spec in specs], None)
    (tmp_path / "tiny.tuned.toml").write_text(tuned_text(merged(None, whole, made)))
    changes, (old, new), said = OTHERS[what]
    given: dict[str, Any] = {"models": known, "sources": {}, **changes}
    assert expand(whole, models=known, sources={}, tuned=load_tuned(name, whole))
    name, whole = suite(tmp_path, (WITH_GRID + GRID).replace(old, new) if old else WITH_GRID + GRID)
    tuned = load_tuned(name, whole)
    with pytest.raises(HarnessError) as caught:
        expand(whole, **given, tuned=tuned)
    assert f"was tuned on {said}" in str(caught.value)
    given |= {"overrides": {**given.get("overrides", {}), "learning_rate": 0.5}, "labels": ["galore"]}
    assert expand(whole, **given, tuned=tuned), "one that is given is taken"


@pytest.mark.parametrize("change", [{"limit": 3}, {"max_steps": 2}, {"seeds": [9]}, {"labels": ["full"]}])
def test_a_rate_is_taken_whatever_else_is_asked_for(tmp_path: Path, change: dict[str, Any]) -> None:
    _, whole, tuned = tuned_file_of(tmp_path)
    assert expand(whole, models=MODELS, sources={}, tuned=tuned, **change)


def test_weights_that_are_not_known_yet_are_judged_once_they_are(tmp_path: Path) -> None:
    _, whole, tuned = tuned_file_of(tmp_path)
    later = Tuned(
        suite=tuned.suite,
        suite_version=tuned.suite_version,
        choices=tuple(
            choice.model_copy(update={"on": choice.on and choice.on.model_copy(update={"weights": "f" * 16})})
            for choice in tuned.choices
        ),
    )
    assert expand(whole, models=MODELS, sources={}, tuned=later)
    with pytest.raises(HarnessError, match="was tuned on other weights"):
        expand(whole, models=OTHER_WEIGHTS, sources={}, tuned=later)


def test_an_older_file_is_read_and_what_it_does_not_know_is_said(tmp_path: Path) -> None:
    name, whole, _ = tuned_file_of(tmp_path)
    file = tmp_path / "tiny.tuned.toml"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.startswith("on = ")))
    old = load_tuned(name, whole)
    assert old is not None
    assert [choice.on for choice in old.choices] == [None, None]
    assert old.choices[0].remarks() == [UNKNOWN]
    assert expand(whole, models=OTHER_WEIGHTS, sources={}, tuned=old)


def test_the_report_says_tuned_only_of_what_was_tuned(tmp_path: Path) -> None:
    _, whole, tuned = tuned_file_of(tmp_path)
    (spec,) = expand(whole, models=MODELS, sources={}, tuned=tuned, labels=["full"], seeds=[1])
    for model, marked in ((spec.model, True), ({**spec.model, "revision": "f" * 40}, False)):
        runs = Contents((record(spec.model_copy(update={"model": model}), 1.0),))
        write_report(whole, runs, tmp_path / "out", ["md"], tuned)
        assert (f"full {TUNED}" in (tmp_path / "out" / "report.md").read_text()) == marked
