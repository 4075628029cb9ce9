"""The files of a report and the table on a terminal."""

from __future__ import annotations

import csv
import io
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from harness.errors import HarnessError
from harness.report.write import terminal_table, write_report
from harness.store import Contents, Store

FIXTURES = Path(__file__).parent / "fixtures_report"
make = SimpleNamespace(**runpy.run_path(str(FIXTURES / "factory.py")))
mixed = make.mixed


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_both_formats_write_every_file_and_nothing_else(tmp_path: Path) -> None:
    suite, contents = mixed()
    files = write_report(suite, contents, tmp_path / "out", ["md", "csv"])
    names = ("memory_score", "memory_loss", "tasks", "memory", "loss", "loss_tokens", "loss_seconds", "blocks")
    plots = [f"plots/{name}.{kind}" for name in names for kind in ("svg", "png", "pdf")]
    found = [file.relative_to(tmp_path / "out").as_posix() for file in files]
    assert found == ["report.md", "scores.csv", "runs.csv", *plots]
    assert sorted(p for p in (tmp_path / "out").rglob("*") if p.is_file()) == sorted(files)
    text = files[0].read_text(encoding="utf-8")
    assert all(f"({name})" in text for name in plots if not name.endswith(".pdf"))


def test_every_format_writes_its_files_pages_first(tmp_path: Path) -> None:
    suite, contents = mixed()
    files = write_report(suite, contents, tmp_path, ["md", "latex", "html", "csv", "json"])
    found = [file.relative_to(tmp_path).as_posix() for file in files]
    pages = ["report.md", "report.tex", "tables/tiny-scores.tex", "tables/tiny-cost.tex", "report.html"]
    assert found[:8] == [*pages, "scores.csv", "runs.csv", "report.json"]
    assert all(name.startswith("plots/") for name in found[8:])
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(files)


def test_scores_csv_holds_every_number_in_full(tmp_path: Path) -> None:
    suite, contents = mixed()
    write_report(suite, contents, tmp_path, ["csv"])
    rows = rows_of(tmp_path / "scores.csv")
    # 7 shown runs of 9 metrics, one left out, and the benchmark added later
    ok = [record for record in contents.records if record.status == "ok"]
    assert len(rows) == sum(len(record.scores) for record in ok) == 7 * 9 + 1
    lora = next(record for record in ok if record.spec.label == "lora")
    row = next(r for r in rows if r["uuid"] == lora.uuid and r["task"] == "piqa")
    score = next(score for score in lora.scores if score.task == "piqa")
    assert (float(row["value"]), float(row["stderr"]), row["n"]) == (score.value, score.stderr, "40")
    assert (row["run_id"], row["environment_id"], row["protocol"]) == (lora.run_id, lora.environment_id, "packaged-v1")
    assert (row["model"], row["seed"], row["unit"], row["headline"], row["limit"]) == (
        "tiny",
        "1",
        "fraction",
        "True",
        "",
    )
    assert [r["label"] for r in rows if r["in_table"] == "False"] == ["galore"] * 9
    assert {r["label"] for r in rows if r["task"] == "gsm8k"} == {"lora"}


def test_runs_csv_has_a_row_for_every_run_absent_ones_too(tmp_path: Path) -> None:
    suite, contents = mixed()
    write_report(suite, contents, tmp_path, ["csv"])
    rows = rows_of(tmp_path / "runs.csv")
    shown = {(r["label"], r["seed"]): r for r in rows if r["in_table"] == "True"}
    assert len(rows) == len(shown) + 1
    assert {key: r["status"] for key, r in shown.items() if "[" not in key[0]} == {
        ("base", "1"): "ok",
        ("full", "1"): "out_of_memory",
        ("full", "2"): "refused",
        ("lora", "1"): "ok",
        ("lora", "2"): "ok",
        ("galore", "1"): "ok",
        ("galore", "2"): "failed",
        ("lisa", "1"): "ok",
        ("lisa", "2"): "absent",
        ("owlore", "1"): "absent",
        ("owlore", "2"): "absent",
    }
    lora = shown["lora", "1"]
    assert lora["peak_optimizer_state_bytes"] == str(make.GIB // 100)
    assert lora["train_allocated_peak_bytes"] == ""
    assert lora["packages"] == "lm-eval==0.4.13; torch==2.13.0"
    assert shown["galore", "2"]["reason"] == make.HOSTILE
    assert shown["lisa", "2"]["run_id"] == ""


def test_runs_csv_says_what_was_measured_and_predicted_of_memory(tmp_path: Path) -> None:
    suite, contents = mixed()
    write_report(suite, contents, tmp_path, ["csv"])
    shown = {(r["label"], r["seed"]): r for r in rows_of(tmp_path / "runs.csv") if r["in_table"] == "True"}
    lora, full, galore = shown["lora", "1"], shown["full", "1"], shown["galore", "1"]
    assert lora["tracked_peak_bytes"] == str(make.make_breakdown("lora").total_bytes)
    assert (lora["tracked_peak_step"], lora["tracked_peak_moment"]) == ("1", "backward")
    assert lora["tracked_peak_weights_bytes"] == lora["predicted_peak_weights_bytes"] == str(516 * make.MIB)
    assert (lora["prediction_device"], lora["prediction_horizon"]) == ("cpu", "run")
    measured, predicted = int(lora["tracked_peak_bytes"]), int(lora["predicted_peak_bytes"])
    assert float(lora["predicted_against_measured"]) == pytest.approx(predicted / measured - 1)
    assert (full["out_of_memory_step"], full["out_of_memory_moment"]) == ("4", "backward")
    assert full["out_of_memory_rest_bytes"] == str(400 * make.MIB)
    assert int(full["predicted_peak_bytes"]) > 0 and full["predicted_against_measured"] == ""
    assert (galore["predicted_peak_bytes"], galore["allocated_peak_step"]) == ("", "")


def test_on_cuda_runs_csv_has_the_step_and_moment_of_the_allocated_peak(tmp_path: Path) -> None:
    suite = make.make_suite(labels=("full",))
    busy = make.CUDA.model_copy(update={"device_busy": "3 of 80 bytes in use before the run"})
    record = make.with_memory(make.make_record("full", suite=suite, environment=busy))
    write_report(suite, Contents((record,)), tmp_path, ["csv"])
    (row,) = rows_of(tmp_path / "runs.csv")
    assert (row["allocated_peak_step"], row["allocated_peak_moment"]) == ("7", "optimizer")
    assert row["device_busy"] == "3 of 80 bytes in use before the run"
    assert float(row["predicted_against_measured"]) == pytest.approx(0.0159, abs=1e-4)


@pytest.mark.parametrize(("format", "file", "unneeded"), [("csv", "runs.csv", ""), ("json", "report.json", "pandas")])
def test_numbers_alone_load_neither_matplotlib_nor_torch(tmp_path: Path, format: str, file: str, unneeded: str) -> None:
    suite = make.make_suite()
    store = Store(tmp_path / "records")
    store.append(make.make_record("lora"))
    (tmp_path / "suite.json").write_text(suite.model_dump_json(), encoding="utf-8")
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from harness.report.write import write_report\n"
        "from harness.store import Store\n"
        "from harness.suite import Suite\n"
        "suite = Suite.model_validate_json(Path('suite.json').read_text())\n"
        "write_report(suite, Store(Path('records')).read('quick'), Path('out'), ['{format}'])\n"
        "loaded = {'matplotlib', 'torch', 'harness.engine', 'harness.evaluation', '@'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    program = program.replace("{format}", format).replace("@", unneeded)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    text = (tmp_path / "out" / file).read_text(encoding="utf-8")
    assert all(label in text for label in suite.labels)


def test_an_unknown_or_missing_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    suite, contents = mixed()
    with pytest.raises(HarnessError, match="no report format 'mdd'; did you mean 'md'"):
        write_report(suite, contents, tmp_path / "out", ["mdd"])
    with pytest.raises(HarnessError, match="needs a format"):
        write_report(suite, contents, tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    suite, contents = mixed()
    with pytest.raises(HarnessError, match=r"cannot be made: .*; name another with --out"):
        write_report(suite, contents, tmp_path / "file" / "out", ["csv"])


def test_a_file_that_cannot_be_replaced_is_one_sentence_and_leaves_nothing_beside(tmp_path: Path) -> None:
    (tmp_path / "scores.csv" / "inside").mkdir(parents=True)
    suite, contents = mixed()
    with pytest.raises(HarnessError, match=r"scores\.csv: cannot be written"):
        write_report(suite, contents, tmp_path, ["csv"])
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


def test_no_record_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="harness run --suite quick"):
        write_report(make.make_suite(), Contents(()), tmp_path / "out", ["md", "csv"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_table_stays_within_120_columns(terminal: bool) -> None:
    suite, contents = mixed()
    page = io.StringIO()
    terminal_table(suite, contents, Console(file=page, width=120, force_terminal=terminal, color_system=None))
    lines = page.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 120
    assert any("not a ranking" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_label_is_lost_and_no_digit_cut_on_a_narrow_terminal(width: int) -> None:
    suite, contents = mixed()
    page, wide = io.StringIO(), io.StringIO()
    terminal_table(suite, contents, Console(file=page, width=width))
    terminal_table(suite, contents, Console(file=wide, width=1000))
    lines = page.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = [Counter(text.getvalue().replace("|", " ").split()) for text in (page, wide)]
    assert set(words[0]) >= {word for word in words[1] if not set(word) <= set("-+")}
    for number in re.findall(r"\b\d+\.\d-\d+\.\d\b", wide.getvalue()):
        assert number in words[0]
    for table in page.getvalue().split("\n\n")[:-1]:
        for label in ("lora", "galore", "lisa"):
            assert any(line.startswith(label) for line in table.splitlines()), table


def test_the_plain_table_is_as_wide_as_it_needs_and_has_no_escapes() -> None:
    suite = make.make_suite()
    records = tuple(make.make_record(label, minute=i) for i, label in enumerate(suite.labels))
    page = io.StringIO()
    terminal_table(suite, Contents(records), Console(file=page, width=118))
    lines = page.getvalue().splitlines()
    base = next(i for i, line in enumerate(lines) if line.startswith("base"))
    assert len(lines[base].split("|")) == len(make.TASKS) + 3  # label, tasks, both averages
    assert "no CUDA|" not in page.getvalue()
    assert lines[base].split("|")[1].strip() == f"{100 * records[0].scores[0].value:.1f}"
    assert "\x1b" not in page.getvalue()
    assert max(len(line) for line in lines) <= 110


def test_hostile_text_does_not_become_markup_on_a_terminal() -> None:
    suite = make.make_suite(labels=("lora",), notes=("[red]note[/red] \x1b[2J",))
    record = make.make_record("lora[[bold]x[/bold]]")
    page = io.StringIO()
    terminal_table(suite, Contents((record,)), Console(file=page, width=120, force_terminal=True, color_system=None))
    assert "[bold]x[/bold]" in page.getvalue()
    assert "[red]note[/red] [2J" in page.getvalue()
    assert "\x1b[2J" not in page.getvalue()


def test_a_row_without_a_result_shows_its_status_on_the_terminal() -> None:
    suite, contents = mixed()
    page = io.StringIO()
    terminal_table(suite, contents, Console(file=page, width=118))
    shown = page.getvalue().partition("cost")[0]
    statuses = sum(line.count("OOM") for line in shown.splitlines() if line.startswith("full"))
    assert statuses == len(make.TASKS) + 3  # the eight, gsm8k and both averages


def test_the_terminal_shows_the_tracked_beside_the_predicted_peak() -> None:
    suite, contents = mixed()
    page = io.StringIO()
    terminal_table(suite, contents, Console(file=page, width=118))
    costs = page.getvalue().partition(": cost")[2].partition("\n\n")[0]
    rows = [line.split("|") for line in costs.splitlines() if "a|b" not in line and "|" in line]
    cells = {row[0].strip(): (row[1].strip(), row[2].strip()) for row in rows}
    assert (cells["lora"], cells["galore"], cells["lisa"]) == (("0.925", "0.933"), ("1.74", "–"), ("–", "1.26"))
