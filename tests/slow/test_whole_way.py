"""The whole way: a model folder, a CSV of conversations, a task and a method of one's own, to a table in a paper.

Every step is a command as a user would type it, in a folder of their own, in a process of its own. What is theirs must
be called as they call it in everything that is printed, written and compiled.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests import warm
from tests.pdflatex import compiled, in_tex
from tests.plug_ins import install

pytestmark = pytest.mark.slow

CHANGES = (
    ('models = ["smollm2-135m"]', 'models = ["my-llama"]'),
    ('labels = ["base", "lora", "galore"]', 'labels = ["base", "full", "lora", "my-sgd"]'),
    ('data = "packaged-commonsense"', 'data = "my-chats"'),
    ('prompt = "plain"', 'prompt = "chat"'),
    ("sequence_length = 96", "sequence_length = 128"),
    ('tasks = ["boolq", "piqa"]', 'tasks = ["quiz"]'),
    ('rows = "packaged-scored"', 'rows = "own"'),
    ("limit = 4", "limit = 8"),
    ("[settings.galore]", "[settings.my-sgd]"),
    ("update_gap = 2", "weight_decay = 0.01"),
    ('moment_dtype = "fp32"', "train_embedding = false"),
    ('projector_dtype = "fp32"', ""),
)
"""Of the file that ``harness new suite`` writes, to what one's own things are called."""
OWN = """
[base_models.my-llama]
folder = "weights/my-llama"

[datasets.my-chats]
file = "chats.csv"

[tasks]
include_path = "quiz"
"""
LABELS = ("base", "full", "lora", "my-sgd")
PAPER = r"""
\documentclass[twocolumn]{article}
\usepackage{booktabs,makecell}
\begin{document}
\input{table}
Text beside it.
\end{document}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A folder with what a user brings."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(tiny_llama, folder / "weights" / "my-llama")
    with (folder / "chats.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["messages"])
        for i in range(16):
            turns = [
                ("system", "Be short."),
                ("user", f'Say {i}, "please"\nnow'),
                ("assistant", f"{i}."),
                ("user", "Again"),
                ("assistant", f"{i}!"),
            ]
            writer.writerow([json.dumps([{"role": role, "content": text} for role, text in turns])])
    harness(folder, "new", "task", "quiz")
    harness(folder, "new", "method", "my-sgd")
    harness(folder, "new", "suite", "mine")
    written = (folder / "my-sgd" / "my_sgd_method.py").read_text()
    entry = "my-sgd = my_sgd_method:MySgdMethod"
    assert entry.replace("= ", '= "') + '"' in (folder / "my-sgd" / "pyproject.toml").read_text()
    install(folder / "site", "my-sgd", "0.1.0", "my_sgd_method.py", written, entry=entry)
    suite = (folder / "mine.toml").read_text()
    for old, new in CHANGES:
        assert suite.count(old) == 1, old
        suite = suite.replace(old, new)
    (folder / "mine.toml").write_text(suite + OWN)
    return folder


def harness(place: Path, *words: str, code: int = 0, **variables: str) -> str:
    """Return what a command prints on standard output, in the user's folder, whose plug-in is on the path."""
    cache = os.environ.get("HARNESS_CACHE")
    environment = {
        **os.environ,
        "PYTHONPATH": str(place / "site"),
        "COLUMNS": "80",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    environment |= {"HARNESS_CACHE": cache} if cache else {}
    done = warm.harness(words, cwd=place, env=environment, timeout=500)
    assert done.returncode == code, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_everything_is_checked_and_known_by_its_own_name_before_anything_runs(place: Path) -> None:
    assert "my-sgd" in harness(place, "list", "methods")
    assert "quiz" in harness(place, "list", "benchmarks", "--include-path", "quiz")
    checked = harness(place, "check", "mine.toml")
    assert all(f"my-llama/{label}/1" in checked for label in LABELS) and "4 runs" in checked
    assert "quiz: ok" in harness(place, "check", "quiz/quiz.yaml").replace("quiz/quiz.yaml", "quiz")
    assert "label my-sgd: ok" in harness(place, "check", "my-sgd").replace("method my-sgd", "label my-sgd")
    shown = harness(place, "show-data", "--suite", "mine.toml", "--n", "1")
    assert "⟦" in shown and "assistant" in shown
    dry = harness(place, "run", "--suite", "mine.toml", "--dry-run")
    assert all(re.search(rf"my-llama\W+{label}\b", dry) for label in LABELS), dry


def test_all_that_is_missing_is_listed_at_once(place: Path) -> None:
    wrong = (place / "mine.toml").read_text().replace("weights/my-llama", "nowhere").replace("chats.csv", "none.csv")
    (place / "wrong.toml").write_text(wrong.replace('labels = ["base", "full"', 'labels = ["basee", "full"'))
    said = harness(place, "check", "wrong.toml", code=1)
    assert all(word in said for word in ("nowhere", "none.csv", "basee")), said


def test_which_method_fits_is_answered_for_ones_own_model(place: Path) -> None:
    told = json.loads(harness(place, "plan", "--suite", "mine.toml", "--fit", "--device", "rtx-4090", "--json"))
    text = harness(place, "plan", "--suite", "mine.toml", "--fit", "--device", "rtx-4090")
    assert told and all(line["model"] == "my-llama" for line in told)
    assert {line["label"] for line in told} == {"full", "lora", "my-sgd"}
    assert all(re.search(rf"\b{label}\b", text) for label in ("full", "lora", "my-sgd"))


@pytest.fixture(scope="module")
def ran(place: Path) -> Path:
    """The folder, once the suite has run."""
    harness(place, "run", "--suite", "mine.toml", "--keep-weights")
    return place


def test_records_and_weights_carry_the_names(ran: Path) -> None:
    lines = [json.loads(line) for line in (ran / "results" / "records" / "mine.jsonl").read_text().splitlines()]
    assert [(line["status"], line["spec"]["label"]) for line in lines] == [
        ("ok", label) for label in ("base", "full", "lora", "my-sgd")
    ]
    assert {line["spec"]["model"]["name"] for line in lines} == {"my-llama"}
    assert {line["spec"]["train"]["data"] for line in lines if line["spec"]["train"]} == {"my-chats"}
    assert {score["task"] for line in lines for score in line["scores"]} == {"quiz"}
    assert all(score["n"] == 8 for line in lines for score in line["scores"])
    weights = ran / "results" / "records" / "weights"
    kept = {folder.name.rsplit("-", 1)[0]: folder for folder in weights.iterdir()}
    assert {f"my-llama-{label}-1" for label in ("full", "lora", "my-sgd")} <= set(kept)
    card = (kept["my-llama-my-sgd-1"] / "README.md").read_text()
    assert all(word in card for word in ("my-llama", "my-sgd", "my-chats", "quiz"))
    assert str(ran) not in card


def test_a_run_is_found_by_its_name_and_scored_again(ran: Path) -> None:
    assert "my-llama" in harness(ran, "show", "my-llama/my-sgd/1")
    assert "my-sgd" in harness(ran, "show", "last")
    again = harness(ran, "evaluate", "my-llama/lora/1", "--suite", "mine.toml", "--benchmark", "quiz", "--limit", "2")
    assert "quiz" in again
    assert "4 of 4 runs done" in harness(ran, "status", "--suite", "mine.toml").replace("\n", " ")


def test_report_and_pages_carry_the_names(ran: Path) -> None:
    out = harness(ran, "report", "--suite", "mine.toml", "--out", "report")
    assert "report/report.html" in out and "my-sgd" in out
    for name in ("report.md", "report.html", "report.tex", "scores.csv", "report.json"):
        text = (ran / "report" / name).read_text().replace("{}", "").replace("\\-", "")
        assert all(word in text for word in ("my-llama", "my-sgd", "quiz")), name
    assert "a folder in its place" not in (ran / "report" / "report.md").read_text()  # an own name is no stand-in


@in_tex
def test_the_table_stands_in_a_paper_of_two_columns(ran: Path) -> None:
    choice = [
        "--suite",
        "mine.toml",
        "--table",
        "label, tracked_peak, quiz, avg",
        "--rows",
        "base, full, lora, my-sgd",
    ]
    harness(ran, "report", *choice, "--style", "interval", "--out", "paper/table.tex")
    table = (ran / "paper" / "table.tex").read_text()
    assert all(word in table for word in ("base", "my-sgd", "my-llama"))
    (ran / "paper" / "report.tex").write_text(PAPER)
    log = compiled(ran / "paper")
    assert "Overfull \\hbox" not in log
    markdown = harness(ran, "report", *choice, "--format", "md")
    assert "my-sgd" in markdown and "quiz" in markdown.lower()
