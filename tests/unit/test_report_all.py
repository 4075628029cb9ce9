"""``harness report --all``: one page over all suites and commits, with a report of each."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.cli import main
from harness.record import Record
from harness.store import Store

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))
SECONDS = [1.0, 1.01, 0.99, 1.0, 1.3, 1.31, 1.29, 1.3]
QUICK = Path(__file__).parents[2] / "suites" / "quickstart.toml"


def at(minute: int, seconds: float, suite: str, **changes: object) -> Record:
    environment = make.CPU.model_copy(update={"commit": f"{minute:x}" * 40, "source_checksum": f"{minute:x}" * 64})
    record = make.make_record("full", minute=minute, environment=environment, **changes)
    spec = record.spec.model_copy(update={"suite": suite})
    train = record.train and record.train.model_copy(update={"step_seconds_mean": seconds})
    return record.model_copy(update={"spec": spec, "train": train})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "records"
    for suite in ("quickstart", "of-mine"):
        for minute, seconds in enumerate(SECONDS):
            Store(folder).append(at(minute, seconds, suite))
    return folder


def test_every_suite_and_commit_is_there_with_its_report_and_its_steps(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all"
    assert main(["report", "--all", "--results", str(results), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"open {out / 'index.html'}\n"
    page, text = (out / "index.html").read_text(), (out / "index.md").read_text()
    assert '<a href="quickstart/report.html">Report of quickstart</a>' in page
    assert (out / "quickstart" / "report.html").is_file() and (out / "quickstart" / "report.md").is_file()
    assert [text.count(f"| {minute:x}" + f"{minute:x}" * 11 + " ") for minute in range(8)] == [2] * 8
    assert text.count("step of tiny full at 444444444444: +30.0") == 2
    assert text.count("![") == page.count("<figure>") == 6  # step time, loss and score of two suites


def test_a_suite_that_nobody_knows_is_counted_and_says_why_it_has_no_report(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "all"
    assert main(["report", "--all", "--results", str(results), "--out", str(out)]) == 0
    page = (out / "index.html").read_text()
    assert "&#x27;of-mine&#x27; is no packaged suite; name its file with --suite FILE." in page
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "index.md", "plots", "quickstart"]


def test_a_file_of_ones_own_gives_its_records_a_report(results: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(re.sub(r'name = "quickstart"', 'name = "mine"', QUICK.read_text(), count=1))
    Store(results).append(at(3, 1.0, "mine"))
    out = tmp_path / "all"
    assert main(["report", "--all", "--suite", str(mine), "--results", str(results), "--out", str(out)]) == 0
    assert (out / "mine" / "report.html").is_file()


def test_wrong_use_is_one_sentence(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--results", str(results)]) == 2
    assert "a report is of one suite, and none is named; --table and --all take several" in capsys.readouterr().err
    assert main(["report", "--all", "--results", str(results), "--format", "csv"]) == 2
    assert "--all writes HTML and Markdown of every suite" in capsys.readouterr().err
    assert main(["report", "--all", "--results", str(tmp_path / "nothing")]) == 2
    assert "there is no record of a run in" in capsys.readouterr().err


def test_a_damaged_line_is_said_and_the_rest_is_shown(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (results / "quickstart.jsonl").open("a") as stream:
        stream.write(json.dumps({"schema": 6})[:-1] + "\n")
    assert main(["report", "--all", "--results", str(results), "--out", str(tmp_path / "all")]) == 1
    assert "warning" in capsys.readouterr().err and (tmp_path / "all" / "index.html").is_file()
