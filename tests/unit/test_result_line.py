"""What a run says when it ends, what of the time is left, and which file is to be opened."""

from __future__ import annotations

import importlib.resources
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from harness.commands import _files_said
from harness.commands._files_said import say_files
from harness.commands._output import Display
from harness.commands._result_line import duration, result_line
from harness.commands._time_left import TimeLeft
from harness.commands.requests import SelectionRequest, TasksRequest
from harness.commands.run import _say_what_is_next
from harness.record import Record, Score
from harness.record_training import TrainResult
from harness.store import Store

from ..records import ENVIRONMENT, make_record, make_spec
from .test_proof import training

PIQA = Score(
    task="piqa", metric="acc", value=0.5, stderr=0.1, n=20, higher_is_better=True, task_version="1", num_fewshot=0
)
SCORES = tuple(
    PIQA.model_copy(update={"task": task, "value": value, "headline": headline})
    for task, value, headline in (("piqa", 0.5, True), ("boolq", 0.334, True), ("other", 0.9, False))
)


@pytest.fixture
def trained() -> Record:
    """Return a record of a run that trained."""
    return make_record(train=training())


def with_train(record: Record, **changes: Any) -> Record:
    assert record.train is not None
    train: TrainResult = record.train.model_copy(update=changes)
    return record.model_copy(update={"train": train})


def test_a_result_names_its_losses_its_peak_and_its_average(trained: Record) -> None:
    record = with_train(trained, validation_loss_before=2.311, validation_loss_after=1.166)
    line = result_line(record.model_copy(update={"scores": SCORES}))
    assert line.startswith("ok in ") and ", loss 2.31 -> 1.17" in line
    assert line.endswith(", average 41.7")
    assert len(f"[3/6] smollm2-135m/lora/1: {line}") <= 100


def test_without_held_out_rows_the_loss_is_said_to_be_of_training(trained: Record) -> None:
    assert trained.train is not None
    record = with_train(trained, validation_loss_before=None, validation_loss_after=None)
    first, last = trained.train.curve.loss[0], trained.train.curve.loss[-1]
    assert f"training loss {first:.2f} -> {last:.2f}" in result_line(record)


def test_a_peak_is_cuda_s_or_said_to_be_tracked(monkeypatch: pytest.MonkeyPatch, trained: Record) -> None:
    monkeypatch.setattr("harness.commands._result_line.quantities.TRACKED_PEAK", _Quantity(0.93 * 2**30))
    monkeypatch.setattr("harness.commands._result_line.run_peak_bytes", lambda record: 12 * 2**30)
    assert "peak 0.930 GiB (tracked)" in result_line(trained)
    on_cuda = trained.model_copy(update={"environment": ENVIRONMENT.model_copy(update={"device_type": "cuda"})})
    assert "peak 12.0 GiB" in result_line(on_cuda) and "tracked" not in result_line(on_cuda)


class _Quantity:
    def __init__(self, value: float) -> None:
        self._value = value

    def read(self, record: Record) -> float:
        return self._value


def test_what_was_not_measured_is_not_said() -> None:
    assert result_line(make_record()) == "ok in 30 s"
    assert result_line(make_record(scores=SCORES[:1])) == "ok in 30 s, piqa 50.0"
    points = PIQA.model_copy(update={"task": "mt_bench", "unit": "points", "value": 6.257, "headline": True})
    assert result_line(make_record(scores=(points,))) == "ok in 30 s, mt_bench 6.26"
    assert result_line(make_record(scores=(points, *SCORES))) == "ok in 30 s"
    failed = make_record(status="failed", reason="no room", scores=SCORES)
    assert result_line(failed) == "failed in 30 s: no room"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.04, "0.0 s"), (8.44, "8.4 s"), (9.96, "10 s"), (99.4, "99 s"), (99.6, "2 min"), (5900, "98 min")),
        *((6000, "1 h 40 min"), (90_000, "25 h 0 min")),
    ],
)
def test_a_time_is_said_in_the_unit_one_reads_it_in(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def specs_of(*labels: str, seeds: int = 1, model: str = "tiny") -> list[Any]:
    named = {"name": model, "source": "folder", "checksum": "0"}
    return [make_spec(label=label, seed=seed, model=named) for seed in range(1, seeds + 1) for label in labels]


def ran(left: TimeLeft, clock: Clock, spec: Any, seconds: float, status: str = "ok") -> None:
    uuid = f"{spec.label}{spec.seed}"
    left.begins(uuid, spec)
    clock.now += seconds
    record = make_record(uuid=uuid, spec=spec, status=status)
    left.ended(record.model_copy(update={"finished_at": record.started_at + timedelta(seconds=seconds)}))


def test_nothing_is_said_before_two_runs_of_a_model_ended() -> None:
    clock = Clock()
    specs = specs_of("base", "full", "lora")
    left = TimeLeft(specs, clock)
    assert left.text() is None
    ran(left, clock, specs[0], 30)
    assert left.text() is None
    ran(left, clock, specs[1], 60)
    assert left.text() == "30 s to 60 s left"


def test_a_label_that_ended_tells_how_long_its_other_seeds_take() -> None:
    clock = Clock()
    specs = specs_of("base", "full", seeds=3)
    left = TimeLeft(specs, clock)
    ran(left, clock, specs[0], 10)
    ran(left, clock, specs[1], 600)
    assert left.text() == "about 20 min left"  # two of 10 s and two of 600 s
    left.begins("now", specs[2])
    assert left.seconds() == (1220, 1220)
    clock.now += 4
    assert left.seconds() == (1216, 1216)
    clock.now += 100  # longer than known: nothing below zero
    assert left.seconds() == (1210, 1210)


def test_runs_too_unlike_tell_nothing() -> None:
    clock = Clock()
    specs = specs_of("base", "full", "lora")
    left = TimeLeft(specs, clock)
    ran(left, clock, specs[0], 5)
    ran(left, clock, specs[1], 600)
    assert left.text() is None


def test_a_model_of_which_nothing_is_known_keeps_the_time_unsaid() -> None:
    clock = Clock()
    specs = [*specs_of("full", seeds=3), *specs_of("full", model="huge")]
    left = TimeLeft(specs, clock)
    ran(left, clock, specs[0], 60)
    ran(left, clock, specs[1], 60)
    assert left.text() is None


def test_a_run_that_failed_early_is_no_measure() -> None:
    clock = Clock()
    specs = specs_of("full", seeds=4)
    left = TimeLeft(specs, clock)
    ran(left, clock, specs[0], 1, status="failed")
    assert left.text() is None
    ran(left, clock, specs[1], 60)
    assert left.text() == "about 2 min left"


def test_runs_at_once_share_the_time_and_at_the_end_nothing_is_left() -> None:
    clock = Clock()
    specs = specs_of("full", seeds=6)
    left = TimeLeft(specs, clock)
    left.begins("a", specs[0])
    ran(left, clock, specs[1], 60)
    clock.now += 0
    assert left.seconds() == (120, 120)  # four waiting on two places; the one under way is due
    for spec in specs[2:]:
        ran(left, clock, spec, 60)
    left.ended(make_record(uuid="a", spec=specs[0]))
    assert left.text() is None


def test_lines_of_a_pipe_say_the_time_that_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    class Task:
        def __init__(self, seed: int) -> None:
            self.spec, self.uuid = make_spec(seed=seed), str(seed)

    tasks: Any = [Task(seed) for seed in (1, 2, 3)]
    with Display(tasks=tasks) as display:
        for task in tasks[:2]:
            display.run_begins(task)
            display.run_ended(make_record(uuid=task.uuid, spec=task.spec))
        display.run_begins(tasks[2])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[1/3] tiny/full/1: started"
    assert lines[1] == "[1/3] tiny/full/1: ok in 30 s"
    assert lines[4] == "[3/3] tiny/full/3: started, about 30 s left"


def test_the_bar_of_runs_says_what_is_left_and_not_what_its_speed_says() -> None:
    from rich.progress import Progress, TaskID

    from harness.commands._output import _Left

    clock = Clock()
    specs = specs_of("full", seeds=3)
    left = TimeLeft(specs, clock)
    progress = Progress(disable=True)
    bar: TaskID = progress.add_task("runs", total=3, of_runs=True)
    assert str(_Left(left).render(progress.tasks[bar])) == ""
    ran(left, clock, specs[0], 45)
    assert str(_Left(left).render(progress.tasks[bar])) == "about 90 s left"
    other = progress.add_task("downloading", total=3)
    assert "left" not in str(_Left(left).render(progress.tasks[other]))


FILES = [
    *("report.md", "report.tex", "tables/scores.tex", "tables/costs.tex", "report.html", "scores.csv", "report.json"),
    *("plots/loss.png", "plots/loss.svg", "plots/memory.png", "plots/memory.svg"),
]


def test_on_a_terminal_the_page_to_open_stands_first_and_the_rest_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files_said.sys.stdout, "isatty", lambda: True)
    say_files([Path("out") / name for name in FILES])
    assert capsys.readouterr().out.splitlines() == [
        f"open {Path('out/report.html')}",
        "beside it: report.md, report.tex, scores.csv, report.json, 2 LaTeX files in tables/, 2 plots in plots/",
    ]
    say_files([Path("out/scores.csv")])
    assert capsys.readouterr().out == f"written: {Path('out/scores.csv')}\n"
    say_files([])
    assert capsys.readouterr().out == ""


def test_in_a_pipe_every_path_has_a_line_and_the_page_to_open_is_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    say_files([Path("out") / name for name in FILES])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["out/report.html", "out/report.md", "out/report.tex"]
    assert sorted(lines) == sorted(f"out/{name}" for name in FILES)


def test_the_next_command_finds_the_tasks_that_the_run_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my tasks"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        "doc_to_text: a\ndoc_to_target: b\ndoc_to_choice: [a, b]\n"
    )
    suite = tmp_path / "own.toml"
    text = Path(str(importlib.resources.files("harness.suites") / "quickstart.toml")).read_text()
    suite.write_text(text.replace('"boolq"', '"mine"', 1).replace('name = "quickstart"', 'name = "own"'))
    Store(tmp_path).append(make_record(spec=make_spec(suite="own")))
    tasks = TasksRequest(include=(str(folder),))
    _say_what_is_next(SelectionRequest(suite=str(suite), tasks=tasks), tmp_path)
    said = capsys.readouterr().out
    assert said.endswith(f"--results {tmp_path} --include-path '{folder}'\n")


def test_the_next_command_is_said_where_there_is_something_to_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = SelectionRequest(suite="quickstart", catalogue=None)
    _say_what_is_next(chosen, tmp_path)
    assert capsys.readouterr().out == ""
    Store(tmp_path).append(make_record(spec=make_spec(suite="quickstart")))
    _say_what_is_next(chosen, tmp_path)
    assert capsys.readouterr().out == f"next: harness report --suite quickstart --results {tmp_path}\n"
    Store(tmp_path).append(make_record(spec=make_spec(suite="mt-bench-small")))
    _say_what_is_next(SelectionRequest(suite="mt-bench-small"), tmp_path)
    first, second = capsys.readouterr().out.splitlines()
    assert "harness judge --suite mt-bench-small" in first and "--judge URL" in first
    assert second.startswith("next: harness report")
