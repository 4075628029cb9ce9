"""Labels with settings in brackets, as outputs print them, can be given back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import cli
from harness.commands._selection import select
from harness.commands.requests import SelectionRequest
from harness.errors import HarnessError
from harness.expansion import load_suite
from harness.label_text import points_with, read_label, same_label, setting_value
from harness.suite import label_with
from harness.tuning import trial_suite

VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**60), 2**60),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.sampled_from(["q_proj", "v_proj", "a,b"]), max_size=3),
    st.sampled_from(["drop", "first-8", "a b"]),
)


@given(st.dictionaries(st.sampled_from(["rank", "alpha", "targets", "gap"]), VALUES))
def test_a_label_as_it_is_printed_reads_back(changes: dict[str, Any]) -> None:
    asked = read_label(label_with("lora", changes))
    assert (asked.label, dict(asked.changes)) == ("lora", changes)
    assert asked.text == label_with("lora", changes)


@pytest.mark.parametrize("text", ["lora[", "lora[]", "lora[rank]", "[rank=8]", "lora[rank=8", "lora[=8]", "lora[a=1,]"])
def test_brackets_without_settings_are_refused(text: str) -> None:
    with pytest.raises(HarnessError, match=r"expected LABEL or LABEL\[KEY=VALUE"):
        read_label(text)
    assert same_label(text) == text


def test_a_setting_that_stands_twice_is_refused() -> None:
    with pytest.raises(HarnessError, match="'rank' is set twice"):
        read_label("lora[rank=8,rank=16]")


@pytest.mark.parametrize("text", ["1\nother = 2", "1\n[table]", "", "[" * 50_000, "\x00"])
def test_a_value_that_is_no_toml_is_a_text(text: str) -> None:
    assert setting_value(text) == text


def test_a_point_that_agrees_is_that_point_and_else_the_setting_is_changed() -> None:
    sweep = {"rank": [4, 8], "alpha": [1, 2]}
    assert list(points_with(sweep, {"rank": 8})) == [{"rank": 8, "alpha": 1}, {"rank": 8, "alpha": 2}]
    assert list(points_with(sweep, {"rank": 8, "alpha": 2})) == [{"rank": 8, "alpha": 2}]
    assert list(points_with(sweep, {"rank": 16})) == [{"alpha": 1}, {"alpha": 2}]
    assert list(points_with({}, {"rank": 16})) == [{}]
    assert list(points_with({"nested": [False, True]}, {"nested": 1})) == [{}]


SUITE = """
name = "swept"
version = 1
protocol = "swept"
description = "a sweep"
models = ["smollm2-135m"]
labels = ["full", "lora"]
seeds = [1, 2]
[sweep.lora]
rank = [4, 8]
[train]
data = "packaged-train"
prompt = "plain"
loss_on = "answer"
packing = false
sequence_length = 64
batch_size = 2
num_steps = 4
learning_rate = 1e-3
lr_scheduler = "linear"
dtype = "fp32"
[evaluation]
tasks = []
"""


@pytest.fixture
def suite(tmp_path: Path) -> str:
    from harness.catalogue.datasets import load_datasets

    data = next(name for name, one in load_datasets().items() if name.startswith("packaged") and one.drawn is None)
    file = tmp_path / "swept.toml"
    file.write_text(SUITE.replace("packaged-train", data))
    return str(file)


def labels_of(suite: str, *labels: str, overrides: tuple[str, ...] = ()) -> list[tuple[str, int]]:
    chosen = SelectionRequest(suite=suite, labels=labels, seeds=(1,), overrides=overrides)
    return [(spec.label, int(str(spec.config["rank"]))) for spec in select(chosen).specs if "rank" in spec.config]


def test_a_sweep_point_as_status_prints_it_selects_that_run(suite: str) -> None:
    assert labels_of(suite) == [("lora[rank=4]", 4), ("lora[rank=8]", 8)]
    assert labels_of(suite, "lora[rank=8]") == [("lora[rank=8]", 8)]
    assert labels_of(suite, "lora[rank=8]", "lora[rank=4]") == [("lora[rank=8]", 8), ("lora[rank=4]", 4)]
    assert labels_of(suite, "lora", "lora[rank=8]") == [("lora[rank=4]", 4), ("lora[rank=8]", 8)]
    assert labels_of(suite, "lora[rank=16]") == [("lora[rank=16]", 16)]


def test_the_same_run_has_the_same_id_however_it_is_asked_for(suite: str) -> None:
    def ids(*labels: str, overrides: tuple[str, ...] = ()) -> list[str]:
        chosen = SelectionRequest(suite=suite, labels=labels, overrides=overrides)
        return [spec.run_id for spec in select(chosen).specs]

    swept = ids("lora")
    assert ids("lora[rank=4]") + ids("lora[rank=8]") == swept
    assert ids("lora[rank=16]") == ids("lora", overrides=("rank=16",))
    assert ids("lora", overrides=("rank=8",)) == ids("lora[rank=8]")  # once, though two points come to it


def test_brackets_and_set_agree_or_are_refused(suite: str) -> None:
    assert labels_of(suite, "lora[rank=8]", overrides=("lora_alpha=2",)) == [("lora[lora_alpha=2,rank=8]", 8)]
    assert labels_of(suite, "lora[rank=8]", overrides=("rank=8",)) == [("lora[rank=8]", 8)]
    with pytest.raises(HarnessError, match="leave one out"):
        labels_of(suite, "lora[rank=8]", overrides=("rank=4",))
    with pytest.raises(HarnessError, match="is given twice"):
        labels_of(suite, "lora[rank=8]", "lora[ rank=8]")
    with pytest.raises(HarnessError, match="has no setting 'rnk'"):
        labels_of(suite, "lora[rnk=8]")
    with pytest.raises(HarnessError, match="there is no label 'loar'; did you mean 'lora'"):
        labels_of(suite, "loar[rank=8]")


def test_a_single_point_is_not_tuned(suite: str) -> None:
    made = load_suite(suite).model_copy(update={"tune": load_suite("commonsense").tune})
    with pytest.raises(HarnessError, match=r"label 'lora\[rank=8\]': every point .* give --label lora"):
        trial_suite(made, ["lora[rank=8]"])


def test_label_and_method_are_one_option_and_help_shows_label(
    suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["status", "--suite", suite, "--results", str(tmp_path), "--any-environment", "--json"]
    assert cli.main([*asked, "--label", "full", "--method", "lora[rank=8]"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in rows] == ["full", "full", "lora[rank=8]", "lora[rank=8]"]
    for words, said in (
        (["--label", "full", "--method", "full"], "'full' is given twice"),
        (["--method", "lora", "--method", "lora"], "'lora' is given twice"),
    ):
        with pytest.raises(SystemExit):
            cli.main([*asked, *words])
        assert said in capsys.readouterr().err
    for command in ("run", "status", "plan", "tune", "prepare", "history", "layers", "show-data", "doctor"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        shown = capsys.readouterr().out
        assert "--label LABEL" in shown and "--method" not in shown, command
