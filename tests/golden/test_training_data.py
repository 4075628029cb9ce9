"""Training examples as the embedded model's tokenizer sees them, in files that a person can read (``data/*.txt``).

Every file was read when it was made: prompts by the words of their sources, ``⟦ ⟧`` around what the loss sees. The rows
are made up, in the layouts of the data sets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.models import load_models
from harness.conversation import find_template
from harness.data.examples import Example, encode, pack
from harness.data.files import TrainingRow, read_data_file
from harness.data.showing import LEGEND, heading, marked, pieces
from harness.data.wording import instruction_of
from harness.preparing.assets import converted_model_place
from harness.settings import TrainSettings
from tests.conftest import needed
from tests.records import TRAIN

FOLDER = Path(__file__).parent / "data"
ROWS = (
    TrainingRow("Name the capital of France.", "", "Paris is the capital of France.", "x"),
    TrainingRow("Correct the sentence.", "He go home.", "He goes home.", "x"),
)
CHOICES = {"text": ["paper", "iron", "wool"], "label": ["A", "B", "C"]}
COMMONSENSE: dict[str, dict[str, Any]] = {
    "boolq": {"question": "is ice lighter than water", "passage": "Ice floats.", "label": 1},
    "piqa": {"goal": "To dry a shirt,", "sol1": "hang it up.", "sol2": "put it in a bucket.", "label": 0},
    "social_iqa": {
        "context": "Kim gave Lee a book.",
        "question": "What will Lee do?",
        "answerA": "read it",
        "answerB": "eat it",
        "answerC": "plant it",
        "label": "1",
    },
    "hellaswag": {
        "activity_label": "Cooking",
        "ctx": "A man cracks an egg. He",
        "endings": ["stirs it.", "flies.", "swims.", "sings."],
        "label": "0",
    },
    "winogrande": {
        "sentence": "The cup fits the box as the _ is small.",
        "option1": "cup",
        "option2": "box",
        "answer": "1",
    },
    "arc_easy": {"question": "Which is magnetic?", "choices": CHOICES, "answerKey": "B"},
    "arc_challenge": {"question": "Which keeps you warm?", "choices": CHOICES, "answerKey": "C"},
    "openbookqa": {"question_stem": "A nail is made of", "choices": CHOICES, "answerKey": "B"},
}
MMLU = [
    {"question": "What is 2 + 3?", "subject": "", "choices": ["4", "5", "6", "7"], "answer": 1},
    {
        "question": " Which planet is largest?\n",
        "subject": "",
        "choices": ["Mars", "Venus", "Earth", "Jupiter"],
        "answer": 3,
    },
]
GSM8K = [
    {
        "question": "Ann has 3 bags with 4 apples each. How many apples has she?",
        "answer": "She has 3*4 = <<3*4=12>>12 apples.\n#### 12",
    }
]
TALKS = [
    {
        "messages": [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "What barks?"},
            {"role": "assistant", "content": "Dogs."},
            {"role": "user", "content": "And what\n\npurrs?"},
            {"role": "assistant", "content": "Cats."},
        ]
    },
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
]
TEXTS = [
    "What is 1+1?\nThe answer is 2.",
    "Name a colour that the sky often has.\nThe sky is often blue, and grey in winter.",
    "Is snow warm?\nfalse",
    "Say nothing more.\nDone with it, and there is no more to say.",
]


@pytest.fixture(scope="module")
def smollm2() -> Any:
    from harness.tensors.loading import load_tokenizer

    place = converted_model_place(load_models()["smollm2-135m"])
    return load_tokenizer(needed(place))


def settings(**changes: Any) -> TrainSettings:
    return TRAIN.model_copy(update={"sequence_length": 256, **changes})


def file_rows(folder: Path, values: Any, layout: str, name: str = "rows.json") -> list[TrainingRow]:
    file = folder / name
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(values), file)
    else:
        file.write_text(json.dumps(values))
    return read_data_file(file, layout, "x")


def alpaca(folder: Path) -> tuple[Sequence[TrainingRow], TrainSettings]:
    return ROWS, settings(prompt="alpaca")


def commonsense(folder: Path) -> tuple[Sequence[TrainingRow], TrainSettings]:
    rows = [
        TrainingRow(asked, "", answer, task)
        for task, row in COMMONSENSE.items()
        for asked, answer in (instruction_of(task, row),)
    ]
    return rows, settings(prompt="alpaca")


def owlore(folder: Path) -> tuple[Sequence[TrainingRow], TrainSettings]:
    texts = {"type": "text_only", "instances": [{"text": text} for text in TEXTS]}
    return file_rows(folder, texts, "text"), settings(prompt="as_is", loss_on="all", packing=True, sequence_length=24)


def packed_answers(folder: Path) -> tuple[Sequence[TrainingRow], TrainSettings]:
    return ROWS * 2, settings(prompt="plain", packing=True, sequence_length=16)


def chat(folder: Path) -> tuple[Sequence[TrainingRow], TrainSettings]:
    return ROWS, settings(prompt="chat")


def conversation(folder: Path) -> tuple[Sequence[TrainingRow], TrainSettings]:
    return ROWS, settings(prompt="conversation")


def truncation(folder: Path) -> tuple[Sequence[TrainingRow], TrainSettings]:
    long = TrainingRow("Count.", "", " ".join(map(str, range(1, 30))), "x")
    return (*ROWS, long), settings(prompt="plain", sequence_length=12)


def conversations(folder: Path) -> tuple[Sequence[TrainingRow], TrainSettings]:
    return file_rows(folder, TALKS, "messages"), settings(prompt="chat")


def turns_of_a_prompt(folder: Path) -> tuple[Sequence[TrainingRow], TrainSettings]:
    rows = [{"prompt": talk["messages"][:-1], "completion": talk["messages"][-1:]} for talk in TALKS[:1]]
    return file_rows(folder, rows, "prompt-completion"), settings(prompt="conversation")


def completions(folder: Path) -> tuple[Sequence[TrainingRow], TrainSettings]:
    rows = [{"prompt": "2 + 2 =", "completion": "4"}, {"prompt": "Once upon", "completion": " a time"}]
    return file_rows(folder, rows, "prompt-completion", "rows.parquet"), settings(prompt="as_is")


def mmlu(folder: Path) -> tuple[Sequence[TrainingRow], TrainSettings]:
    return file_rows(folder, MMLU, "choices", "rows.parquet"), settings(prompt="as_is")


def gsm8k(folder: Path) -> tuple[Sequence[TrainingRow], TrainSettings]:
    return file_rows(folder, GSM8K, "questions"), settings(prompt="plain")


Case = Callable[[Path], tuple[Sequence[TrainingRow], TrainSettings]]
CASES: dict[str, Case] = {
    "alpaca-prompt": alpaca,
    "chat-template": chat,
    "commonsense-rows": commonsense,
    "given-template-chatml": conversation,
    "completions": completions,
    "conversations": conversations,
    "gsm8k-rows": gsm8k,
    "mmlu-auxiliary-train": mmlu,
    "owlore-packed": owlore,
    "packed-answers": packed_answers,
    "truncation": truncation,
    "turns-of-a-prompt": turns_of_a_prompt,
}


def shown(case: Case, folder: Path, tokenizer: Any) -> str:
    rows, train = case(folder)
    template = find_template("chatml") if train.prompt == "conversation" else None
    examples: list[Example] = [encode(row, tokenizer, train, template) for row in rows]
    if train.packing:
        examples = pack(examples, train.sequence_length)
    parts = [f"--- {heading(e, n)}\n{marked(pieces(e, tokenizer), e)}\n" for n, e in enumerate(examples, start=1)]
    return "\n".join([LEGEND + "\n", *parts])


@pytest.mark.parametrize("name", sorted(CASES))
def test_examples_are_the_golden_ones(name: str, smollm2: Any, tmp_path: Path) -> None:
    actual = shown(CASES[name], tmp_path, smollm2)
    (tmp_path / f"{name}.txt").write_text(actual, encoding="utf-8")
    assert actual == (FOLDER / f"{name}.txt").read_text(encoding="utf-8"), f"see {tmp_path / name}.txt"


def test_every_golden_file_has_its_case() -> None:
    assert {file.stem for file in FOLDER.glob("*.txt")} == set(CASES)


def test_mmlu_rows_are_the_same_out_of_parquet_and_json(tmp_path: Path) -> None:
    assert file_rows(tmp_path, MMLU, "choices", "rows.parquet") == file_rows(tmp_path, MMLU, "choices")


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_marks_are_those_of_the_loss(name: str, smollm2: Any, tmp_path: Path) -> None:
    from harness.data.batches import collate

    rows, train = CASES[name](tmp_path)
    template = find_template("chatml") if train.prompt == "conversation" else None
    examples = [encode(row, smollm2, train, template) for row in rows]
    for example in pack(examples, train.sequence_length) if train.packing else examples:
        parts = pieces(example, smollm2)
        assert sum(part.num_tokens for part in parts if part.trained) == collate([example], 0).num_trained_tokens
        assert sum(part.num_tokens for part in parts) == len(example.ids)
        assert "".join(part.text for part in parts) == smollm2.decode(list(example.ids))
