"""One metric over the commits of its records: what makes a point, what begins another series."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cli import main
from harness.errors import HarnessError
from harness.record import Record
from harness.report.comparing.history import history, history_rows
from harness.report.statistics.intervals import t_interval
from harness.store import Store

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))


def at(commit: str, seconds: float, *, minute: int, dirty: bool = False, **changes: Any) -> Record:
    environment = make.CPU.model_copy(update={"commit": commit * 40, "dirty": dirty, "source_checksum": commit * 64})
    record = make.make_record("full", seed=minute, minute=minute, environment=environment, **changes)
    return record.model_copy(update={"train": record.train.model_copy(update={"step_seconds_mean": seconds})})


RECORDS = [
    at("b", 1.0, minute=1),
    at("a", 1.2, minute=2),
    at("b", 1.1, minute=3),
    at("c", 1.5, minute=4, dirty=True),
    at("d", 9.0, minute=5, suite=make.make_suite(version=2)),
]


def test_points_are_commits_in_the_order_of_their_first_run() -> None:
    first, second = history(RECORDS, "step_time").items()
    assert first[0].question == "version 1, packaged-v1"
    assert [point.commit for point in first[1]] == ["b" * 12, "a" * 12, f"{'c' * 12} + source {'c' * 8}"]
    assert first[1][0].values == (1.0, 1.1)
    assert first[1][0].interval == pytest.approx(t_interval([1.0, 1.1]))
    assert first[1][1].interval is None
    assert second[0].question == "version 2, packaged-v1"
    assert [point.mean for point in second[1]] == [9.0]


def test_a_row_tells_the_change_against_the_point_before() -> None:
    rows = history_rows(history(RECORDS, "step_time"), "step_time")
    assert [row["change"] for row in rows] == ["–", "+14.29%", "+25.00%", "–"]
    assert rows[0]["mean"] == "1.050 s"


def test_scores_are_the_mean_over_tasks_or_one_task() -> None:
    scores = {s.task: s.value for s in RECORDS[1].scores if s.headline}
    (_, points), *_ = history(RECORDS, "score").items()
    assert points[1].values == (pytest.approx(sum(scores.values()) / 8),)
    (_, points), *_ = history(RECORDS, "piqa").items()
    assert points[1].values == (scores["piqa"],)


def test_what_nobody_measured_or_nobody_knows_is_one_sentence() -> None:
    with pytest.raises(HarnessError, match=r"there is no metric 'step_tim'; did you mean 'step_time'\?"):
        history(RECORDS, "step_tim")
    with pytest.raises(HarnessError, match="no run with a result has the metric 'reserved_memory'"):
        history(RECORDS, "reserved_memory")


def test_the_command_prints_a_table_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for record in RECORDS:
        Store(tmp_path / "results" / "records").append(record)
    asked = ["history", "--suite", "quick", "--metric", "step_time"]
    assert main([*asked, "--plot", "h.svg"]) == 0
    out = capsys.readouterr().out
    assert "+14.29%" in out and out.endswith("\nh.svg\n")
    picture = Path("h.svg").read_text()
    assert "step time, s" in picture and "bbbbbbbbbbbb" in picture
    assert main([*asked, "--json"]) == 0
    assert [len(point["values"]) for point in json.loads(capsys.readouterr().out)] == [2, 1, 1, 1]
    assert main([*asked, "--label", "lora"]) == 2
    assert "there is no such record of suite 'quick'" in capsys.readouterr().err
    assert main([*asked, "--plot", "h.gif"]) == 2
    assert "expected a file that ends in" in capsys.readouterr().err
