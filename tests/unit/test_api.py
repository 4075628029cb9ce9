"""The door for Python: frames beside the CSV files, reports beside the command's, and what it all costs an import."""

from __future__ import annotations

import io
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import harness
from harness.api import running
from harness.api.frames import DTYPES, OWN, runs_frame, scores_frame
from harness.cli import main
from harness.commands.requests import AssetsRequest, HowToRun, SelectionRequest, TasksRequest, WhereToRun
from harness.errors import HarnessError
from harness.expansion import load_suite
from harness.record import Record
from harness.report.numbers.frames import record_kinds
from harness.store import Store

FACTORY = Path(__file__).parent / "fixtures_report" / "factory.py"


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """Return records of a packaged suite: results, a failure, an attempt before one, and scores added later."""
    make = SimpleNamespace(**runpy.run_path(str(FACTORY)))
    suite = load_suite("quickstart")
    made = [
        make.make_record(label, seed=seed, suite=suite, minute=10 * seed + i)
        for seed in (1, 2)
        for i, label in enumerate(suite.labels)
    ]
    failed = make.make_record("lora", seed=1, suite=suite, minute=0, status="failed", reason='it\nbroke, "so"')
    ours = next(record for record in made if record.label == "full")
    added = ours.model_copy(update={"kind": "evaluation", "of": ours.uuid, "uuid": "later", "train": None})
    return [failed, *made, added]


@pytest.fixture
def folder(records: list[Record], tmp_path: Path) -> Path:
    store = Store(tmp_path / "records")
    for record in records:
        store.append(record)
    return store.folder


def command(*words: str) -> None:
    assert main(words) == 0


def test_frames_have_the_values_of_the_csv_files(folder: Path, tmp_path: Path, capsys: Any) -> None:
    """What pandas reads of the files that ``harness report`` writes is in the frames, column by column."""
    command("report", "--suite", "quickstart", "--results", str(folder), "--out", str(tmp_path), "--format", "csv")
    results = harness.read(folder)
    for name, frame, keys in (
        ("runs.csv", results.runs, ["uuid"]),
        ("scores.csv", results.scores, ["run_uuid", "task", "metric"]),
    ):
        read = pd.read_csv(io.StringIO((tmp_path / name).read_text()), dtype=object, keep_default_na=False)
        read = read[read["uuid"] != ""].rename(columns={"uuid": keys[0]} if keys[0] == "run_uuid" else {})
        columns = [column for column in read.columns if column not in ("in_table", *keys)]
        assert len(columns) > 15 and set(columns) <= set(frame.columns)
        own = frame[frame["newest"] & (frame["uuid"] != "later")].set_index(keys)
        assert set(own.index) >= set(read.set_index(keys).index)
        for _, row in read.iterrows():
            found = own.loc[tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]]]
            for column in columns:
                assert as_csv(found[column]) == row[column].replace("T", " " if column.endswith("_at") else "T"), column


def as_csv(value: Any) -> str:
    """Return a value of a frame as the files have it."""
    return "" if pd.isna(value) else str(value)


def test_every_column_has_one_dtype_whatever_there_is(records: list[Record]) -> None:
    for frame_of in (runs_frame, scores_frame):
        whole, empty = frame_of(records), frame_of([])
        base = frame_of([record for record in records if record.label == "base"])  # nothing of a training is there
        assert whole.dtypes.to_dict() == empty.dtypes.to_dict() == base.dtypes.to_dict()
        assert list(whole.columns) == list(empty.columns)
        assert set(map(str, whole.dtypes)) <= {"Int64", "float64", "boolean", "string", "datetime64[us, UTC]"}
    runs = runs_frame(records)
    assert runs["peak_optimizer_state_bytes"].dtype == "Int64"
    base = runs[runs["label"] == "base"]
    assert base["peak_optimizer_state_bytes"].isna().all() and base["step_seconds_mean"].isna().all()
    assert base["train_allocated_peak_bytes"].isna().all()
    assert set(record_kinds().values()) <= set(DTYPES)


def test_every_value_is_of_the_kind_that_its_column_says(records: list[Record]) -> None:
    """No column but words is typed by falling through: a number that nobody declared would be turned into text."""
    runs = runs_frame(records)
    words = {name for name, dtype in runs.dtypes.items() if dtype == "string"}
    typed = {name for name in record_kinds() if record_kinds()[name] is str}
    assert words - typed == {
        *("suite", "protocol", "model", "label", "method", "run_id", "environment_id", "uuid", "status", "reason"),
        *("device_type", "device_name", "python", "packages", "commit", "prediction_error"),
    }
    scores = scores_frame(records)
    assert {name for name, dtype in scores.dtypes.items() if dtype == "string"} == {
        *("suite", "protocol", "model", "label", "method", "run_id", "environment_id", "uuid", "run_uuid"),
        *("task", "metric", "unit", "task_version", "evaluation_rows"),
    }
    assert set(OWN) <= {*runs.columns, *scores.columns}


def test_newest_is_the_last_attempt_and_added_scores_are_of_their_run(records: list[Record]) -> None:
    runs, scores = runs_frame(records), scores_frame(records)
    lora = runs[(runs["label"] == "lora") & (runs["seed"] == 1)]
    assert list(zip(lora["status"], lora["newest"], strict=True)) == [("failed", False), ("ok", True)]
    assert "later" not in set(runs["uuid"])
    added = scores[scores["uuid"] == "later"]
    assert len(added) == len(records[-1].scores) > 0
    assert set(added["run_uuid"]) == {records[-1].of} and added["newest"].all()
    assert len(scores.merge(runs, left_on="run_uuid", right_on="uuid")) == len(scores)


def test_a_record_that_stands_there_twice_counts_once(folder: Path, records: list[Record]) -> None:
    file = folder / "quickstart.jsonl"
    file.write_text(file.read_text() * 2)
    results = harness.read(folder)
    assert list(results.records) == sorted(records, key=lambda record: record.in_time)
    assert results.runs["uuid"].is_unique
    (said,) = results.warnings
    assert said == f"{len(records)} records stand there more than once, by their uuid; each counts once"


def test_a_report_is_the_commands_and_a_notebook_sees_its_tables(folder: Path, tmp_path: Path, capsys: Any) -> None:
    report = harness.read(folder).report()
    files = report.save(tmp_path / "ours")
    command("report", "--suite", "quickstart", "--results", str(folder), "--out", str(tmp_path / "theirs"))
    theirs = sorted(
        file.relative_to(tmp_path / "theirs") for file in (tmp_path / "theirs").rglob("*") if file.is_file()
    )
    assert sorted(file.relative_to(tmp_path / "ours") for file in files) == theirs
    for name in theirs:
        if name.suffix not in (".png", ".svg", ".html"):
            assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name
    shown = report._repr_html_()
    whole = (tmp_path / "theirs" / "report.html").read_text()
    tables = pd.read_html(io.StringIO(shown), flavor="lxml") if _has_lxml() else None
    assert shown.count("<table") == whole.count("<table") > 2
    assert all(part not in shown for part in ("<script", "<style", "<img", "<html"))
    begin, end = shown.index("<table"), shown.index("</table>")
    assert shown[begin:end] in whole
    assert tables is None or "lora" in tables[0].to_string()
    assert "lora" in str(report) and "smollm2-135m" in str(report)
    assert (repr(report), report.suite) == ("<Report of suite quickstart>", "quickstart")


def _has_lxml() -> bool:
    import importlib.util

    return importlib.util.find_spec("lxml") is not None


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda folder: harness.read(folder / "nowhere"), "there is no such folder"),
        (lambda folder: harness.read(folder / "quickstart.jsonl"), "is no folder; name the one with its records"),
        (lambda folder: harness.read(3), "takes the path of a results folder, not int"),
        (lambda folder: harness.read(folder, suite="quikstart"), "did you mean 'quickstart'?"),
        (lambda folder: harness.read(folder).report("commonsense"), "there is no record of suite 'commonsense'"),
        (lambda folder: harness.read(folder).report("nothing"), "there is no suite 'nothing'"),
        (lambda folder: harness.read(folder).report().save(folder, formats=["pdf"]), "there is no report format 'pdf'"),
        (lambda folder: harness.run("quikstart"), "did you mean 'quickstart'?"),
        (lambda folder: harness.run("quickstart", labels="lorra", results=folder), "did you mean 'lora'?"),
        (lambda folder: harness.run("quickstart", labels=[3]), "labels takes text or a path, not 3"),
        (lambda folder: harness.run("quickstart", labels=3), "labels takes text or a path, not 3"),
        (lambda folder: harness.run("quickstart", labels=[]), "labels is empty; leave it out"),
        (lambda folder: harness.run("quickstart", seeds=[]), "seeds is empty; leave it out"),
        (lambda folder: harness.run("quickstart", seeds="1"), "'1' is no seed"),
        (lambda folder: harness.run("quickstart", settings="rank=3"), "settings takes names with their values"),
        (lambda folder: harness.run("quickstart", executor="slurm"), "there is no executor 'slurm'; known: local, ray"),
        (lambda folder: harness.run("quickstart", results=3), "results takes text or a path, not 3"),
        (lambda folder: harness.run("quickstart", catalogue=3), "catalogue takes text or a path, not 3"),
        (lambda folder: harness.run(None), "suite takes text or a path, not None"),
        (lambda folder: harness.run("quickstart", seeds=-1), "-1 is no seed"),
        (lambda folder: harness.run("quickstart", max_steps=0), "max_steps is 0"),
        (lambda folder: harness.run("quickstart", limit=True), "limit is True"),
        (lambda folder: harness.run("quickstart", timeout_seconds=0), "timeout_seconds is 0"),
        (lambda folder: harness.run("quickstart", log="tensorbord", results=folder), "did you mean 'tensorboard'?"),
        (lambda folder: harness.run("quickstart", settings={"rank": 0}, labels="lora", results=folder), "rank"),
    ],
)
def test_wrong_input_is_one_sentence(call: Any, sentence: str, folder: Path) -> None:
    with pytest.raises(HarnessError) as error:
        call(folder)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_run_hands_on_what_the_command_would(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    newest = {record.run_id: record for record in Store(folder).read().records if record.is_run}
    lora = next(record for record in newest.values() if record.label == "lora" and record.seed == 1)

    def called(*given: Any, results: Path) -> tuple[int, frozenset[str]]:
        asked.extend([*given, results])
        return 1, frozenset({lora.run_id})

    monkeypatch.setattr("harness.commands.called.run_called", called)
    found = harness.run(
        "quickstart",
        models="m=p",
        labels=["lora", "full"],
        seeds=4,
        settings={"rank": 8, "master_weights": False},
        results=folder,
        retry=["ok"],
        include_path="t",
        log="tensorboard",
        timeout_seconds=5,
        gpus_per_run=2,
    )
    assert asked == [
        SelectionRequest(
            suite="quickstart",
            models=("m=p",),
            labels=("lora", "full"),
            seeds=(4,),
            overrides=("rank=8", "master_weights=false"),
            tasks=TasksRequest(include=("t",)),
        ),
        HowToRun(retry=("ok",), timeout_seconds=5, log=("tensorboard",), where=WhereToRun(gpus_per_run=2)),
        AssetsRequest(),
        folder,
    ]
    assert found.runs["uuid"].tolist() == [lora.uuid]  # of two attempts the newest
    monkeypatch.setattr("harness.commands.called.run_called", lambda *_, **__: (running.INTERRUPTED, frozenset()))
    with pytest.raises(KeyboardInterrupt):
        harness.run("quickstart", results=folder)


def test_run_without_torch_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("harness.commands.called.run_called", missing)
    with pytest.raises(HarnessError, match=r"the package 'torch' is not installed, which a run needs"):
        harness.run("quickstart", results=folder)


def test_its_names_are_listed_and_imported_when_they_are_asked_for() -> None:
    script = """
import sys
before = set(sys.modules)
import harness
assert {"read", "run", "Results", "Report", "HarnessError"} <= set(dir(harness))
heavy = {"importlib.abc", "logging", "pydantic", "pandas", "harness.api", "harness.errors"}
assert not heavy & set(sys.modules) - before
print(harness.HarnessError.__name__, "pydantic" in sys.modules)
print(harness.read.__name__, "pandas" in sys.modules, "torch" in sys.modules)
try: harness.nothing
except AttributeError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "HarnessError False",
        "read False False",
        "module 'harness' has no attribute 'nothing'",
    ]


def test_the_stub_names_what_the_package_has() -> None:
    stub = Path(harness.__file__).with_name("__init__.pyi").read_text()
    lines = [line.split() for line in stub.splitlines() if line.startswith("from ")]
    assert {(words[1].removeprefix("harness."), words[3]) for words in lines} == {
        (place, name)
        for name, place in harness._PLACES.items()  # type: ignore[attr-defined]
    }
    assert set(harness.__all__) == {*(words[3] for words in lines), "__version__"}  # type: ignore[attr-defined]
