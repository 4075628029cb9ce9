"""A group in a report: its categories and its overall score are the recorded ones, and nothing averages its tasks."""

from __future__ import annotations

import csv
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from harness.record import Record, Score
from harness.record_versions import parse_record
from harness.report.pages.groups import groups_of, subtask_table
from harness.report.pages.markdown import markdown
from harness.report.pages.page import report_document
from harness.report.pages.tables import cost_table, score_table
from harness.report.reading.summary import summarize
from harness.report.table import Table
from harness.report.write import terminal_table, write_report
from harness.settings import EvaluationSettings
from harness.store import Contents
from harness.suite import Suite

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))

SUBJECTS = {"mmlu_astronomy": (30, 40), "mmlu_anatomy": (1, 10), "mmlu_sociology": (5, 50)}
STEM, SOCIAL = ("mmlu_anatomy", "mmlu_astronomy"), ("mmlu_sociology",)
GROUPS = {"mmlu_stem": STEM, "mmlu_social_sciences": SOCIAL, "mmlu": (*STEM, *SOCIAL)}


def titles_of(table: Table) -> list[str]:
    """Return the headings without their n."""
    return [re.sub(r", n=\d+$", "", column.title) for column in table.columns]


def score(task: str, right: int, n: int, **changes: Any) -> Score:
    plain = {"unit": "fraction", "higher_is_better": True, "task_version": "2", "num_fewshot": 5, "stderr": None}
    return Score(**{**plain, "task": task, "metric": "acc", "value": right / n, "n": n, **changes})


def scores() -> tuple[Score, ...]:
    found = [score(task, right, n) for task, (right, n) in SUBJECTS.items()]
    for group, tasks in GROUPS.items():
        right, n = (sum(SUBJECTS[task][i] for task in tasks) for i in (0, 1))
        found.append(score(group, right, n, subtasks=tasks, headline=group == "mmlu"))
    return tuple(found)


def suite_of(*tasks: str) -> Suite:
    evaluation = EvaluationSettings(tasks=tasks, rows="packaged-scored", num_fewshot=5)
    found: Suite = make.make_suite(labels=("lora", "full"), evaluation=evaluation)
    return found


def grouped(suite: Suite, *more: Score) -> Contents:
    record: Record = make.make_record("lora", suite=suite, scores=(*more, *scores()))
    return Contents((record,))


def test_the_overall_column_is_the_groups_own_score_and_stands_for_the_average() -> None:
    suite = suite_of("mmlu")
    summary = summarize(suite, grouped(suite))
    table = score_table(summary, "tiny")
    titles = titles_of(table)
    assert titles == ["label", "mmlu_stem (2 tasks)", "mmlu_social_sciences (1 task)", "mmlu overall (3 tasks)"]
    assert [str(cell).split(" ")[0] for cell in table.rows[0]] == ["lora", "62.0", "10.0", "36.0"]
    assert table.columns[3].title.endswith(", n=100")
    assert cost_table(summary, "tiny").rows[0][1] == table.rows[0][3]


def test_in_an_average_with_other_tasks_a_group_counts_as_one() -> None:
    suite = suite_of("piqa", "mmlu")
    summary = summarize(suite, grouped(suite, score("piqa", 64, 100, headline=True)))
    table = score_table(summary, "tiny")
    assert titles_of(table)[-1] == "average of 2 tasks"
    assert str(table.rows[0][-1]).startswith("50.0 ")


def test_the_tasks_of_a_group_have_a_table_of_their_own() -> None:
    suite = suite_of("mmlu")
    summary = summarize(suite, grouped(suite))
    (group,) = groups_of(summary)
    table = subtask_table(summary, "tiny", group)
    assert [column.title for column in table.columns] == ["task", "category", "lora", "full"]
    assert [row[:2] for row in table.rows] == [
        ("mmlu_anatomy", "mmlu_stem"),
        ("mmlu_astronomy", "mmlu_stem"),
        ("mmlu_sociology", "mmlu_social_sciences"),
    ]
    assert [str(row[2]).split(" ")[0] for row in table.rows] == ["10.0", "75.0", "10.0"]
    assert {row[3] for row in table.rows} == {"not run"}
    page = markdown(report_document(summary, {}), Path())
    assert "mmlu by task" in page
    assert "every item counts once" in page


def test_a_group_over_other_tasks_added_later_stands_apart() -> None:
    suite = suite_of("mmlu")
    (record,) = grouped(suite).records
    later = (score("mmlu_stem", 5, 10, subtasks=STEM[:1]), score("mmlu", 5, 10, subtasks=STEM[:1], headline=True))
    added = make.make_record("lora", suite=suite, minute=1, kind="evaluation", of=record.uuid, scores=later)
    summary = summarize(suite, Contents((record, added)))
    row = score_table(summary, "tiny").rows[0]
    titles = titles_of(score_table(summary, "tiny"))
    assert titles[3] == "mmlu overall (3 tasks)"
    assert titles[4:] == ["mmlu_stem (1 task)", "mmlu (1 task)"]
    assert (str(row[3])[:4], str(row[5])[:4]) == ("36.0", "50.0")
    assert str(cost_table(summary, "tiny").rows[0][1]).startswith("36.0 ")


def test_a_group_without_a_score_is_a_column_still() -> None:
    suite = suite_of("mmlu")
    summary = summarize(suite, Contents((make.make_record("lora", suite=suite, status="failed", reason="why"),)))
    assert titles_of(score_table(summary, "tiny")) == ["label", "mmlu", "average of 1 task"]


def test_terminal_and_csv_show_categories_and_overall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = suite_of("mmlu")
    terminal_table(suite, grouped(suite), Console(width=118))
    shown = capsys.readouterr().out
    for words in ("stem", "social", "overall", "62.0", "10.0", "36.0", "n=100"):
        assert words in shown
    assert "astronomy" not in shown.partition("cost")[0]
    assert "average" not in shown.partition("cost")[0]
    write_report(suite, grouped(suite), tmp_path, ["csv"])
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as stream:
        rows = {row["task"]: row for row in csv.DictReader(stream)}
    assert {task: row["num_subtasks"] for task, row in rows.items() if row["num_subtasks"] != "0"} == {
        "mmlu_stem": "2",
        "mmlu_social_sciences": "1",
        "mmlu": "3",
    }
    assert [task for task, row in rows.items() if row["headline"] == "True"] == ["mmlu"]


def test_a_record_from_before_there_were_groups_loads_and_weighs_tasks_alike() -> None:
    suite = suite_of(*SUBJECTS)
    alone = tuple(score(task, right, n, headline=True) for task, (right, n) in SUBJECTS.items())
    data = make.make_record("lora", suite=suite, scores=alone).model_dump(mode="json")
    for one in data["scores"]:
        del one["subtasks"]
    del data["spec"]["evaluation"]["subtasks"]
    record = parse_record(data, "here")
    assert record.run_id == record.spec.run_id
    table = score_table(summarize(suite, Contents((record,))), "tiny")
    assert titles_of(table)[-1] == "average of 3 tasks"
    assert str(table.rows[0][-1]).startswith(f"{100 * (0.75 + 0.1 + 0.1) / 3:.1f} ")
