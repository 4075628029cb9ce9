"""Data of the user's own under their own names: ``[datasets.NAME]`` and ``--data NAME=PATH``, and which run that is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.catalogue.resolved import packaged_catalogue
from harness.commands._selection import Selection, select
from harness.commands.list import list_kind
from harness.commands.requests import AssetsRequest, HowToRun, SelectionRequest
from harness.commands.run import run
from harness.commands.tune import tune
from harness.errors import HarnessError
from harness.spec import RunSpec

SUITE = """
name = "tiny"
version = 1
protocol = "test"
description = "a suite of the tests"
models = ["smollm2-135m"]
labels = ["base", "full", "lora"]
seeds = [1]
[train]
data = "alpaca-gpt4"
prompt = "chat"
loss_on = "answer"
packing = false
sequence_length = 64
batch_size = 2
num_steps = 2
learning_rate = 1e-3
lr_scheduler = "constant"
dtype = "fp32"
[evaluation]
tasks = ["piqa"]
rows = "packaged-scored"
"""
CSV = "frage,antwort,answer\n" + "".join(f"Was ist {i}?,{i},x\n" for i in range(9))
ROWS = "".join(json.dumps({"question": f"Was ist {i}?", "answer": str(i)}) + "\n" for i in range(9))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a suite and rows to start commands in, and an empty cache."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(SUITE)
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "rows.csv").write_text(CSV)
    return tmp_path


def chosen(*data: str, suite: str = "tiny.toml", **more: tuple[str, ...]) -> Selection:
    return select(SelectionRequest(suite=suite, data=data, **more))  # type: ignore[arg-type]


def specs(*data: str, suite: str = "tiny.toml", **more: tuple[str, ...]) -> dict[str, RunSpec]:
    return {spec.label: spec for spec in chosen(*data, suite=suite, **more).specs}


def suite_with(table: str, data: str = "mine") -> str:
    name = f"suite-{len(list(Path().glob('suite-*.toml')))}.toml"
    Path(name).write_text(SUITE.replace('data = "alpaca-gpt4"', f'data = "{data}"') + table)
    return name


def test_a_name_that_nothing_knows_is_what_the_suite_trains_on_and_labels_say_so() -> None:
    plain, own = specs(), specs("my_rows=rows.jsonl")
    assert list(own) == ["base", "full[data=my_rows]", "lora[data=my_rows]"]
    assert own["base"] == plain["base"]
    spec = own["lora[data=my_rows]"]
    assert spec.train is not None and spec.train.data == "my_rows"
    assert spec.sources["train"].startswith("file:") and spec.sources["train"].endswith(":questions")
    given = chosen("my_rows=rows.jsonl")
    assert given.datasets["my_rows"].layout == "questions"
    assert given.stand_in == (
        "suite 'tiny' trains on my_rows in the place of alpaca-gpt4 (layout questions, "
        f"{Path('rows.jsonl').resolve()}): labels say [data=my_rows]"
    )
    by_hand = specs("my_rows=rows.jsonl", labels=("full", "lora"), overrides=("data=my_rows",))
    assert {label: own[label] for label in by_hand} == by_hand


def test_a_known_name_stays_what_it_was() -> None:
    Path("alpaca.json").write_text(json.dumps([{"instruction": f"do {i}", "output": "x"} for i in range(9)]))
    given = chosen("alpaca-gpt4=alpaca.json")
    assert [spec.label for spec in given.specs] == ["base", "full", "lora"] and given.stand_in is None
    (source,) = {spec.sources["train"] for spec in given.specs if spec.train is not None}
    assert source == f"file:{given.datasets['alpaca-gpt4'].checksum}"
    with pytest.raises(HarnessError, match=r"--data gsm8k=rows.jsonl: no run that is chosen uses it"):
        chosen("gsm8k=rows.jsonl")


def test_a_suite_that_names_its_data_needs_no_other_label() -> None:
    suite = suite_with("")
    with pytest.raises(HarnessError, match="there is no data set 'mine'"):
        chosen(suite=suite)
    given = chosen("mine=rows.jsonl", suite=suite)
    assert [spec.label for spec in given.specs] == ["base", "full", "lora"] and given.stand_in is None
    written = specs(suite=suite_with('[datasets.mine]\nfile = "rows.jsonl"\n'))
    assert written == {spec.label: spec for spec in given.specs}
    sweep = suite_with('[sweep.lora]\ndata = ["alpaca-gpt4", "mine"]\n', data="alpaca-gpt4")
    assert "lora[data=mine]" in specs("mine=rows.jsonl", suite=sweep)


def test_what_is_found_is_what_is_written() -> None:
    found = specs(suite=suite_with('[datasets.mine]\nfile = "rows.jsonl"\n'))
    assert found == specs(suite=suite_with('[datasets.mine]\nfile = "rows.jsonl"\nlayout = "questions"\n'))
    columns = 'columns = { question = "frage", answer = "antwort" }\n'
    mapped = specs(suite=suite_with(f'[datasets.mine]\nfile = "rows.csv"\n{columns}'))
    assert mapped == specs(suite=suite_with(f'[datasets.mine]\nfile = "rows.csv"\nlayout = "questions"\n{columns}'))


def test_equal_content_read_otherwise_is_another_run() -> None:
    def source(columns: str) -> str:
        table = f'[datasets.mine]\nfile = "rows.csv"\nlayout = "questions"\ncolumns = {{ {columns} }}\n'
        return specs(suite=suite_with(table))["full"].sources["train"]

    sources = [source('question = "frage", answer = "antwort"'), source('question = "frage"')]
    assert len(set(sources)) == 2
    assert sources[0].endswith(':questions:{"answer":"antwort","question":"frage"}')
    assert sources[1] == source('question = "frage", answer = "answer"')  # its own name goes without saying
    assert source("").endswith(":questions")


@pytest.mark.parametrize(
    ("data", "more", "said"),
    [
        (("a=rows.jsonl", "b=rows.jsonl"), {}, "--data gives a and b, none of which suite 'tiny' names"),
        (("a=rows.jsonl",), {"labels": ("base",)}, "--data a=rows.jsonl: no run that is chosen uses it; they use none"),
        (("a=rows.jsonl",), {"labels": ("full",), "overrides": ("data=gsm8k",)}, "no run that is chosen uses it"),
        (("a=rows.csv",), {}, "those of no layout that there is"),
        (("a=gone.csv",), {}, "there is no file or folder 'gone.csv'"),
        (("a=.",), {}, "cannot be read: Is a directory"),
        (("a",), {}, "--data a: expected NAME=PATH"),
        (("=rows.jsonl",), {}, "'' is no name for a data set"),
        (("../a=rows.jsonl",), {}, "'../a' is no name for a data set"),
        (("a b=rows.jsonl",), {}, "'a b' is no name for a data set"),
        (("a\n=rows.jsonl",), {}, "is no name for a data set"),
        ((f"{'a' * 65}=rows.jsonl",), {}, "is no name for a data set"),
        (("packaged=rows.jsonl",), {}, "kinds of evaluation rows have the name 'packaged'"),
        (("a=rows.jsonl", "a=rows.csv"), {}, "'a' is given twice"),
    ],
)
def test_what_cannot_be_trained_on_is_one_sentence(
    data: tuple[str, ...], more: dict[str, tuple[str, ...]], said: str
) -> None:
    with pytest.raises(HarnessError, match=said):
        specs(*data, **more)


def test_conversations_are_refused_where_the_prompt_cannot_write_them() -> None:
    Path("talk.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n' * 9)
    assert "full[data=talk]" in specs("talk=talk.jsonl")
    suite = suite_with("", data="gsm8k")
    Path(suite).write_text(Path(suite).read_text().replace('"chat"', '"plain"'))
    with pytest.raises(HarnessError, match=r"label 'full.*data 'talk' are conversations, which prompt = 'plain'"):
        specs("talk=talk.jsonl", suite=suite)


def test_random_weights_have_no_tokenizer_for_rows_of_ones_own() -> None:
    with pytest.raises(HarnessError, match="random weights come without a tokenizer, which data 'mine' need"):
        chosen("mine=rows.jsonl", suite="memory")


def test_tuning_takes_no_data_that_the_suite_does_not_name() -> None:
    suite = suite_with("[tune]\nlearning_rates = [1e-4, 1e-3]\nseeds = [7]\n", data="gsm8k")
    Path(suite).write_text(Path(suite).read_text().replace("[evaluation]", "validation_rows = 2\n[evaluation]"))
    request = SelectionRequest(suite=suite, data=("mine=rows.jsonl",))
    with pytest.raises(HarnessError, match=r"--data mine=...: suite 'tiny' does not name it"):
        tune(request, HowToRun(dry_run=True), AssetsRequest(offline=True), results=Path("results"))


def test_a_dry_run_says_what_is_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    how, assets = HowToRun(dry_run=True), AssetsRequest(offline=True)
    assert run(SelectionRequest(suite="tiny.toml", data=("mine=rows.jsonl",)), how, assets, results=Path("r")) == 0
    said = capsys.readouterr().out
    assert said.startswith("suite 'tiny' trains on mine in the place of alpaca-gpt4 (layout questions")
    assert said.count("[data=mine]") >= 3


HUB = '[datasets.mine]\nhub_id = "a/b"\npath = "rows.csv"\n'


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (HUB, r"datasets.mine.*lacks the setting 'layout', which only a local file may leave out"),
        ('[datasets.mine]\npackaged = "gsm8k"\n', "lacks the setting 'layout'"),
        ('[datasets.mine]\nfile = "rows.csv"\nlayout = "message"\n', "datasets.mine.layout is 'message'"),
        ('[datasets.mine]\nfile = "rows.csv"\ncolumns = 3\n', "datasets.mine.columns is 3"),
        ('[datasets.mine]\nfile = "rows.csv"\ncolumns = { a = 3 }\n', "datasets.mine.columns.a is 3"),
        ('[datasets.mine]\nfile = "rows.csv"\ncolumns = { qestion = "b" }\n', "did you mean 'question'"),
        ('[datasets.mine]\npackaged = "gsm8k"\nlayout = "questions"\ncolumns = { question = "q" }\n', "come from none"),
    ],
)
def test_an_entry_that_is_not_valid_is_one_sentence(table: str, said: str) -> None:
    with pytest.raises(HarnessError, match=said) as raised:
        specs(suite=suite_with(table))
    assert "\n" not in str(raised.value)


def test_rows_of_the_hub_take_layouts_and_columns_too() -> None:
    (spec,) = (
        spec
        for label, spec in specs(
            suite=suite_with(HUB + 'layout = "prompt-completion"\ncolumns = { prompt = "frage" }\n')
        ).items()
        if label == "full"
    )
    assert spec.sources["train"] == 'hub:a/b@None:rows.csv:prompt-completion:{"prompt":"frage"}'


def test_every_packaged_entry_keeps_what_identifies_it() -> None:
    assert all(spec.layout is not None and not spec.reading for spec in packaged_catalogue().datasets.values())


def test_data_sets_are_listed_with_their_columns(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "names.toml").write_text(
        f'{HUB}layout = "questions"\ncolumns = {{ question = "frage" }}\n[datasets.other]\nfile = "rows.csv"\n'
    )
    list_kind("datasets", catalogue=folder / "names.toml", in_json=True)
    rows = {row["dataset"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["alpaca-gpt4"]["layout"] == "instructions"
    assert rows["alpaca-gpt4"]["columns"] == ["instruction", "output", "input"]
    assert rows["mine"]["columns"] == ["question = frage", "answer"]
    assert (rows["other"]["layout"], rows["other"]["columns"]) == ("found in the file", [])
    assert rows["random-tokens"]["columns"] == []
    list_kind("datasets", "mine", catalogue=folder / "names.toml")
    assert "question = frage, answer" in capsys.readouterr().out
