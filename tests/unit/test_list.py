"""``harness list``: a line an entry, and everything of one by its name."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from harness import cli
from harness.suite import suite_names

Said = Callable[..., str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    monkeypatch.setenv("COLUMNS", "500")

    def call(*words: str) -> str:
        assert cli.main(["list", *words]) == 0
        return capsys.readouterr().out

    return call


def test_suites_are_a_line_each_with_name_version_and_description(said: Said) -> None:
    lines = said("suites").splitlines()
    assert lines[0].split() == ["suite", "version", "description"]
    assert [line.split()[0] for line in lines[1:-2]] == suite_names()
    assert "harness list suites NAME" in lines[-1]


def test_a_suite_by_name_says_what_it_runs_and_what_it_needs(said: Said) -> None:
    shown = said("suites", "quickstart")
    facts = dict(line.split(maxsplit=1) for line in shown.partition("\n\n")[0].splitlines())
    assert facts["models"] == "smollm2-135m"
    assert facts["labels"] == "base, full, lora, galore, lisa, owlore"
    assert facts["seeds"] == "1"
    assert facts["tasks"].startswith("boolq, piqa")
    assert "limit = 6" in facts["evaluation"]
    assert facts["needs"].startswith("smollm2-135m (packaged:smollm2-135m), packaged-commonsense (")
    assert "packaged-passages (packaged:passages)" in facts["needs"]
    assert any(line.split() == ["full", "moment_dtype", "=", "fp32"] for line in shown.splitlines())
    gated = said("suites", "commonsense")
    assert "llama2-7b (hub:meta-llama/Llama-2-7b-hf, gated)" in gated


def test_an_alias_is_called_one_and_has_no_line_like_its_labels(said: Said) -> None:
    lines = [line.split(maxsplit=2) for line in said("methods").splitlines()[1:-2]]
    assert ["ows-lowrank", "owlore", "alias of owlore"] in lines
    summaries = [line[2] for line in lines]
    assert len(set(summaries)) == len(summaries)


def test_a_method_by_name_has_each_setting_with_its_source(said: Said) -> None:
    shown = said("methods", "ows-lowrank")
    assert any(line.split() == ["alias", "of", "owlore"] for line in shown.splitlines())
    (entry,) = [one for one in json.loads(said("methods", "--json")) if one["label"] == "ows-lowrank"]
    assert entry["alias_of"] == "owlore"
    assert entry["settings"]
    for name, told in entry["settings"].items():
        (line,) = [line for line in shown.splitlines() if line.split()[:1] == [name]]
        assert line.endswith(told["source"])


def test_a_task_is_one_line_with_the_suites_that_use_it(said: Said) -> None:
    lines = said("benchmarks").splitlines()
    (boolq,) = [line for line in lines if line.startswith("boolq")]
    assert boolq.split(maxsplit=1)[1] == (
        "ablations, commonsense-70b, commonsense-packed, commonsense-small, commonsense, quickstart, rivals, "
        "sharded-small, small-study-gpu"
    )
    (quick,) = [line for line in said("benchmarks", "boolq").splitlines() if line.startswith("quickstart")]
    assert quick.split() == ["quickstart", "packaged-scored", "0", "6"]
    assert len([row for row in json.loads(said("benchmarks", "--json")) if row["benchmark"] == "boolq"]) == 9


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("models", "llama3-8b", ("hub:meta-llama/Meta-Llama-3-8B", "(gated)", "LlamaForCausalLM", "commonsense")),
        ("datasets", "gsm8k", ("7473", "questions", "gsm8k")),
        ("devices", "h100-sxm", ("NVIDIA H100 80GB HBM3", "https://www.nvidia.com/en-us/data-center/h100/", "80 GB")),
        ("devices", "NVIDIA L4", ("24 GB",)),
    ],
)
def test_an_entry_by_name_says_the_rest(said: Said, kind: str, name: str, words: tuple[str, ...]) -> None:
    shown = said(kind, name)
    for word in words:
        assert word in shown
    assert json.loads(said(kind, name, "--json"))


@pytest.mark.parametrize("kind", ["methods", "models", "datasets", "suites", "benchmarks", "devices"])
@pytest.mark.parametrize("name", ["owlor", "", "../x", "a=b", "\x1b[2Jx", "x" * 5000, "missing.toml"])
def test_a_name_that_is_none_is_one_sentence(kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", kind, name]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("harness")
    assert len(said.err.strip().splitlines()) == 1
    assert "\x1b" not in said.err
