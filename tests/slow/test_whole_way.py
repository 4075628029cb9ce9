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
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pdflatex import compiled, in_tex
from tests.plug_ins import install

pytestmark = pytest.mark.slow

METHOD = '''
"""Signum: signs of the momentum as updates (arXiv 1802.04434)."""

from harness.plugin import MethodConfig, OptimizerMethod


class SignumConfig(MethodConfig):
    """Settings of Signum."""

    beta: float = 0.9
    """Decay of the momentum."""


class SignumMethod(OptimizerMethod):
    """Every parameter is trained with Signum."""

    Config = SignumConfig
    summary = "the sign of the momentum"

    def optimizer(self, named, learning_rate, context):
        import torch

        class Signum(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure=None):
                for group in self.param_groups:
                    for p in group["params"]:
                        if p.grad is not None:
                            state = self.state[p]
                            if not state:
                                state["momentum"] = torch.zeros_like(p)
                            state["momentum"].lerp_(p.grad, 1 - group["beta"])
                            p.sub_(state["momentum"].sign(), alpha=group["lr"])

        return Signum([p for _, p in named], {"lr": learning_rate, "beta": self.config.beta})
'''
TASK = """
task: capitals
dataset_path: json
dataset_kwargs:
  data_files: {test: capitals.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: "Capital of {{country}}:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
COUNTRIES = ["France", "Italy", "Norway", "Spain", "Peru", "Chile", "Japan", "Kenya"]
SUITE = """
name = "mine"
version = 1
protocol = "mine-v1"
description = "A model, data, a task and a method of my own."
models = ["my-llama"]
labels = ["base", "full", "lora", "signum"]
seeds = [1]

[base_models.my-llama]
folder = "weights/my-llama"

[datasets.my-chats]
file = "chats.csv"

[tasks]
include_path = "tasks"

[train]
data = "my-chats"
prompt = "chat"
loss_on = "answer"
packing = false
sequence_length = 128
batch_size = 2
gradient_accumulation_steps = 1
num_steps = 4
learning_rate = 1e-3
lr_scheduler = "linear"
warmup_steps = 0
max_grad_norm = 1.0
dtype = "fp32"
validation_rows = 2

[evaluation]
tasks = ["capitals"]
rows = "own"
num_fewshot = 0
"""
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
    (folder / "tasks").mkdir()
    (folder / "tasks" / "capitals.yaml").write_text(TASK)
    rows = [
        {"country": name, "choices": ["Paris", "Rome", "Oslo"], "answer": i % 3} for i, name in enumerate(COUNTRIES)
    ]
    (folder / "tasks" / "capitals.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    install(folder / "site", "my-signum", "1.0", "my_signum.py", METHOD, entry="signum = my_signum:SignumMethod")
    (folder / "mine.toml").write_text(SUITE)
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
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness", *words],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == code, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_everything_is_known_by_its_own_name_before_anything_runs(place: Path) -> None:
    assert "signum" in harness(place, "list", "methods")
    assert "capitals" in harness(place, "list", "benchmarks", "--include-path", "tasks")
    shown = harness(place, "show-data", "--suite", "mine.toml", "--n", "1")
    assert "⟦" in shown and "assistant" in shown
    dry = harness(place, "run", "--suite", "mine.toml", "--dry-run")
    for label in ("base", "full", "lora", "signum"):
        assert re.search(rf"my-llama\W+{label}\b", dry), dry


def test_which_method_fits_is_answered_for_ones_own_model(place: Path) -> None:
    told = json.loads(harness(place, "plan", "--suite", "mine.toml", "--fit", "--device", "rtx-4090", "--json"))
    text = harness(place, "plan", "--suite", "mine.toml", "--fit", "--device", "rtx-4090")
    assert told and all(line["model"] == "my-llama" for line in told)
    assert {line["label"] for line in told} == {"full", "lora", "signum"}
    assert all(re.search(rf"\b{label}\b", text) for label in ("full", "lora", "signum"))


@pytest.fixture(scope="module")
def ran(place: Path) -> Path:
    """The folder, once the suite has run."""
    harness(place, "run", "--suite", "mine.toml", "--keep-weights")
    return place


def test_records_and_weights_carry_the_names(ran: Path) -> None:
    lines = [json.loads(line) for line in (ran / "results" / "records" / "mine.jsonl").read_text().splitlines()]
    assert [(line["status"], line["spec"]["label"]) for line in lines] == [
        ("ok", label) for label in ("base", "full", "lora", "signum")
    ]
    assert {line["spec"]["model"]["name"] for line in lines} == {"my-llama"}
    assert {line["spec"]["train"]["data"] for line in lines if line["spec"]["train"]} == {"my-chats"}
    assert all([score["task"] for score in line["scores"]][:1] == ["capitals"] for line in lines)
    assert all(score["n"] == len(COUNTRIES) for line in lines for score in line["scores"])
    weights = ran / "results" / "records" / "weights"
    kept = {folder.name.rsplit("-", 1)[0]: folder for folder in weights.iterdir()}
    assert {f"my-llama-{label}-1" for label in ("full", "lora", "signum")} <= set(kept)
    card = (kept["my-llama-signum-1"] / "README.md").read_text()
    assert all(word in card for word in ("my-llama", "signum", "my-chats", "capitals"))
    assert str(ran) not in card


def test_a_run_is_found_by_its_name_and_scored_again(ran: Path) -> None:
    assert "my-llama" in harness(ran, "show", "my-llama/signum/1")
    assert "signum" in harness(ran, "show", "last")
    said = harness(
        ran,
        "evaluate",
        "signum",
        "--benchmark",
        "capitals",
        "--include-path",
        "tasks",
        "--limit",
        "2",
        "--catalogue",
        "catalogue.toml",
        code=2,
    )
    assert said == ""
    assert "4 of 4 runs done" in harness(ran, "status", "--suite", "mine.toml").replace("\n", " ")


def test_report_and_pages_carry_the_names(ran: Path) -> None:
    out = harness(ran, "report", "--suite", "mine.toml", "--out", "report")
    assert "report/report.html" in out and "signum" in out
    for name in ("report.md", "report.html", "report.tex", "scores.csv", "report.json"):
        text = (ran / "report" / name).read_text().replace("{}", "").replace("\\-", "")
        assert all(word in text for word in ("my-llama", "signum", "capitals")), name
    assert "in its place" not in (ran / "report" / "report.md").read_text()  # an own name is no stand-in


@in_tex
def test_the_table_stands_in_a_paper_of_two_columns(ran: Path) -> None:
    choice = [
        "--suite",
        "mine.toml",
        "--table",
        "label, tracked_peak, capitals, avg",
        "--rows",
        "base, full, lora, signum",
    ]
    harness(ran, "report", *choice, "--style", "interval", "--out", "paper/table.tex")
    table = (ran / "paper" / "table.tex").read_text()
    assert all(word in table for word in ("base", "signum", "my-llama"))
    (ran / "paper" / "report.tex").write_text(PAPER)
    log = compiled(ran / "paper")
    assert "Overfull \\hbox" not in log
    markdown = harness(ran, "report", *choice, "--format", "md")
    assert "signum" in markdown and "capitals" in markdown.lower()
