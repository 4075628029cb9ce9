"""What stood in for what is said wherever the name is: in headings, tables, lines and files; own names have no mark."""

from __future__ import annotations

import io
import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from harness.commands._selection import Selection
from harness.commands.run import _dry_run
from harness.report.pages.terminal import terminal_table
from harness.report.reading.summary import summarize
from harness.report.write import write_report
from harness.settings import TrainSettings
from harness.stand_ins import called, data_stand_ins, mark_of, model_stand_in
from harness.store import Contents, Store
from tests.records import TRAIN, make_spec

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))
MARK = "llama2-7b (a folder in its place; gsm8k: a file in its place)"


def of(name: str, source: str | None, **changes: Any) -> Any:
    return make_spec(model={"name": name, "source": source, "checksum": "0"}, **changes)


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("llama2-7b", "folder", "a folder in its place"),
        ("llama2-7b", "hub:someone/else", "hub:someone/else in its place"),
        ("smollm2-135m", "folder", "a folder in its place"),
        ("smollm2-135m", "hub:a/b", "hub:a/b in its place"),
        ("llama2-7b", "hub:meta-llama/Llama-2-7b-hf", None),
        ("smollm2-135m", "packaged:smollm2-135m", None),
        ("llama2-7b", "random", None),
        ("llama2-7b", None, None),
        ("mine", "folder", None),
        ("mine", "hub:a/b", None),
    ],
)
def test_a_named_model_is_marked_where_something_else_was_in_its_place(
    name: str, source: str | None, said: str | None
) -> None:
    spec = of(name, source)
    assert model_stand_in(spec) == said
    assert called(spec) == (name if said is None else f"{name} ({said})")


def test_a_data_set_is_marked_where_a_file_was_in_its_place() -> None:
    train = TrainSettings(**{**TRAIN.model_dump(), "data": "gsm8k"})
    assert data_stand_ins(of("mine", "folder", train=train, sources={"train": "file:0:text"})) == {
        "gsm8k": "a file in its place"
    }
    assert data_stand_ins(of("mine", "folder", train=train, sources={"train": "github:a/b@0:c"})) == {}
    own = TrainSettings(**{**TRAIN.model_dump(), "data": "my-rows"})
    assert mark_of([of("mine", "folder", train=own, sources={"train": "file:0"})]) == ""


@pytest.fixture(scope="module")
def reported() -> tuple[Any, Contents]:
    train = {**TRAIN.model_dump(), "data": "gsm8k"}
    suite = make.make_suite(models=("llama2-7b",), labels=("full",), seeds=(1, 2))
    spec = {
        "model": {"name": "llama2-7b", "source": "folder", "checksum": "e" * 64},
        "train": TrainSettings.model_validate(train),
        "sources": {"evaluation": "packaged", "train": "file:" + "f" * 64},
    }
    records = [make.make_record(label="full", seed=seed, suite=suite, spec=spec, minute=seed) for seed in (1, 2)]
    return suite, Contents(tuple(records))


def test_every_page_of_a_report_says_it(reported: tuple[Any, Contents], tmp_path: Path) -> None:
    written = write_report(*reported, tmp_path, ("md", "html", "latex", "json", "csv"))
    files = {file.suffix: file for file in tmp_path.iterdir() if file.suffix in (".md", ".html", ".tex")}
    assert set(files) == {".md", ".html", ".tex"} and written
    for file in files.values():
        assert "a folder in its place" in file.read_text(encoding="utf-8"), file
        assert "gsm8k: a file in its place" in file.read_text(encoding="utf-8").replace("\\_", "_"), file
    (page,) = [json.loads(file.read_text()) for file in tmp_path.rglob("report.json")]
    assert page["labels"][0]["stands_in"] == "a folder in its place; gsm8k: a file in its place"
    assert any(MARK in file.read_text() for file in tmp_path.rglob("*.csv"))


def test_the_terminal_says_it(reported: tuple[Any, Contents]) -> None:
    text = io.StringIO()
    terminal_table(*reported, Console(file=text, width=200))
    assert MARK in text.getvalue()


def test_a_dry_run_says_it(reported: tuple[Any, Contents], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite, contents = reported
    assert _dry_run(Selection(suite, {}, {}, (contents.records[0].spec,)), Store(tmp_path)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "a folder in its place" in printed and "gsm8k: a file" in printed


def test_weights_of_two_kinds_under_one_name_never_share_a_table(reported: tuple[Any, Contents]) -> None:
    suite, contents = reported
    first, second = contents.records
    other = second.spec.model_copy(update={"model": {**second.spec.model, "checksum": "d" * 64}})
    mixed = Contents((first, second.model_copy(update={"spec": other, "run_id": other.run_id})))
    summary = summarize(suite, mixed)
    assert [run.record.seed for row in summary.rows for run in row.runs if run.record is not None] == [2]
    assert any("other weights under the name llama2-7b" in note for note in summary.notes)
