"""Damaged files through the command line: one sentence that names the file, a non-zero exit, nothing recorded lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import cli
from harness.store import Store
from tests.fuzz_targets import BENCHMARKS
from tests.mt_bench import add_answers, write_bench
from tests.records import make_record

ROOT = Path(__file__).parents[2]
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "not UTF-8": lambda data: data[:20] + b"\xff" + data[20:],
    "nested without end": lambda data: b"[" * 100_000,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    bench = write_bench(tmp_path / "bench")
    record = add_answers(tmp_path / "results", bench)
    assert record.mt_bench is not None
    shutil.copy(tmp_path / "results" / record.mt_bench.file, tmp_path / "answers.jsonl")
    shutil.copy(ROOT / "suites" / "quickstart.toml", tmp_path / "suite.toml")
    shutil.copy(ROOT / "results" / "paper" / "lisa-memory.csv", tmp_path / "table.csv")
    (tmp_path / "benchmark.json").write_text(json.dumps(BENCHMARKS))
    return tmp_path


JUDGE = ("judge", "--suite", "mt-bench-small", "--judge", "http://127.0.0.1:1", "--judge-model", "m", "--dry-run")
COMMANDS: dict[str, tuple[str, ...]] = {
    "suite.toml": ("status", "--suite", "suite.toml"),
    "table.csv": ("paper", "show", "table.csv"),
    "benchmark.json": ("compare", "benchmark.json", "benchmark.json"),
    "results/items/u1.answers.jsonl": (*JUDGE, "--data", "mt_bench=bench", "--results", "results"),
    "bench/judge_prompts.jsonl": (*JUDGE, "--data", "mt_bench=bench", "--results", "results"),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "a folder"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_damaged_file_is_one_sentence_and_exit_code_2(
    name: str, damage: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / name
    before = (folder / "results" / "mt-bench-small.jsonl").read_bytes()
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert cli.main(COMMANDS[name]) == 2
    said = capsys.readouterr().err
    first, *rest = said.strip().splitlines()
    assert (
        all(line.startswith("  ") for line in rest) if first.endswith(" faults:") and name == "suite.toml" else not rest
    )
    # Other questions than those that were answered are told by their checksum, before they are read.
    assert file.name in said or "answered the questions of" in said or damage == "a folder"
    assert "Traceback" not in said
    assert (folder / "results" / "mt-bench-small.jsonl").read_bytes() == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_damaged_line_costs_no_other_and_the_exit_code_says_so(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    for number in range(3):
        store.append(make_record(uuid=f"u{number}", minute=number))
    file = tmp_path / "tiny.jsonl"
    first, second, third = file.read_bytes().splitlines(keepends=True)
    spoilt = DAMAGES[damage](second.rstrip(b"\n")) + b"\n"
    file.write_bytes(first + spoilt + third)
    found = store.read()
    assert [record.uuid for record in found.records] == ["u0", "u2"]
    assert len(found.warnings) == (damage != "empty")
    assert all(f"{file} line 2" in warning for warning in found.warnings)
    code = cli.main(["show", make_record().run_id, "--results", str(tmp_path)])
    assert code == 0
    assert ("line 2" in capsys.readouterr().err) == (damage != "empty")
    store.append(make_record(uuid="u3", minute=3))
    assert file.read_bytes().startswith(first + spoilt + third)
    assert [record.uuid for record in store.read().records] == ["u0", "u2", "u3"]


def test_a_damaged_file_of_judgments_stays_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Store(folder / "results").read().records[0]
    file = folder / "results" / "judgments" / f"{record.run_id}-{record.uuid}" / "m_single.jsonl"
    file.parent.mkdir(parents=True)
    file.write_bytes(b'{"question_id": 81}\n')
    assert cli.main(COMMANDS["bench/judge_prompts.jsonl"]) == 2
    assert "m_single.jsonl line 1: is no judgment of ours" in capsys.readouterr().err
    assert file.read_bytes() == b'{"question_id": 81}\n'
