"""What ``harness show`` says and draws of a run's memory."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import cli
from harness.record import Record
from harness.store import Store

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))


def show(record: Record, folder: Path, *arguments: str) -> int:
    Store(folder).append(record)
    return cli.main(["show", record.run_id, "--results", str(folder), *arguments])


def said(record: Record, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert show(record, folder) == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_tracked_peak_is_shown_with_its_step_moment_and_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(make.with_memory(make.make_record("full")), tmp_path, capsys)
    assert "tracked peak 2.416 GiB in step 1, moment backward (tracked: 0, 1, 2): weights 0.501 GiB, gradients" in text
    assert "predicted peak 2.454 GiB in step 1, moment backward (for cpu, horizon run): weights 0.501 GiB" in text
    assert "predicted against measured +1.59% of the tracked peak" in text
    assert "peak memory" not in text


def test_a_curve_of_fewer_readings_than_steps_is_shown_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = make.make_record("full")
    assert record.train is not None
    cut = {"validation_steps": (0, 2, 4, 6), "validation_losses": (3.0, 2.5, 2.25)}
    text = said(record.model_copy(update={"train": record.train.model_copy(update=cut)}), tmp_path, capsys)
    assert "0: 3.0000, 2: 2.5000, 4: 2.2500" in text


def test_on_cuda_the_allocated_peak_has_a_step_and_a_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    busy = make.CUDA.model_copy(update={"device_busy": "3 of 80 bytes in use before the run"})
    text = said(make.with_memory(make.make_record("full", environment=busy)), tmp_path, capsys)
    assert "peak memory 2.416 GiB in step 7, moment optimizer (CUDA, every step)" in text
    assert "predicted against measured +1.59% of the peak memory" in text
    assert "device not idle 3 of 80 bytes in use before the run" in text


def test_why_there_is_no_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make.make_record("full", prediction_error="the shapes of tiny are not known")
    assert "predicted peak none: the shapes of tiny are not known" in said(record, tmp_path, capsys)


def test_where_memory_ran_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make.make_record("full", status="out_of_memory", reason="x", out_of_memory_at=make.make_out_of_memory())
    text = said(record, tmp_path, capsys)
    assert "out of memory phase train, step 4, moment backward: weights 0.501 GiB, gradients 0.0977 GiB" in text
    assert "rest 0.391 GiB" in text


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_run_is_drawn_on_request_and_json_stays_json(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"run.{ending}"
    assert show(make.make_record("lisa"), tmp_path / "records", "--json", "--plot", str(file)) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "ok"
    assert file.stat().st_size > 1000


@pytest.mark.parametrize(
    ("label", "plot", "sentence"),
    [
        ("lora", "run.gif", "--plot run.gif: expected a file that ends in .png or .svg or .pdf"),
        ("lora", "none/run.png", "--plot none/run.png: there is no folder 'none'"),
        ("base", "run.png", "has no optimizer step on record: there is nothing to draw over steps"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(
    label: str, plot: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(make.make_record(label), tmp_path, "--plot", plot) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error and len(error.splitlines()) == 1
