"""Which score stands for a run whose weights were scored more than once, and what the report says of the others."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.record import Record, Score
from harness.report.pages.pairs import pairs_of
from harness.report.reading.estimates import average_of_row
from harness.report.reading.summary import summarize
from harness.store import Contents

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))


def scored_again(record: Record, n: int, value: float, **changes: Any) -> Record:
    (own,) = (score for score in record.scores if score.task == "boolq" and score.headline)
    score = own.model_copy(update={"n": n, "value": value, **changes})
    found: Record = make.make_record(record.label, minute=30, kind="evaluation", of=record.uuid, scores=(score,))
    return found.model_copy(update={"items": found.uuid})


def with_items(*records: Record) -> Contents:
    return Contents(tuple(r if r.items else r.model_copy(update={"items": r.uuid}) for r in records))


def boolq(record: Record, added: Record) -> tuple[Score, tuple[str, ...]]:
    summary = summarize(make.make_suite(), Contents((record, added)))
    (row,) = (row for row in summary.rows if row.finished)
    (score,) = (s for s in row.finished[0].scores if s.task == "boolq" and s.headline)
    return score, summary.notes


def test_fewer_items_added_later_do_not_replace_the_runs_own_score() -> None:
    """By trial 'harness evaluate RUN --limit 3' put 0.0 (n=3) in the place of 20.0 (n=20)."""
    record = make.make_record("lora")
    score, notes = boolq(record, scored_again(record, 3, 0.0))
    assert (score.n, score.value) == (40, record.scores[0].value)
    assert "Not shown: 1 score of lora on boolq, over 3 items where another is over 40." in notes


def test_more_items_of_the_same_question_win() -> None:
    record = make.make_record("lora")
    score, notes = boolq(record, scored_again(record, 400, 0.5))
    assert (score.n, score.value) == (400, 0.5)
    assert "Not shown: 1 score of lora on boolq, over 40 items where another is over 400." in notes


def test_as_many_items_again_are_the_newest() -> None:
    record = make.make_record("lora")
    score, notes = boolq(record, scored_again(record, 40, 0.5))
    assert score.value == 0.5
    assert not [note for note in notes if note.startswith("Not shown")]


@pytest.mark.parametrize(("what", "value"), [("num_fewshot", 5), ("task_version", "2.0")])
def test_another_question_takes_no_place_of_the_runs_own(what: str, value: Any) -> None:
    record = make.make_record("lora")
    score, notes = boolq(record, scored_again(record, 400, 0.5, **{what: value}))
    assert score.n == 40
    assert any(f"added with {what} {value} instead of" in note for note in notes)


def test_the_average_and_the_pairs_rest_on_the_chosen_scores() -> None:
    lora, full = make.make_record("lora"), make.make_record("full", minute=1)
    alone, added = with_items(lora, full), with_items(lora, full, scored_again(lora, 3, 0.0))
    suite = make.make_suite()
    before, after = (summarize(suite, side, read_items=make.read_items(side)) for side in (alone, added))
    rows = [next(row for row in summary.rows if row.label == "lora") for summary in (before, after)]
    assert average_of_row(rows[0], before.columns) == average_of_row(rows[1], after.columns)
    pairs = [pairs_of(summary, "tiny", make.read_items(side)) for summary, side in ((before, alone), (after, added))]
    assert pairs[0] == pairs[1]
    assert len(pairs[0]) == 1


def test_a_column_over_unlike_numbers_of_items_is_said() -> None:
    lora, full = make.make_record("lora"), make.make_record("full", minute=1)
    summary = summarize(make.make_suite(), Contents((lora, full, scored_again(lora, 400, 0.5))))
    assert "Scores of boolq on tiny are not over the same items: 400 items: lora; 40 items: full." in summary.notes
