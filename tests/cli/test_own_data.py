"""Rows of the user's own through the real command: a CSV of conversations is shown, trained on, and told apart."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from harness.store import Store
from tests.cli.conftest import SUITE, command

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prepared")]

SMALL = (
    SUITE[: SUITE.index("[settings.full]")]
    .replace('"base", "full", "lora", "galore", "lisa", "owlore"', '"base", "full"')
    .replace("num_steps = 8", "num_steps = 3")
    .replace("validation_every_steps = 3\n", "")
)


def talk(number: int, *, is_open: bool = False) -> str:
    turns = [
        {"role": "system", "content": "Be brief,\nplease."},
        {"role": "user", "content": f'What is "{number}"?'},
        {"role": "assistant", "content": f"A number, {number}."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So."},
    ]
    return json.dumps([*turns, {"role": "user", "content": "And?"}] if is_open else turns)


@pytest.fixture
def folder(tmp_path: Path, tiny_llama: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(SMALL)
    (tmp_path / "chat.toml").write_text(SMALL.replace('prompt = "plain"', 'prompt = "chat"'))
    shutil.copytree(tiny_llama, tmp_path / "model")
    write(tmp_path, 40)
    return tmp_path


def write(folder: Path, count: int) -> None:
    with (folder / "talks.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "messages"])
        writer.writerows([i, talk(i, is_open=i < 4)] for i in range(count))


def test_a_csv_of_conversations_is_trained_on_under_its_own_name(folder: Path) -> None:
    chosen = ("--suite", "chat.toml", "--model", "smollm2-135m=model")
    given = (*chosen, "--data", "my_talks=talks.csv")
    refused = command("run", "--suite", "tiny.toml", *given[2:], "--dry-run", cwd=folder)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "data 'my_talks' are conversations, which prompt = 'plain' cannot write" in refused.stderr
    shown = command("show-data", *given, "--offline", "--n", "1", "--set", "sequence_length=512", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    answers = re.findall("⟦(.*?)⟧", shown.stdout.partition("--- example 1")[2], re.DOTALL)
    assert re.fullmatch(r"A number, \d+\.</s>", answers[0]) and answers[1:] == ["So.</s>"]
    assert "system: Be brief,\nplease.</s>" in shown.stdout
    dry = command("run", *given, "--dry-run", cwd=folder)
    assert "trains on my_talks in the place of packaged-commonsense (layout messages, " in dry.stdout
    done = command("run", *given, "--offline", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "trains on my_talks in the place of packaged-commonsense" in done.stdout
    assert "conversations do not end with an answer" in done.stdout + done.stderr
    records = {record.label: record for record in Store(folder / "results" / "records").read().records}
    assert set(records) == {"base", "full[data=my_talks]"}
    record = records["full[data=my_talks]"]
    assert record.status == "ok" and record.rows is not None and record.rows.num_source_rows == 40
    assert record.rows.num_open_rows == 4
    assert record.spec.sources["train"].endswith(":messages")
    assert command("run", *chosen, "--offline", cwd=folder).returncode == 0
    write(folder, 41)  # other rows under the same name
    assert command("run", *given, "--offline", cwd=folder).returncode == 0
    report = command("report", "--suite", "chat.toml", "--format", "md", cwd=folder)
    assert report.returncode == 0, report.stderr
    page = "\n".join(file.read_text() for file in folder.rglob("report.md"))
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")]
    assert any(row.startswith("full[data=my_talks]") for row in rows) and "full" in rows and "base" in rows
    assert "1 record is left out of the tables: other settings of label full[data=my_talks]" in page


def test_a_suite_names_its_file_and_columns(folder: Path) -> None:
    rows = [{"Frage": f"What is {i}?", "Antwort": f"{i}", "answer": "x"} for i in range(40)]
    with (folder / "rows.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    table = '[datasets.mine]\nfile = "rows.tsv"\ncolumns = { question = "Frage", answer = "Antwort" }\n'
    own = SMALL.replace('data = "packaged-commonsense"', 'data = "mine"')
    (folder / "own.toml").write_text(own + table)
    arguments = ("--suite", "own.toml", "--model", "smollm2-135m=model", "--offline")
    shown = command("show-data", *arguments, "--n", "1", cwd=folder)
    assert re.search(r"What is (\d+)\?\n⟦\1</s>⟧", shown.stdout), shown.stderr
    assert command("prepare", *arguments, cwd=folder).returncode == 0
    done = command("run", *arguments, "--method", "full", cwd=folder)
    assert done.returncode == 0, done.stderr
    for layout in ("", 'layout = "questions"\n'):
        (folder / "own.toml").write_text(own + table.replace("Frage", "Frge") + layout)
        wrong = command("run", *arguments, cwd=folder)
        assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
        assert "no row has a column 'Frge'; did you mean 'Frage'?" in wrong.stderr
