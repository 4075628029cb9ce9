"""What models, judges and files say reaches the terminal without control or escape sequences."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from harness import cli
from harness.calibration_log import PartResult, append_result, log_file, read_log
from harness.commands import _output, calibrate
from harness.device_profile import read_profile
from harness.printable import as_json, printable
from harness.store import Store
from tests.comparing import make
from tests.fuzz_calibration import part
from tests.judge import Act, served
from tests.mt_bench import add_answers, write_bench

ATTACK = "\x1b[2J\x1b]0;owned\x07\x1b]8;;http://x.invalid\x1b\\click\r\x08\x9b31m\u202egnp\u2028[/red][bold]"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    store = Store(folder)
    data = make.make_record("lora", status="failed", reason=f"why {ATTACK}", log_tail=f"log {ATTACK}").model_dump(
        mode="json"
    )
    good = make.make_record("full").model_dump(mode="json")
    for one in (data, good):
        one["environment"] |= {"device_name": f"device {ATTACK}", "platform": ATTACK, "packages": {ATTACK: ATTACK}}
        one["spec"]["label"] += ATTACK
        one["spec"]["model"]["name"] += ATTACK
        one["spec"]["config"] = {"setting": ATTACK}
        one["prediction_error"] = ATTACK
        one["scores"] = [score | {"task": score["task"] + ATTACK} for score in one["scores"]]
        store.append(type(make.make_record("full")).model_validate(one))
    (folder / "hostile.jsonl").write_text(json.dumps({"schema_version": 1, ATTACK: 1}) + "\n")
    return folder


def commands(results: Path) -> list[list[str]]:
    record = next(record for record in Store(results).read().records if record.status == "failed")
    other = results.parent / "other"
    shutil.copytree(results, other)
    return [
        ["show", record.run_id, "--results", str(results)],
        ["show", record.run_id, "--results", str(results), "--json"],
        ["compare", str(results), str(other)],
        ["compare", str(results), str(other), "--format", "json"],
        ["history", "--suite", "quick", "--metric", "step_time", "--results", str(results)],
        ["paper", "compare", "lisa-memory", "--results", str(results)],
    ]


@pytest.mark.parametrize("number", range(6))
def test_a_command_prints_no_control_sequence_of_a_record(
    number: int, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(commands(results)[number])
    said = capsys.readouterr()
    assert said.out or said.err
    assert not CONTROL.search(said.out), said.out
    assert not CONTROL.search(said.err), said.err


def test_a_report_prints_no_control_sequence(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        record.model_copy(update={"spec": record.spec.model_copy(update={"suite": "quickstart"})})
        for record in Store(results).read("quick").records
    ]
    store = Store(tmp_path / "named")
    for record in records:
        store.append(record)
    arguments = ["report", "--suite", "quickstart", "--results", str(tmp_path / "named"), "--out", str(tmp_path / "r")]
    cli.main([*arguments, "--format", "csv"])
    said = capsys.readouterr()
    assert not CONTROL.search(said.out + said.err)


def planted_calibration(folder: Path) -> None:
    """Answers of this environment at tiny sizes that hold an attack, and a line that is none."""
    device = make.CPU.model_copy(update={"device_name": f"device {ATTACK}\nb = 1", "driver": ATTACK})
    reading = {"name": ATTACK, "value": 1.0, "unit": "bytes", "expected": 2.0, "expected_by": ATTACK}
    known = {"environment": device.model_dump(mode="json"), "environment_id": device.environment_id, "sizes": "smoke"}
    for name in (ATTACK, "copy on the device"):
        answer = part(name, "checks", {}, sentence=f"why {ATTACK}", readings=[reading], **known)
        append_result(folder, PartResult.model_validate(answer))
    with log_file(folder).open("a") as stream:
        stream.write(json.dumps({ATTACK: 1}) + "\n")


def test_calibrate_prints_no_control_sequence_of_an_earlier_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_calibration(tmp_path)
    (device,) = {
        result.environment.environment_id: result.environment for result in read_log(tmp_path).results
    }.values()
    monkeypatch.setattr(calibrate, "probe_environment", lambda: device)
    monkeypatch.setattr(calibrate, "all_parts", lambda num_devices: ())
    assert cli.main(["calibrate", "--smoke", "--part", "checks", "--results", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "]0;owned" in said.out
    assert "has no setting" in said.err
    assert not CONTROL.search(said.out + said.err)
    (file,) = (tmp_path / "calibration").glob("*.toml")
    profile = read_profile(file)
    assert profile.device_name == device.device_name
    assert not CONTROL.search(file.read_text())


def test_an_error_and_a_warning_are_plain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.toml").write_text(f"{json.dumps(ATTACK)} = 1\n")
    assert cli.main(["status", "--suite", str(tmp_path / "s.toml")]) == 2
    _output.warn([ATTACK])
    said = capsys.readouterr().err
    assert "has no setting" in said
    assert not CONTROL.search(said)


def test_half_a_character_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    _output.say("a\ud800b")
    print(as_json({"a": "\ud800\x9b\u202e"}))
    assert capsys.readouterr().out == 'ab\n{\n  "a": "\\ud800\\u009b\\u202e"\n}\n'


def test_a_judge_that_sends_escapes_changes_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, bench = tmp_path / "results", write_bench(tmp_path / "bench")
    add_answers(folder, bench)
    arguments = ["judge", "--suite", "mt-bench-small", "--judge-model", f"m{ATTACK}", "--max-retries", "0"]
    arguments += ["--data", f"mt_bench={bench}", "--results", str(folder)]
    for act in (Act(f"no score {ATTACK}"), Act(status=400, body=ATTACK.encode())):
        with served(act) as judge:
            cli.main([*arguments, "--judge", judge.url])
    said = capsys.readouterr()
    assert "no score could be read" in said.out
    assert not CONTROL.search(said.out + said.err)


def test_the_progress_of_a_terminal_shows_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(_output, "console", lambda **_changes: screen)
    with _output.Display(2) as display:
        display.progress(f"lora[rank=4] {ATTACK}", 1, 2)
        display._line(f"line {ATTACK}")
        assert display._bars is not None
        display._bars.refresh()
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "lora[rank=4]" in shown
    assert "]0;owned" in shown  # the text stays, what makes it a command goes
    for sequence in ("\x1b]", "\x07", "\x9b", "\u202e", "\x08"):
        assert sequence not in shown


def test_printable_keeps_lines_and_tabs() -> None:
    assert printable("a\n\tb é 漢 …") == "a\n\tb é 漢 …"
    assert printable(ATTACK + "\0") == "[2J]0;owned]8;;http://x.invalid\\click31mgnp[/red][bold]"
