"""What ``harness compare`` says to a terminal, to JUnit's readers and to GitHub's workflows."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree as ET

import junitparser
import pytest

from harness.cli import main
from harness.errors import HarnessError
from harness.report.comparing.annotations import SHOWN, comparison_annotations
from harness.report.comparing.cells import Comparison
from harness.report.comparing.junit import comparison_junit
from harness.report.comparing.text import comparison_text
from tests.comparing import NEW, NOISE, compare, runs

SLOW = [1.5 * seconds for seconds in NOISE]


def found(*labels: str, **changes: object) -> Comparison:
    """``full`` is half as slow again; of the others each is as it was, and one label is gone."""
    old = [record for label in ("full", "lora", "gone") for record in runs(label, NOISE)]
    new = runs("full", SLOW, later=20, environment=NEW) + runs("lora", NOISE, later=20, environment=NEW)
    return compare(old, new, "step_time:2%,score:1pt")


def test_junit_counts_as_an_independent_reader_counts_them() -> None:
    comparison = found()
    read = junitparser.JUnitXml.fromstring(comparison_junit(comparison).encode())
    cases = [case for suite in read for case in suite]
    kinds = [[type(result).__name__ for result in case.result] for case in cases]
    assert len(cases) == len(comparison.cells) == read.tests
    assert kinds.count(["Failure"]) == read.failures == 2  # slower, and gone
    assert read.errors == 0
    (slower,) = (case for case in cases if case.result and case.result[0].type == "worse")
    assert slower.classname == "quick / tiny / full" and slower.name == "step time"
    assert "1.000 s -> 1.500 s (+50.00%), tolerance 2%" in slower.result[0].message


def test_junit_of_a_comparison_of_nothing_is_no_pass() -> None:
    same = compare(runs("full", NOISE), runs("full", NOISE))
    read = junitparser.JUnitXml.fromstring(comparison_junit(same).encode())
    assert read.errors == 1 and read.skipped == read.tests - 1
    (error,) = (case.result[0] for suite in read for case in suite if case.name == "something was compared")
    assert "was measured again" in error.message


def test_junit_holds_whatever_a_record_may_say() -> None:
    hostile = "a\x00b\x1bc\ufffe <&\"' é"
    old, new = runs(hostile, NOISE), runs(hostile, SLOW, later=20, environment=NEW)
    root = ET.fromstring(comparison_junit(compare(old, new, "step_time:2%")).encode())
    assert {case.get("classname") for case in root.iter("testcase")} == {"quick / tiny / a?b?c? <&\"' é"}


def test_annotations_are_one_line_each_with_what_the_runner_would_take_apart_escaped() -> None:
    label = "a::b,c%\n::error::planted"
    comparison = compare(runs(label, NOISE), runs(label, SLOW, later=20, environment=NEW), "step_time:2%")
    lines = comparison_annotations(comparison).splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == ["::error", "::notice"]
    title, message = lines[0].removeprefix("::error title=").split("::", 1)
    assert title == "worse%3A quick / tiny / a%3A%3Ab%2Cc%25 %3A%3Aerror%3A%3Aplanted"
    assert "(+50.00%25)" in message
    assert lines[1].startswith("::notice title=harness compare::old -> new: 1 worse")


def test_of_more_annotations_than_are_shown_the_last_is_a_count() -> None:
    labels = [f"label-{i}" for i in range(SHOWN + 3)]
    old = [record for label in labels for record in runs(label, NOISE)]
    new = [record for label in labels for record in runs(label, SLOW, later=20, environment=NEW)]
    lines = comparison_annotations(compare(old, new, "step_time:2%")).splitlines()
    assert len([line for line in lines if line.startswith("::error")]) == SHOWN
    assert lines[SHOWN - 1].endswith("::and 4 more")


def test_text_tells_first_what_fails_and_counts_the_rest() -> None:
    top, parts, below = comparison_text(found())
    assert top[0].startswith("old -> new: 1 worse, 1 missing")
    assert [part.title for part in parts] == ["What fails"]
    assert [row["verdict"] for row in parts[0].rows] == ["worse", "missing"]
    assert any(line.startswith("not shown: ") and " same" in line for line in below)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_given_text_and_a_pipe_markdown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = _written(tmp_path)
    assert main(["compare", old, new, "--fail-on", "step_time:2%"]) == 1
    assert capsys.readouterr().out.startswith("## harness compare: 1 worse")
    terminal = _Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["compare", old, new, "--fail-on", "step_time:2%"]) == 1
    words = " ".join(terminal.getvalue().split())  # a long path above breaks a line where it likes
    assert "1 worse" in words and "What fails" in words
    assert "<details>" not in words


def test_more_formats_go_into_files_whatever_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = _written(tmp_path)
    files = [f"junit={tmp_path / 'gate.xml'}", f"md={tmp_path / 'page.md'}", f"json={tmp_path / 'all.json'}"]
    asked = ["compare", old, new, "--format", "github", *(word for file in files for word in ("--write", file))]
    assert main([*asked, "--fail-on", "step_time:2%"]) == 1
    assert capsys.readouterr().out.startswith("::error title=worse")
    assert junitparser.JUnitXml.fromfile(str(tmp_path / "gate.xml")).failures == 1
    assert (tmp_path / "page.md").read_text().startswith("## harness compare: 1 worse")
    assert main(["compare", old, old, "--write", f"junit={tmp_path / 'same.xml'}"]) == 2
    assert junitparser.JUnitXml.fromfile(str(tmp_path / "same.xml")).errors == 1


@pytest.mark.parametrize("wrong", ["junit", "text=out.txt", "junit=", "xml=out.xml"])
def test_what_cannot_be_written_is_one_sentence(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "a", "b", "--write", wrong])
    assert f"'{wrong}' is not FORMAT=FILE with md, json, junit or github" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    from harness.commands.compare import compare as command

    old, new = _written(tmp_path)
    (tmp_path / "taken").write_text("")
    with pytest.raises(HarnessError, match="cannot be written"):
        command(old, new, files=[("junit", tmp_path / "taken" / "gate.xml")])


def _written(folder: Path) -> tuple[str, str]:
    sides = {"old": runs("full", NOISE), "new": runs("full", SLOW, later=20, environment=NEW)}
    for name, records in sides.items():
        (folder / name).mkdir()
        (folder / name / "quick.jsonl").write_text("".join(f"{record.model_dump_json()}\n" for record in records))
    return str(folder / "old"), str(folder / "new")
