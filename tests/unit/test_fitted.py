"""Tables on a terminal of any width: every word and number whole, and the names of the rows in every part."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from harness.commands import _output
from harness.report.fitted import NARROWEST, alignment, fitted, wrapped_prose
from harness.report.table import Column

WORDS = st.text(st.sampled_from("abcäß漢0123456789.-_/[]=|"), min_size=1, max_size=50)
CELLS = st.lists(WORDS, max_size=12).map(" ".join)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Column], list[list[str]], int]:
    """Return columns, rows with names of their own, and how many columns name a row."""
    num_columns = draw(st.integers(1, 8))
    keys = draw(st.integers(1, min(2, num_columns)))
    columns = [Column(draw(CELLS), draw(st.sampled_from(["left", "right"]))) for _ in range(num_columns)]
    names = draw(st.lists(st.text("xyz79", min_size=1, max_size=70), min_size=1, max_size=6, unique=True))
    rows = [[name, *(draw(CELLS) for _ in range(num_columns - 1))] for name in names]
    return columns, rows, keys


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(NARROWEST, 200), st.booleans())
def test_every_word_is_found_whole_at_any_width(
    table: tuple[list[Column], list[list[str]], int], width: int, bars: bool
) -> None:
    columns, rows, keys = table
    lines = [line.text for line in fitted(columns, rows, width, keys=keys, bars=bars)]
    found = set(" ".join(lines).split()) if not bars else None
    for i, column in enumerate(columns):
        if i >= keys and i != keys and not any(row[i] for row in rows):
            continue  # a column without an entry
        words = [word for row in rows for word in row[i].split()]
        for word in words:
            if found is None:
                assert any(word in line for line in lines), word
            elif "|" not in word:
                assert word in found, word
        for word in column.title.split() if words else ():
            assert any(word in line for line in lines), word


@settings(max_examples=40, deadline=None)
@given(tables(), st.integers(NARROWEST, 200))
def test_no_line_is_wider_unless_it_holds_one_word(
    table: tuple[list[Column], list[list[str]], int], width: int
) -> None:
    columns, rows, keys = table
    for line in fitted(columns, rows, width, keys=keys):
        text = line.text.strip()
        assert cell_len(line.text) <= width or " " not in text


def parts_of(text: str) -> list[list[str]]:
    return [part.splitlines() for part in text.strip("\n").split("\n\n")]


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_the_names_stand_in_every_part_and_the_parts_hold_all_columns_in_order(width: int) -> None:
    columns = [Column("label", "left"), *(Column(f"task {i}") for i in range(12))]
    rows = [[label, *(f"{i}{k}.5" for k in range(12))] for i, label in enumerate(("base", "owlore[rank=8]"))]
    text = "\n".join(line.text for line in fitted(columns, rows, width))
    parts = parts_of(text)
    assert len(parts) > 1 or width == 100
    assert all(part[-2].startswith("base ") and part[-1].startswith("owlore[rank=8] ") for part in parts)
    assert [word for part in parts for word in part[-1].split()[1:]] == [f"1{k}.5" for k in range(12)]


def test_a_column_without_entries_is_left_out_and_further_parts_hold_the_rows_that_have_any() -> None:
    columns = [Column(title, "left") for title in ("run", "state", "absent", "reason")]
    rows = [["one", "ok", "–", ""], ["two", "failed", "", "because of a long reason that is told in many words here"]]
    assert [line.text for line in fitted(columns, rows, 40)] == [
        "run  state",
        "one  ok",
        "two  failed",
        "",
        "run  reason",
        "two  because of a long reason that is",
        "     told in many words here",
    ]


def test_a_word_wider_than_the_terminal_stands_whole_below_its_name() -> None:
    address = "https://example.invalid/" + "a" * 60
    lines = fitted([Column("device", "left"), Column("source", "left"), Column("GB")], [["h100", address, "80"]], 60)
    assert [line.text for line in lines] == [
        "device",
        "h100",
        "  source:",
        f"  {address}",
        "",
        "device  GB",
        "h100    80",
    ]


def test_columns_of_numbers_stand_at_the_right() -> None:
    assert alignment(["1.5", "–", "+3", "<0.0001", "1,024", "12%"]) == "right"
    assert alignment(["1.5", "none"]) == alignment([]) == alignment(["", "–"]) == "left"


@pytest.mark.parametrize(
    ("columns", "width"),
    [
        ("60", 60),
        ("7", NARROWEST),
        ("999999999999", 1000),
        ("wide", 120),
        ("-5", 120),
        ("0", 120),
        ("", 120),
        ("٣", 120),
    ],
)
def test_a_pipe_is_as_wide_as_columns_says(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not sys.stdout.isatty()
    with monkeypatch.context() as inside:  # pytest's own lines would be as wide
        inside.setenv("COLUMNS", columns)
        found = _output.console().width
    assert found == width


def test_a_table_in_a_pipe_is_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    _output.print_table([{"what_it_is": "a" * 70, "value": "1.25"}, {"what_it_is": "b", "value": "-3 \x1b[2Jx"}])
    shown = capsys.readouterr().out
    assert "a" * 70 in shown
    assert "what it is" in shown or "value: 1.25" in shown
    assert "\x1b" not in shown


def test_a_sentence_wraps_between_words_alone() -> None:
    lines = wrapped_prose("the peak is 12.345 GiB of a well-known " + "x" * 70, 60)
    assert lines == ["the peak is 12.345 GiB of a well-known", "x" * 70]
    assert wrapped_prose("", 60) == [""]


def test_a_column_is_never_narrower_than_its_longest_word() -> None:
    columns = [Column(title, "left") for title in ("run", "source", "weights")]
    long = "hub:organisation/a-long-name-of-one"
    lines = [line.text for line in fitted(columns, [["one", f"{long} and more", f"{long} and more"]] * 5, 75)]
    assert sum(long in line for line in lines) == 10
    assert max(map(len, lines)) <= 75
