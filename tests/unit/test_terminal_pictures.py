"""Every table that a command prints, at three widths: the golden pictures, and nothing lost or cut in them."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.cells import cell_len

script = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parent / "fixtures_terminal" / "write_pictures.py"), run_name="pictures")
)
NAMES = (
    "list-methods-galore",
    "list-devices-h100",
    "list-suites-calibration-small",
    "report",
    "show",
    "status",
    "history",
    "compare",
    "paper-show",
    "paper-compare",
    "plan",
    "layers",
    "calibrate",
    "doctor",
)
WHOLE_LISTS = ("methods", "models", "datasets", "suites", "benchmarks", "devices")
Pictures = dict[str, Callable[[int], str]]


@pytest.fixture(scope="module")
def drawn() -> Pictures:
    return script.all_pictures()


@pytest.mark.parametrize("width", script.WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_the_golden_one(drawn: Pictures, name: str, width: int) -> None:
    """On a wanted change run fixtures_terminal/write_pictures.py."""
    assert drawn[name](width) == (script.FOLDER / f"{name}-{width}.txt").read_text(encoding="utf-8")


def test_every_picture_is_compared(drawn: Pictures) -> None:
    assert set(drawn) == set(NAMES)
    expected = {f"{name}-{width}.txt" for name in NAMES for width in script.WIDTHS}
    assert {file.name for file in script.FOLDER.iterdir()} == expected


def words(text: str) -> set[str]:
    """Return the words of a text; a heading that stands before an entry ends in a colon."""
    return {word.removesuffix(":") for word in text.replace("|", " ").split() if set(word) - set("-+")}


def check_whole(narrow: str, wide: str, width: int) -> None:
    assert words(wide) <= words(narrow)
    for line in narrow.splitlines():
        assert cell_len(line) <= width or len(line.split()) == 1, line


@pytest.mark.parametrize("width", script.WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_no_word_and_no_number_of_a_wide_terminal_is_lost_or_cut_on_a_narrow_one(
    drawn: Pictures, name: str, width: int
) -> None:
    check_whole(drawn[name](width), drawn[name](1000), width)


@pytest.mark.parametrize("kind", WHOLE_LISTS)
def test_nothing_of_a_list_is_lost_or_cut_on_a_narrow_terminal(kind: str) -> None:
    listed = script.command("list", kind)
    for width in script.WIDTHS:
        check_whole(script.draw(listed, width, Path("/none")), script.draw(listed, 1000, Path("/none")), width)
