"""The command line as one meets it: help with examples and groups in 80 columns, -V, -m, and completion."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import __version__
from harness.cli import COMMANDS, build_parser, main
from harness.cli._completion import SHELLS
from harness.cli._examples import EXAMPLES
from harness.cli._groups import GROUPS

LINES = [(command, line) for command, examples in EXAMPLES.items() for _, line in examples]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("command", "line"), LINES, ids=[line for _, line in LINES])
def test_every_example_of_the_help_can_be_typed(command: str, line: str) -> None:
    first, name, *words = shlex.split(line)
    assert (first, name) == ("harness", command)
    build_parser(name).parse_args([name, *words])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_80_columns_and_ends_with_examples(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = said(capsys, command, "--help")
    assert [line for line in text.splitlines() if len(line) > 80] == []
    body, _, examples = text.partition("\nexamples:\n")
    assert EXAMPLES[command]
    for what, line in EXAMPLES[command]:
        assert f"  # {what}\n  {line}" in examples
    assert body.startswith(f"usage: harness {command}")


def test_the_first_help_fits_80_columns_and_says_how_to_begin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = said(capsys, "--help")
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "harness help COMMAND" in text and "harness run --suite quickstart" in text


def test_options_stand_in_groups_and_every_one_of_them_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "run", "--help")
    options = text.partition("examples:")[0].partition("Run a suite")[2]
    headings = re.findall(r"^([a-z ]+):$", options, re.MULTILINE)
    assert len(headings) >= 6
    flat = options.partition("options:")[2].partition("selection:")[0]
    assert re.findall(r"--[a-z-]+", flat) == ["--help"]
    for name in COMMANDS:
        parser = build_parser(name)
        (command,) = [
            action.choices[name] for action in parser._actions if isinstance(action, argparse._SubParsersAction)
        ]
        grouped = [action for group in command._action_groups for action in group._group_actions]
        assert len(grouped) == len(set(map(id, grouped))) == len(command._actions)


def test_an_option_stands_under_one_heading() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names))


def test_help_is_a_word_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "help", "show") == said(capsys, "show", "--help")
    assert said(capsys, "help") == said(capsys, "--help")
    with pytest.raises(SystemExit) as ended:
        main(["help", "nonsense"])
    assert ended.value.code == 2
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err


def test_the_version_has_a_short_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "-V") == said(capsys, "--version")
    assert f"harness {__version__}" in said(capsys, "-V")


@pytest.mark.parametrize("module", ["harness", "harness.cli"])
def test_the_package_runs_as_a_module(module: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, "help", "show"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: harness show")
    wrong = subprocess.run(
        [sys.executable, "-P", "-m", module, "show"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert wrong.returncode == 2 and wrong.stderr.startswith("harness show: error:")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_of_completion_names_every_command_and_packaged_suite(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, "--print-completion", shell)
    for command in COMMANDS:
        assert command in text
    if shell != "tcsh":
        for word in ("commonsense-small", "llama3-8b", "owlore", "last/lora", "--keep-weights"):
            assert word in text
    assert "--method" not in text


def test_a_shell_of_another_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", "fish"])
    assert ended.value.code == 2
    assert "invalid choice: 'fish'" in capsys.readouterr().err


def test_without_shtab_it_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    error = capsys.readouterr().err
    assert "the package 'shtab', which writes completions, is missing: pip install shtab" in error
    assert error.startswith("harness: error:")


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash completes")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("harness", "show-"), {"show-data"}),
        (("harness", "run", "--keep"), {"--keep-weights"}),
        (("harness", "run", "--suite", "quick"), {"quickstart"}),
        (("harness", "run", "--suite", "mi"), {"mine.toml"}),
        (("harness", "run", "--label", "owlore-c"), {"owlore-code"}),
        (("harness", "plan", "--model", "mistral-7"), {"mistral-7b"}),
        (("harness", "show", "las"), None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bash_completes_commands_options_and_names(
    words: tuple[str, ...], found: set[str] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.toml").write_text("")
    (tmp_path / "completion.sh").write_text(said(capsys, "--print-completion", "bash"))
    script = (
        f"source ./completion.sh; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
        "_shtab_harness; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    replies = set(done.stdout.split())
    assert replies, done.stderr
    assert all(reply.startswith(words[-1]) for reply in replies)
    assert found is None or replies == found
