"""Words about what takes long: the first of each thing at once, further ones once in a while."""

from __future__ import annotations

import pytest

from harness.progress import throttled

Words = list[tuple[str, int, int | None]]


def said(calls: list[tuple[float, str, int, int | None]], *, ends: bool) -> Words:
    """Return what passes of calls, each at its time, with two seconds between two words of one thing."""
    passed: Words = []
    times = iter([time for time, *_ in calls])
    word = throttled(lambda *what: passed.append(what), 2.0, ends=ends, clock=lambda: next(times))
    for _, what, done, total in calls:
        word(what, done, total)
    return passed


def test_the_first_word_of_a_thing_passes_and_the_next_only_after_a_while() -> None:
    calls = [(5.0, "rows", 1, 9), (5.1, "rows", 2, 9), (6.9, "rows", 3, 9), (7.0, "rows", 4, 9), (7.1, "rows", 5, 9)]
    assert said(calls, ends=True) == [("rows", 1, 9), ("rows", 4, 9)]


def test_another_thing_passes_at_once_and_what_follows_a_comma_is_no_other_thing() -> None:
    calls = [(0.0, "step, loss 3", 1, 9), (0.1, "step, loss 2", 2, 9), (0.2, "scores", 1, 4), (0.3, "step", 3, 9)]
    assert said(calls, ends=True) == [("step, loss 3", 1, 9), ("scores", 1, 4), ("step", 3, 9)]


@pytest.mark.parametrize("ends", [True, False])
def test_the_end_of_a_thing_passes_where_it_is_asked_for(ends: bool) -> None:
    calls = [(0.0, "rows", 1, 9), (0.1, "rows", 9, 9)]
    assert said(calls, ends=ends) == [("rows", 1, 9), ("rows", 9, 9)][: 1 + ends]


def test_what_has_no_known_end_is_throttled_too() -> None:
    calls: list[tuple[float, str, int, int | None]] = [(0.0, "rows", 1, None), (0.1, "rows", 2, None)]
    assert said(calls, ends=True) == [("rows", 1, None)]
