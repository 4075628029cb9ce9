"""What ``harness compare`` answers a gate with: its exit code, and the sentence where there was nothing to look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.commands.compare import compare
from harness.errors import HarnessError
from tests.comparing import NEW, NOISE, make, runs


def written(folder: Path, lines: list[str]) -> str:
    folder.mkdir()
    (folder / "quick.jsonl").write_text("".join(lines))
    return str(folder)


def lines_of(label: str, later: int = 0, environment: object = make.CPU) -> list[str]:
    return [f"{record.model_dump_json()}\n" for record in runs(label, NOISE, later=later, environment=environment)]


def test_records_that_nobody_measured_again_are_no_pass(tmp_path: Path) -> None:
    old, new = written(tmp_path / "old", lines_of("full")), written(tmp_path / "new", lines_of("full"))
    with pytest.raises(HarnessError, match="was measured again: it holds the records of"):
        compare(old, new)


def test_a_record_that_was_cut_off_is_no_pass(tmp_path: Path) -> None:
    """Four of five repeats are left, and nothing is missing from the cells."""
    old, lines = written(tmp_path / "old", lines_of("full")), lines_of("full", 20, NEW)
    assert compare(old, written(tmp_path / "whole", lines), tolerances="score:1pt") == 0
    cut = written(tmp_path / "cut", [*lines[:-1], lines[-1][:-300]])
    with pytest.raises(HarnessError, match="records are damaged, and what they held is not compared"):
        compare(old, cut, tolerances="score:1pt")
    with pytest.raises(HarnessError, match="records are damaged"):
        compare(cut, written(tmp_path / "later", lines_of("full", 40)), tolerances="score:1pt")


def test_a_label_that_vanished_is_one(tmp_path: Path) -> None:
    old = written(tmp_path / "old", lines_of("full") + lines_of("lora", 9))
    assert compare(old, written(tmp_path / "new", lines_of("full", 20, NEW)), tolerances="score:1pt") == 1
