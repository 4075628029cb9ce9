"""MT-Bench in a report, before and after judging: a table a judge, and what was not judged said."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.evaluation.grading import Judged, mt_bench_scores
from harness.record import Judging, Record
from harness.store import Store
from tests.mt_bench import CATEGORIES, add_answers, write_bench
from tests.records import make_record


def judging(run: Record, points: float, judge: str = "gpt-4", **changes: Any) -> Record:
    """Return the record of a judging that gave all answers the same points."""
    judged = [
        Judged(81 + number, category, turn, 0, points) for number, category in enumerate(CATEGORIES) for turn in (1, 2)
    ]
    values: dict[str, Any] = {
        "judge": judge,
        "judge_version": f"{judge}-0613",
        "endpoint": "http://127.0.0.1:1",
        "references": "gpt-4",
        "prompt_version": "p" * 12,
        "max_tokens": 2048,
        "repeats": 1,
        "num_asked": 16,
        "num_parsed": 16,
        "num_unparsed": 0,
        "num_missing": 0,
        "num_out_of_range": 0,
        "repeat_means": (points,),
        "file": "judgments/x",
    }
    status, minute = changes.pop("status", "ok"), changes.pop("minute", 5)
    part = Judging(**values | changes)
    return make_record(
        uuid=f"{run.uuid}-{judge}-{minute}",
        minute=minute,
        status=status,
        reason=None if status == "ok" else "16 of 16 judgments are missing: the judge answered 401",
        spec=run.spec,
        kind="evaluation",
        of=run.uuid,
        judging=part,
        scores=mt_bench_scores(judged, part.identity) if status == "ok" else (),
    )


@pytest.fixture
def results(tmp_path: Path) -> Path:
    bench = write_bench(tmp_path / "bench")
    for number, (label, seed) in enumerate((("full", 1), ("lora", 1), ("lora", 2))):
        add_answers(tmp_path / "results", bench, label=label, seed=seed, uuid=f"u{number}")
    return tmp_path / "results"


def runs(results: Path) -> dict[str, Record]:
    return {record.uuid: record for record in Store(results).read().records if record.kind == "run"}


def report(results: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Return report.md and what was printed."""
    out = results.parent / "report"
    code = cli.main(["report", "--suite", "mt-bench-small", "--results", str(results), "--out", str(out)])
    assert code == 0
    return (out / "report.md").read_text(), capsys.readouterr().out


def test_before_judging_the_report_says_how_to_judge(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    markdown, printed = report(results, capsys)
    for text in (markdown, " ".join(printed.split())):
        assert "answers of 3 runs are not judged yet: harness judge --suite mt-bench-small --judge URL" in text
    assert "judged by" not in markdown
    assert "average" not in printed
    assert "conversation template of tiny: in training and in generation: chatml (harness)." in markdown


def test_each_judge_has_a_table_of_its_own(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, run = Store(results), runs(results)
    for number, (uuid, points) in enumerate((("u0", 6), ("u1", 4), ("u2", 5))):
        store.append(judging(run[uuid], points, minute=number + 5))
    store.append(judging(run["u0"], 9, "other", minute=20))
    markdown, printed = report(results, capsys)
    first, second = markdown.index("judged by gpt-4 (gpt-4-0613)"), markdown.index("judged by other (other-0613)")
    ours, theirs = markdown[first:second], markdown[second:]
    assert "6.00 [6.00, 6.00] " in ours
    assert "mean, n=16" in ours
    assert "9.00" not in ours
    assert "9.00 [9.00, 9.00] " in theirs
    assert "not judged" in theirs.split("Cost.")[0], "lora has no score of the other judge"
    assert "scores of different judges do not compare" in markdown
    row = next(line for line in ours.splitlines() if "4.50" in line)
    assert row.split("|")[2].strip() == "2"
    assert printed.index("judged by gpt-4") < printed.index("judged by other")
    with (results.parent / "report" / "scores.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["task"] == "mt_bench" and row["metric"] == "mean"]
    assert sorted((row["label"], row["value"], row["task_version"].split()[0]) for row in rows) == [
        ("full", "6.0", "gpt-4"),
        ("full", "9.0", "other"),
        ("lora", "4.0", "gpt-4"),
        ("lora", "5.0", "gpt-4"),
    ]


def test_another_version_under_the_same_name_is_another_judge(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, run = Store(results), runs(results)
    store.append(judging(run["u0"], 6))
    store.append(judging(run["u1"], 4, judge_version="gpt-4-turbo"))
    markdown, _ = report(results, capsys)
    assert "judged by gpt-4 (gpt-4-0613)" in markdown
    assert "judged by gpt-4 (gpt-4-turbo)" in markdown


def test_the_newest_judging_of_a_judge_counts(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, run = Store(results), runs(results)
    store.append(judging(run["u0"], 3))
    store.append(judging(run["u0"], 7, minute=9, repeats=2, repeat_means=(6.0, 8.0), num_asked=32, num_parsed=32))
    markdown, _ = report(results, capsys)
    assert "7.00" in markdown
    assert "3.00 [" not in markdown
    assert "1.414" in markdown, "standard deviation of two repeats"


def test_counts_stand_beside_the_means(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(results).append(judging(runs(results)["u0"], 6, num_parsed=11, num_unparsed=5))
    markdown, _ = report(results, capsys)
    line = next(line for line in markdown.splitlines() if line.startswith("| full") and "6.00" in line)
    assert [cell.strip() for cell in line.strip("| ").split("|")][-2:] == ["16", "5"]


def test_several_ratings_have_a_column_where_there_are_any(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, run = Store(results), runs(results)
    store.append(judging(run["u0"], 6, num_several=0))
    assert "| several ratings" not in report(results, capsys)[0]
    store.append(judging(run["u0"], 6, num_several=4, num_thinking=2, verdict="last", temperature="default", minute=9))
    markdown, _ = report(results, capsys)
    assert "at most 2048 tokens, the endpoint's own temperature, the last rating of several" in markdown
    line = next(line for line in markdown.splitlines() if line.startswith("| full") and " 4 |" in line)
    assert [cell.strip() for cell in line.strip("| ").split("|")][-3:] == ["16", "0", "4"]
    assert cli.main(["show", run["u0"].run_id, "--results", str(results)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "4 judgments give several ratings that differ, of which the last counts" in said
    assert "2 judgments begin with thinking" in said


def test_a_judging_that_failed_is_listed_until_it_succeeds(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, run = Store(results), runs(results)["u0"]
    store.append(judging(run, 0, status="failed"))
    markdown, _ = report(results, capsys)
    assert "evaluation: failed" in markdown
    assert "the judge answered 401" in markdown
    store.append(judging(run, 6, minute=9))
    assert "evaluation: failed" not in report(results, capsys)[0]


def test_show_says_who_judged_and_what_was_answered(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs(results)["u0"]
    assert cli.main(["show", run.run_id, "--results", str(results)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "8 questions, 0 turns ended at the limit of tokens" in said
    assert "conversation template chatml (harness)" in said
    Store(results).append(judging(run, 6, repeats=2, repeat_means=(5.5, 6.5)))
    assert cli.main(["show", run.run_id, "--results", str(results)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "judge gpt-4 (gpt-4-0613), prompts pppppppppppp" in said
    assert "16 with a score, 0 without, 0 missing, of 16" in said
    assert "5.500, 6.500" in said
