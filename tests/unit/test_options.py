"""Options that would say nothing are refused, and standard output that cannot be written is one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.catalogue.datasets import load_datasets
from harness.cli import COMMANDS, build_parser, main

QUICK = ["--suite", "quickstart", "--dry-run"]
FULL = Path("/dev/full")


def single_options() -> list[tuple[str, str]]:
    """Return each option that takes one value, by command."""
    found = []
    for command in COMMANDS:
        (commands,) = (action for action in build_parser(command)._actions if action.dest == "command")
        for action in commands.choices[command]._actions:  # type: ignore[union-attr, call-overload, index]
            if action.option_strings and action.nargs is None and type(action).__name__ == "_Store":
                found.append((command, action.option_strings[0]))
    return found


@pytest.mark.parametrize(("command", "option"), single_options())
def test_an_option_of_which_only_the_last_would_count_is_given_once(
    command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = build_parser(command)
    (commands,) = (action for action in parser._actions if action.dest == "command")
    (action,) = (one for one in commands.choices[command]._actions if option in one.option_strings)  # type: ignore
    value = "0.5" if option == "--level" else next(iter(action.choices or ()), "1")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([command, option, value, option, value])
    assert ended.value.code == 2
    assert f"argument {option}: is given twice" in capsys.readouterr().err


def test_every_command_with_a_suite_or_results_is_among_them() -> None:
    found = single_options()
    assert {("run", "--suite"), ("tune", "--out"), ("plan", "--device-memory"), ("judge", "--judge")} <= set(found)
    assert len(found) > 70


@pytest.mark.parametrize("repeated", [["--seed", "1"], ["--label", "full"], ["--model", "m"], ["--set", "a=1"]])
def test_the_same_value_of_an_option_that_may_be_repeated_is_refused(
    repeated: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["run", *QUICK, *repeated, *repeated])
    assert f"argument {repeated[0]}: '{repeated[1]}' is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "--suite", "quickstart", "--device-memory", "24"], "has no unit; say 24GB, 24GiB or 24B"),
        (["plan", "--suite", "quickstart", "--device-memory", "0GB"], "expected a size such as 24GiB or 80GB"),
        (["run", *QUICK, "--data", "alpaca-gpt4=FILE"], "--data alpaca-gpt4=FILE: no run that is chosen uses it; they"),
        (["status", "--suite", "quickstart", "--data", "alpaca-gpt4=FILE"], "no run that is chosen uses it"),
        (["run", *QUICK, "--data", "alpaca-gpt4=FILE", "--data", "alpaca-gpt4=."], "'alpaca-gpt4' is given twice"),
        (["run", *QUICK, "--model", "smollm2-135m", "--model", "smollm2-135m=."], "'smollm2-135m' is given twice"),
        (["run", *QUICK, "--set", "num_steps=2", "--set", "num_steps=3"], "'num_steps' is set twice"),
    ],
)
def test_what_would_change_nothing_is_refused_in_a_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    file.write_text("[]")
    assert main([word.replace("FILE", str(file)) for word in words]) == 2
    told = capsys.readouterr().err.replace(str(file), "FILE")
    assert said in told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.skipif(not FULL.exists(), reason="has no /dev/full")
@pytest.mark.parametrize("words", [["list", "models"], ["list", "devices", "--json"], ["--help"], ["run", "--help"]])
def test_a_full_disk_under_standard_output_is_one_sentence(words: list[str]) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "harness.cli", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.count("standard output cannot be written: No space left on device") == 1
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_closed_standard_output_is_one_sentence_and_a_reader_that_left_is_none() -> None:
    command = f"{sys.executable} -P -m harness.cli list devices"
    done = subprocess.run(["bash", "-c", f"{command} >&-"], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("standard output is closed")) == (2, 1)
    read, write = os.pipe()
    os.close(read)
    left = subprocess.run(command.split(), stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (left.returncode, left.stderr) == (0, "")


def test_every_data_set_is_listed_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "datasets", "--json"]) == 0
    rows = {row["dataset"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(load_datasets())
    assert rows["packaged-passages"]["source"] == "packaged:passages"
    assert rows["random-tokens"]["source"].startswith("drawn:")
    assert rows["alpaca-gpt4"]["source"].split(":")[0] in ("github", "hub")
