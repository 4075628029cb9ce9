"""Rows of the user's own: every layout in every kind of file, columns under other names, and what is no such file."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.datasets import FIELDS, DatasetSpec
from harness.data.batches import TrainData
from harness.data.files import TrainingRow, read_data_file
from harness.data.layouts import find_layout
from harness.data.rows import load_parts, load_texts
from harness.errors import HarnessError
from harness.turns import Turn
from tests.records import TRAIN

TALK = [
    {"role": "system", "content": 'Say "a, b".'},
    {"role": "user", "content": "Nun,\nwas ist «ü»?"},
    {"role": "assistant", "content": "Ein Laut;\tmehr nicht."},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": "[1, 2]"},
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "instructions": [
        {"instruction": 'Say,\n"it".', "input": "a;b\tc", "output": "'it' — ja"},
        {"instruction": "Go", "input": None, "output": "007"},
    ],
    "questions": [{"question": "How many,\n3 or 4?", "answer": "3 #### 3"}, {"question": "NaN?", "answer": "null"}],
    "choices": [
        {"question": "Which?", "choices": ["a, b", 'c "d"', "3"], "answer": 2},
        {"question": "Why?", "choices": ["yes", "no"], "answer": 0},
    ],
    "prompt-completion": [{"prompt": "2+2=", "completion": " 4"}, {"prompt": "[x]", "completion": "[1, 2]"}],
    "messages": [{"messages": TALK}, {"messages": TALK[1:3]}],
    "text": [{"text": 'One line,\nand another; "quoted".'}, {"text": '[{"role": 1}]'}],
}
EXCHANGE = [{"prompt": TALK[:2], "completion": TALK[2:3]}, {"prompt": TALK[:4], "completion": TALK[4:]}]
PROMPTS = {"messages": "chat", "prompt-completion": "as_is", "text": "as_is"}


def write(folder: Path, rows: list[dict[str, Any]], kind: str) -> Path:
    file = folder / f"rows.{kind}"
    if kind == "json":
        file.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif kind == "jsonl":
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    elif kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter="," if kind == "csv" else "\t")
        writer.writeheader()
        for row in rows:
            cells = {
                name: value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)
                for name, value in row.items()
            }
            writer.writerow(cells)
        file.write_bytes(text.getvalue().encode("utf-8-sig" if kind == "csv" else "utf-8"))
    return file


KINDS = ("json", "jsonl", "parquet", "csv", "tsv")


def test_every_layout_that_a_file_can_have_is_tried() -> None:
    assert set(ROWS) == set(FIELDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", sorted(ROWS))
def test_the_same_rows_in_any_file_are_the_same_examples(
    layout: str, kind: str, tmp_path: Path, tokenizer: Any
) -> None:
    plain = read_data_file(write(tmp_path, ROWS[layout], "json"), layout, "t")
    file = write(tmp_path, ROWS[layout], kind)
    rows = read_data_file(file, layout, "t")
    assert rows == plain
    assert [row.place.partition(" (")[0] for row in rows] == ["row 1", "row 2"]
    assert find_layout(file, {}) == layout
    settings = TRAIN.model_copy(update={"prompt": PROMPTS.get(layout, "plain"), "sequence_length": 4096})
    data = TrainData(rows, tokenizer, settings, 1)
    texts = [tokenizer.decode(data.example(number).ids) for number in range(2)]
    for text, row in zip(texts, ROWS[layout], strict=True):
        assert [said for said in said_in(row) if said not in text] == []
    assert all(any(data.example(number).trained) for number in range(2))


def said_in(value: Any) -> list[str]:
    """Return every text in a row, keys and roles aside."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [said for name, one in value.items() if name != "role" for said in said_in(one)]
    return [said for one in value for said in said_in(one)] if isinstance(value, list) else []


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_of_turns_carries_no_loss_and_its_completion_does(kind: str, tmp_path: Path) -> None:
    first, second = read_data_file(write(tmp_path, EXCHANGE, kind), "prompt-completion", "t")
    assert [(turn.role, turn.trained) for turn in first.turns] == [
        ("system", False),
        ("user", False),
        ("assistant", True),
    ]
    assert [turn.is_answer for turn in second.turns] == [False, False, False, False, True]
    assert (second.instruction, second.output) == ("Nun,\nwas ist «ü»?\n", "[1, 2]")


def test_text_and_its_completion_are_run_together_as_they_are(tmp_path: Path, tokenizer: Any) -> None:
    rows = read_data_file(write(tmp_path, ROWS["prompt-completion"], "json"), "prompt-completion", "t")
    settings = TRAIN.model_copy(update={"prompt": "as_is", "sequence_length": 4096})
    data = TrainData(rows, tokenizer, settings, 1)
    assert tokenizer.decode(data.example(0).ids) == "2+2= 4</s>"
    assert tokenizer.decode(data.example(1).ids) == "[x] [1, 2]</s>"


SHARE_GPT = {
    "conversations": [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "b"},
        {"from": "human", "value": "c"},
    ]
}


@pytest.mark.parametrize("kind", KINDS)
def test_share_gpts_spelling_is_the_same_conversation(kind: str, tmp_path: Path) -> None:
    file = write(tmp_path, [SHARE_GPT], kind)
    (row,) = read_data_file(file, "messages", "t")
    assert row.turns == (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"))
    assert (row.instruction, row.output, row.num_unanswered, row.text) == ("a", "b", 1, "s\na\nb")
    assert find_layout(file, {}) == "messages"


def test_turns_of_both_spellings_in_one_table_are_told_apart(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turns = [*TALK[:2], {"from": "gpt", "value": "x"}]
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"messages": turns}]), file)  # nulls where a turn lacks a field
    assert [turn.role for turn in read_data_file(file, "messages", "t")[0].turns] == ["system", "user", "assistant"]


def test_what_stands_behind_the_last_answer_is_left_out_and_counted(tmp_path: Path) -> None:
    talks = [[{"role": "user", "content": f"a{i}"}, {"role": "assistant", "content": f"b{i}"}] for i in range(120)]
    open_ones = [[*talk, {"role": "user", "content": "c"}] for talk in talks[:3]]
    nobody = [[{"role": "user", "content": "d"}], [], None]
    file = write(tmp_path, [{"messages": talk} for talk in (*open_ones, *talks[3:], *nobody)], "json")
    parts = load_parts(DatasetSpec(name="d", layout="messages", file=file), 10)
    assert (parts.facts.num_open_rows, parts.facts.num_blank_rows, parts.facts.num_source_rows) == (3, 3, 123)
    assert not any(turn.content == "c" for row in (*parts.train, *parts.validation) for turn in row.turns)
    assert not {row.instruction for row in parts.train} & {row.instruction for row in parts.validation}
    assert len(parts.validation) == 10 and parts.facts.num_repeated_rows == parts.facts.num_held_out_asked == 0
    assert load_texts(DatasetSpec(name="d", layout="messages", file=file))[0].startswith("a")


def turn(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **fields}]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (turn(role="tool"), "row 1: turn 2 of 'messages' is of the role 'tool', expected one of system, user"),
        (turn(tool_calls=[{"id": 1}]), "turn 2 of 'messages' has 'tool_calls', of which nothing can be made"),
        (turn(weight=0), "turn 2 of 'messages' has 'weight'"),
        (turn(reasoning_content="hm"), "turn 2 of 'messages' has 'reasoning_content'"),
        (turn(content=None), "turn 2 of 'messages' has no content"),
        (turn(content=[{"type": "text", "text": "b"}]), "turn 2 of 'messages': content is list, expected text"),
        (turn(content=3), "turn 2 of 'messages': content is int, expected text"),
        (turn(content="\ud800"), "content holds half a character"),
        (turn(role=None), "turn 2 of 'messages' has no role"),
        (turn(**{"from": "gpt"}), "turn 2 of 'messages' has 'from'"),
        (["hi"], "turn 1 of 'messages' is str, expected an object with role and content"),
        ({"role": "user"}, "field 'messages' is dict, expected a list of turns"),
        ("hi", "field 'messages': is not JSON.*as json.dumps writes it"),
        ("[" * 100_000, "field 'messages': is not JSON: nested too deeply"),
        ('"hi"', "field 'messages' is str, expected a list of turns"),
        (3, "field 'messages' is int, expected a list of turns"),
    ],
)
def test_what_is_no_conversation_is_refused_by_row_and_turn(tmp_path: Path, messages: Any, said: str) -> None:
    with pytest.raises(HarnessError, match=said) as raised:
        read_data_file(write(tmp_path, [{"messages": messages}], "json"), "messages", "t")
    assert "rows.json: row 1" in str(raised.value) and "\n" not in str(raised.value)


def test_nothing_beside_a_turn_that_is_empty_matters(tmp_path: Path) -> None:
    rows = [{"messages": turn(tool_calls=[], name=None, extra={}), "tools": [], "id": 7}]
    assert len(read_data_file(write(tmp_path, rows, "json"), "messages", "t")[0].turns) == 2
    with pytest.raises(HarnessError, match="row 1: has 'tools'"):
        read_data_file(write(tmp_path, [{**rows[0], "tools": [{"name": "f"}]}], "json"), "messages", "t")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "completion": TALK[2:3]}, "field 'prompt' is text and 'completion' is not"),
        ({"prompt": TALK[1:2], "completion": "b"}, "field 'completion' is text and 'prompt' is not"),
        ({"prompt": 3, "completion": 4}, "field 'prompt' is int, expected a list of turns"),
        ({"prompt": "a"}, "lacks the field 'completion'"),
    ],
)
def test_a_prompt_and_a_completion_are_of_one_kind(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(HarnessError, match=f"row 1: {said}"):
        read_data_file(write(tmp_path, [row], "json"), "prompt-completion", "t")


def table(folder: Path, text: str | bytes, name: str = "rows.csv") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("question,answer\na,b\n", [("a", "b")]),
        ("question,answer\r\na,b\r\n\r\nc,d", [("a", "b"), ("c", "d")]),
        ('\ufeffanswer,question,other\n"b ""x"", y","a\n1",\n', [("a\n1", 'b "x", y')]),
        ('"question","answer"\n a , b \n', [(" a ", " b ")]),
        ('question,answer\n,b\na,\n"",b\n', [("", ""), ("", ""), ("", "")]),
        (f'question,answer\n"{"x" * 200_000}",b\n', [("x" * 200_000, "b")]),
        ('question,answer\na"b,c"d\n', [('a"b', 'c"d')]),
        ("question,answer\nNaN,null\n", [("NaN", "null")]),
    ],
)
def test_cells_are_read_as_they_stand_and_an_empty_one_is_missing(
    tmp_path: Path, text: str, rows: list[tuple[str, str]]
) -> None:
    found = read_data_file(table(tmp_path, text), "questions", "t")
    assert [(row.instruction, row.output) for row in found] == rows


def test_a_line_without_anything_in_a_table_of_one_column_is_a_blank_row(tmp_path: Path) -> None:
    found = read_data_file(table(tmp_path, "text\none\n\ntwo\n"), "text", "t")
    assert [row.output for row in found] == ["one", "", "two"]
    assert [row.place for row in found] == ["row 1 (line 2)", "row 2 (line 3)", "row 3 (line 4)"]


def test_an_ending_in_capitals_counts(tmp_path: Path) -> None:
    assert len(read_data_file(table(tmp_path, "text\na\n", "ROWS.CSV"), "text", "t")) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "its first line names no columns"),
        (",\na,b\n", "its first line names no columns"),
        ("question,,answer\na,b,c\n", "has no name for column 2 of 3"),
        ("question,answer,question\na,b,c\n", "names the column 'question' twice"),
        ("question,answer\n", "holds no row"),
        ('question,answer\n"a\nb",c\n\nd\n', r"row 2 \(line 5\) has 1 cells, and the first line names 2 columns"),
        ("question,answer\na,b,c\n", r"row 1 \(line 2\) has 3 cells"),
        ('question,answer\n"a,b\n', "line 2 is not as a table's are"),
        ('question,answer\n"a"x,b\n', "line 2 is not as a table's are"),
        ("question;answer\na;b\n", "are the columns set apart by ';'"),
        ("question\tanswer\na\tb\n", "are the columns set apart by"),
        (b"question,answer\n\xff,b\n", "is not UTF-8 text"),
        (
            "instruction,output\na,b\n",
            r"row 1 \(line 2\): lacks the field 'question'.*this row has instr",
        ),
    ],
)
def test_what_is_no_table_is_one_sentence(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(HarnessError, match=said) as raised:
        read_data_file(table(tmp_path, text), "questions", "t")
    assert "rows.csv" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ('"a, b",0', r"field 'choices' \(expected a list of texts\): is not JSON"),
        ('"[""a"", ""b""]",B', r"field 'answer' \(expected the position of the right choice\): is not JSON"),
        ('"[""a"", ""b""]",2', "field 'answer' is 2, expected a position from 0 to 1"),
        ('"{}",0', "field 'choices' is dict, expected a list of texts"),
    ],
)
def test_choices_in_cells_are_json(tmp_path: Path, cells: str, said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        read_data_file(table(tmp_path, f"question,choices,answer\nq,{cells}\n"), "choices", "t")
    fine = table(tmp_path, 'question,choices,answer\nq,"[""a"", ""b""]",1.0\n')
    assert read_data_file(fine, "choices", "t")[0].output == "B"


def spec(file: Path, **entry: Any) -> DatasetSpec:
    return DatasetSpec(name="mine", file=file, **entry)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", sorted(ROWS))
def test_columns_under_other_names_are_the_same_rows(layout: str, kind: str, tmp_path: Path) -> None:
    theirs = {name: f"their {name} é" for name in ROWS[layout][0]}
    rows = [{theirs[name]: value for name, value in row.items()} for row in ROWS[layout]]
    plain = read_data_file(write(tmp_path, ROWS[layout], "json"), layout, "t")
    file = write(tmp_path, rows, kind)
    assert read_data_file(file, layout, "t", theirs) == plain
    assert find_layout(file, theirs) == layout


def test_a_column_that_has_another_name_is_no_longer_called_its_own(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "input": "b", "output": "c"}]
    file = write(tmp_path, rows, "json")
    for columns, read in (
        ({"output": "input"}, ("a", "", "b")),
        ({"instruction": "output", "output": "instruction"}, ("c", "b", "a")),
        ({"input": "instruction", "instruction": "input"}, ("b", "a", "c")),
        ({"instruction": "instruction"}, ("a", "b", "c")),
    ):
        (row,) = read_data_file(file, "instructions", "t", columns)
        assert (row.instruction, row.input, row.output) == read
    with pytest.raises(HarnessError, match="row 1: lacks the field 'output'"):
        read_data_file(file, "instructions", "t", {"instruction": "output"})


def test_a_column_that_no_row_has_is_refused_with_a_near_miss(tmp_path: Path) -> None:
    file = write(tmp_path, [{"frage": "a", "antwort": "b"}], "json")
    with pytest.raises(HarnessError, match=r"no row has a column 'fragen'; did you mean 'frage'\?"):
        read_data_file(file, "questions", "t", {"question": "fragen", "answer": "antwort"})


@pytest.mark.parametrize(
    ("columns", "layout", "said"),
    [
        ({"inputs": "x"}, "instructions", "columns: 'inputs' is no field of the layout 'instructions'; did you mean"),
        ({"question": "x"}, "instructions", "'question' is no field of the layout 'instructions'; known: input, instr"),
        ({"qestion": "x"}, None, "'qestion' is no field of any layout; did you mean 'question'"),
        ({"instruction": "x", "output": "x"}, "instructions", "two fields are of one column"),
        ({"instruction": ""}, "instructions", "instruction names no column"),
    ],
)
def test_columns_are_checked_when_they_are_read(
    tmp_path: Path, columns: dict[str, str], layout: str | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        spec(tmp_path / "rows.json", layout=layout, columns=columns)


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        ({"a": 1, "b": 2}, {}, r"its columns \(a, b\) are those of no layout .*instructions: instruction and output"),
        ({"text": "x", "instruction": "a", "output": "b"}, {}, "the layouts instructions and text alike.*say in"),
        ({"question": "a", "instruction": "b"}, {"answer": "b"}, "no row has a column 'b'"),
        ({}, {}, r"its columns \(none\)"),
        ({f"c{i}": i for i in range(50)}, {}, r"c19, …\)"),
    ],
)
def test_a_file_of_no_layout_or_of_two_is_refused(
    tmp_path: Path, row: dict[str, Any], columns: dict[str, str], said: str
) -> None:
    with pytest.raises(HarnessError, match=said):
        find_layout(write(tmp_path, [row], "json"), columns)


def test_choices_are_no_plain_questions_and_later_rows_may_have_more(tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": 0}, {"question": "a", "answer": 0, "choices": ["x"]}]
    assert find_layout(write(tmp_path, rows, "jsonl"), {}) == "choices"
    assert find_layout(write(tmp_path, rows[:1], "jsonl"), {}) == "questions"
    assert find_layout(write(tmp_path, [{"frage": 1, "antwort": 2}], "csv"), {"question": "frage", "answer": "antwort"})


def test_the_first_rows_are_read_no_further(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n' * 200 + "not json\n")
    assert find_layout(file, {}) == "text"
    with pytest.raises(HarnessError, match="row 201: is not JSON"):
        read_data_file(file, "text", "t")


def test_a_row_is_what_it_says_wherever_it_stands() -> None:
    assert TrainingRow("a", "", "b", "t", place="row 1") == TrainingRow("a", "", "b", "t", place="row 2")
