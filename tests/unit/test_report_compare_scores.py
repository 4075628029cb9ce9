"""Scores between two sides: paired where items are there, groups, points, seeds."""

from __future__ import annotations

from typing import Any

import pytest

from harness.record import Record
from harness.report.comparing.compare import compare_sides
from harness.report.reading.sides import Side
from tests.comparing import NEW, cell, compare, items_side, scored


def test_a_loss_of_items_is_found_paired_that_no_unpaired_test_could_see() -> None:
    old, new = scored([0.6]), scored([0.57], later=9, environment=NEW)
    before = items_side("old", old, lambda seed, i: float(i < 600))
    after = items_side("new", new, lambda seed, i: float(i < 570))
    paired = compare_sides(before, after, "score:1pt")
    assert cell(paired, "piqa acc").verdict == "worse"
    assert cell(paired, "piqa acc").basis == "paired over 1000 items"
    assert cell(paired, "piqa acc").change == pytest.approx(-0.03)
    unpaired = compare(old, new, "score:1pt")
    assert cell(unpaired, "piqa acc").verdict == "same"
    assert cell(unpaired, "piqa acc").basis == "unpaired, items absent: 1000 against 1000 items"


def test_seeds_that_swing_are_not_taken_for_a_loss() -> None:
    old, new = scored([0.6, 0.6, 0.6]), scored([0.5, 0.6, 0.62], later=9, environment=NEW)
    before = items_side("old", old, lambda seed, i: float(i < 600))
    after = items_side("new", new, lambda seed, i: float(i < 1000 * (0.5, 0.6, 0.62)[seed]))
    found = cell(compare_sides(before, after, "score:1pt"), "piqa acc")
    assert (found.verdict, found.basis) == ("same", "paired over 1000 items, 3 seeds")


def test_items_that_do_not_add_up_to_their_score_are_not_used() -> None:
    old, new = scored([0.6]), scored([0.57], later=9, environment=NEW)
    before = items_side("old", old, lambda seed, i: float(i < 600))
    after = items_side("new", new, lambda seed, i: float(i < 500))
    assert cell(compare_sides(before, after), "piqa acc").basis.startswith("unpaired, items absent")


def test_other_seeds_on_the_candidates_side_are_compared_and_not_left_out() -> None:
    old = scored([1.0, 1.0, 1.0])
    new = [
        record.model_copy(update={"spec": record.spec.model_copy(update={"seed": 11 + i})})
        for i, record in enumerate(scored([0.0, 0.0, 0.0], later=9, environment=NEW))
    ]
    before, after = items_side("old", old, lambda seed, i: 1.0), items_side("new", new, lambda seed, i: 0.0)
    paired, unpaired = compare_sides(before, after), compare(old, new)
    for found in (paired, unpaired):
        fallen = cell(found, "piqa acc")
        assert (fallen.verdict, fallen.baseline, fallen.candidate) == ("worse", 1.0, 0.0)
        assert "seeds 0, 1, 2 against 11, 12, 13" in fallen.basis
        assert found.fails
    assert cell(paired, "run").basis == "other seeds: 0, 1, 2 -> 11, 12, 13"


def test_seeds_that_swing_are_not_taken_for_a_loss_where_they_are_others() -> None:
    old, new = scored([0.6, 0.55, 0.65]), scored([0.5, 0.6, 0.62], later=9, environment=NEW)
    new = [
        record.model_copy(update={"spec": record.spec.model_copy(update={"seed": 11 + i})})
        for i, record in enumerate(new)
    ]
    shares = {0: 0.6, 1: 0.55, 2: 0.65, 11: 0.5, 12: 0.6, 13: 0.62}
    before, after = (
        items_side(name, side, lambda seed, i: float(i < 1000 * shares[seed]))
        for name, side in (("old", old), ("new", new))
    )
    assert cell(compare_sides(before, after), "piqa acc").verdict == "same"


def test_a_single_other_seed_says_that_its_choice_is_not_covered() -> None:
    old, new = scored([0.6]), scored([0.6, 0.6], later=9, environment=NEW)[1:]
    assert "the choice of a single seed is not covered" in cell(compare(old, new), "piqa acc").basis


def test_the_change_shown_is_of_the_items_that_are_tested() -> None:
    """400 items, half right, against the first 200 of them, of which 160 are right."""
    old, new = scored([0.5]), scored([0.8], later=9, environment=NEW)
    before, after = items_side("old", old, lambda seed, i: 1.0), items_side("new", new, lambda seed, i: 1.0)
    before._items["0-0"] = {("piqa", "acc"): {("piqa", i, ""): float(i < 200) for i in range(400)}}
    after._items["0-9"] = {("piqa", "acc"): {("piqa", i, ""): float(i >= 40) for i in range(200)}}
    found = cell(compare_sides(before, after), "piqa acc")
    assert (found.verdict, found.baseline, found.candidate) == ("worse", 1.0, 0.8)
    assert found.change == pytest.approx(-0.2)
    assert found.basis == "paired over 200 items that both have, of 400 and 200"


@pytest.mark.parametrize("num_items", [1, 2, 5])
def test_a_few_items_that_are_all_lost_are_not_called_worse(num_items: int) -> None:
    """Fair coins fall so in 1 of 32 cases with five; with ten in 1 of 1024."""
    for count, verdict in ((num_items, "same"), (10, "worse")):
        old, new = scored([1.0]), scored([0.0], later=9, environment=NEW)
        sides = []
        for name, records, value in (("old", old, 1.0), ("new", new, 0.0)):
            side = Side(name, tuple(records))
            side._items[records[0].items or ""] = {("piqa", "acc"): {("piqa", i, ""): value for i in range(count)}}
            sides.append(side)
        found = cell(compare_sides(sides[0], sides[1], "piqa:1pt", level=0.02), "piqa acc")
        assert (found.verdict, found.smallest is None) == (verdict, count < 10)


def test_a_later_evaluation_over_fewer_items_changes_nothing() -> None:
    """The same weights scored again over three items: by trial the run's 20 items were averaged with them."""
    (old,) = scored([0.6])
    (new,) = scored([0.6], later=9, environment=NEW)
    quick = new.model_copy(
        update={
            "kind": "evaluation",
            "of": new.uuid,
            "uuid": "e" * 32,
            "scores": (new.scores[0].model_copy(update={"value": 0.0, "n": 3}),),
        }
    )
    found = cell(compare([old], [new, quick], "score:1pt"), "piqa acc")
    assert (found.baseline, found.candidate, found.verdict) == (0.6, 0.6, "same")


def test_a_group_is_paired_over_the_items_of_its_tasks_and_must_be_over_the_same() -> None:
    def grouped(members: tuple[str, ...], **changes: Any) -> list[Record]:
        (record,) = scored([0.6], **changes)
        score = record.scores[0].model_copy(update={"task": "mmlu", "subtasks": members})
        return [record.model_copy(update={"scores": (score,)})]

    old, new = grouped(("a", "b")), grouped(("a", "b"), later=9, environment=NEW)
    sides = []
    for name, records in (("old", old), ("new", new)):
        side = Side(name, tuple(records))
        outcomes = {(task, i, ""): float(i < 6) for task in ("a", "b") for i in range(10)}
        side._items[records[0].items or ""] = {
            (task, "acc"): {key: value for key, value in outcomes.items() if key[0] == task} for task in ("a", "b")
        }
        sides.append(side)
    assert cell(compare_sides(sides[0], sides[1]), "mmlu acc").basis == "paired over 20 items"
    other = compare(old, grouped(("a", "c"), later=9, environment=NEW))
    assert cell(other, "mmlu acc").basis == "the group is over other tasks"


def test_a_point_is_a_hundredth_of_the_scale() -> None:
    old, new = scored([6.5], unit="points"), scored([6.2], later=9, environment=NEW, unit="points")
    assert cell(compare(old, new, "score:1pt"), "piqa acc").verdict == "worse"
    assert cell(compare(old, new, "piqa:2pt"), "piqa acc").limit() == pytest.approx(0.2)
