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
