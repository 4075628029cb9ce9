"""Which endings hold for every seed, and which runs are left out for one; a long sentence is said once."""

from __future__ import annotations

from typing import Any

import pytest

from harness.commands._output import Display
from harness.record import Record
from harness.record_training import Phase
from harness.runs.failing import Endings, NotStarted, holds_for_every_seed, is_failure, told
from tests.records import TRAIN, make_record, make_spec
from tests.unit.fixtures_report.factory import make_train

LOADED = (Phase(name="load", seconds=1.0),)
TRAINING = (*LOADED, Phase(name="train", seconds=1.0), Phase(name="probe", seconds=1.0))
EVALUATING = (*TRAINING, Phase(name="evaluate", seconds=1.0))


def ended(status: str, phases: tuple[Phase, ...] = (), *, steps: bool = False, **more: Any) -> Record:
    train = make_train("full", 1) if steps else None
    return make_record(status=status, reason="a reason", phases=phases, train=train, **more)


@pytest.mark.parametrize(
    ("record", "held"),
    [
        (ended("refused"), True),
        (ended("failed", LOADED), True),
        (ended("out_of_memory", LOADED), True),
        (ended("out_of_memory", TRAINING), True),
        (ended("failed", EVALUATING, steps=True), True),
        (ended("failed", TRAINING, steps=True), False),
        (ended("out_of_memory", TRAINING, steps=True), False),
        (ended("failed"), False),
        (ended("diverged", TRAINING), False),
        (ended("timed_out", LOADED), False),
        (ended("interrupted", LOADED), False),
        (ended("unproven", EVALUATING, steps=True), False),
        (ended("ok", EVALUATING, steps=True), False),
    ],
)
def test_an_ending_holds_for_every_seed_where_the_seed_had_no_part_in_it(record: Record, held: bool) -> None:
    assert holds_for_every_seed(record) is held


@pytest.mark.parametrize(
    ("status", "failure"),
    [("failed", True), ("timed_out", True), ("unproven", True), ("interrupted", False), ("refused", False)],
)
def test_failures_are_what_the_exit_code_counts(status: str, failure: bool) -> None:
    assert is_failure(ended(status)) is failure


def test_another_seed_is_spared_and_another_question_is_not() -> None:
    endings = Endings()
    endings.note(ended("refused"))
    assert endings.of(make_spec(seed=2)) is not None
    assert endings.of(make_spec(seed=1)) is None, "a run repeated is no other seed"
    assert endings.of(make_spec(seed=2, label="lora")) is None
    assert endings.of(make_spec(seed=2, train=TRAIN.model_copy(update={"batch_size": 1}))) is None


def test_a_seed_that_works_opens_the_way_for_the_others() -> None:
    endings = Endings()
    endings.note(ended("refused"))
    endings.note(ended("ok", spec=make_spec(seed=2)))
    assert endings.of(make_spec(seed=3)) is None


def test_recorded_answers_spare_and_recorded_failures_are_tried_again() -> None:
    refused, failed = ended("refused"), ended("failed", LOADED)
    here, other = refused.environment_id, make_spec(seed=2)
    assert Endings.recorded([refused], here, ()).of(other) is refused
    assert Endings.recorded([refused], None, ()).of(other) is refused
    assert Endings.recorded([refused], "elsewhere", ()).of(other) is None
    assert Endings.recorded([refused], here, ["refused"]).of(other) is None
    assert Endings.recorded([failed], here, ()).of(other) is None


def test_what_is_left_out_is_said_in_a_sentence_a_label() -> None:
    ending = ended("refused")
    (sentence,) = told([NotStarted(make_spec(seed=seed), ending) for seed in (3, 2)])
    assert sentence == (
        "tiny full: not started with seed 2, 3, as seed 1 ended for a reason that every seed meets (refused: a reason)"
        "; --retry refused tries them"
    )


def test_a_long_sentence_is_said_once_and_then_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "this is a sentence about a layer that is not there, " + "which goes on and on " * 5 + "to its end"
    with Display(3) as display:
        for seed in (1, 2, 3):
            display.run_ended(make_record(status="failed", reason=reason, spec=make_spec(seed=seed)))
    lines = capsys.readouterr().err.splitlines()
    assert sum(reason in line for line in lines) == 1
    assert lines[2] == "[3/3] tiny/full/3: failed in 30 s: " + reason[:60].rstrip() + " … (as above; 3 times by now)"
