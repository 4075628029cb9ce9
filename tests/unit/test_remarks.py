"""What has to be known of a run beside its figures is said when it ends, in show and in the report."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.commands._output import Display
from harness.commands.show import show
from harness.record import Record, Score
from harness.record_text import EncodingFacts, RowFacts, ScoringFacts
from harness.remarks import KINDS, remarks_of
from harness.report.write import terminal_table, write_report
from harness.settings import EvaluationSettings
from harness.store import Contents, Store
from tests.records import make_record
from tests.unit import test_proof as proofs

make = proofs.make


def training(truncated: tuple[int, ...]) -> Any:
    whole = proofs.training()
    return whole.model_copy(update={"curve": whole.curve.model_copy(update={"truncated_rows": truncated})})


def a_run(label: str, **changes: Any) -> Record:
    suite = make.make_suite(labels=("full", "lora"), seeds=(1,))
    record: Record = make.make_record(label, suite=suite, train=changes.pop("train", training(())), **changes)
    return record


def score(task: str, shots: int, n: int) -> Score:
    return Score(
        task=task,
        metric="acc",
        value=0.5,
        stderr=None,
        n=n,
        higher_is_better=True,
        task_version="1",
        num_fewshot=shots,
    )


def held_back(**counts: int) -> Any:
    """Return the proof of a run whose growth limiter held updates of some matrices back."""
    projected = {name: {"num_refreshes": 1, "num_updates": 900, "num_held_back": n} for name, n in counts.items()}
    return proofs.proof().model_copy(update={"method": {"projected": projected}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"train": training(()).model_copy(update={"other_ranks_before_step": 3})},
            (
                "other devices",
                f"the first 3 of {training(()).num_steps} steps were taken by another number of devices: peaks, the "
                "time of a step and the proof of the optimizer's state are of the steps since",
            ),
        ),
        (
            {"train": training((2, 0, 1))},
            ("rows cut", "rows were longer than sequence_length = "),
        ),
        ({"rows": RowFacts(num_blank_rows=3)}, ("blank rows", "3 blank rows of the training data were left out")),
        (
            {"rows": RowFacts(num_rows=10, num_held_out_rows=30, num_held_out_prompts=2, num_prompts=5)},
            ("held out", "30 of 40 rows, those of 2 of 5 prompts, were held out of training"),
        ),
        (
            {"rows": RowFacts(num_rows=10, num_held_out_rows=4, num_held_out_asked=3)},
            ("held-out questions", "3 of 4 held-out texts ask what a training text asks"),
        ),
        ({"rows": RowFacts(num_rows=100, num_repeated_rows=2)}, ("repeated rows", "2 of 100 rows to train on repeat")),
        (
            {"rows": RowFacts(num_validated_rows=4, num_validated_cut_rows=2, num_validated_cut_tokens=1500)},
            ("rows cut", "2 of 4 rows of the held-out batch were cut, by 1,500 tokens"),
        ),
        (
            {"train": training((2, 0, 1)), "rows": RowFacts(num_cut_tokens=1234, num_cut_answers=1)},
            ("rows cut", "and were cut, which left 1,234 tokens out, 1 of these rows lost the end of their answer"),
        ),
        (
            {"rows": RowFacts(num_packed_tokens=0, num_unpacked_tokens=1500, num_untrained_rows=1)},
            ("packing", "1 of 1 packed rows hold no token to train on and 1,500 of "),
        ),
        (
            {"encoding": EncodingFacts(left_out=("[SEP]",))},
            ("end left out", "puts [SEP] behind every text, which was left out"),
        ),
        (
            {"encoding": EncodingFacts(beginning=("<s>",), num_rows_begun=3, num_rows_ended=2)},
            ("special tokens once", "of the rows trained on 3 began with <s> and 2 ended as answers end"),
        ),
        (
            {"proof": held_back(a=0, b=3, c=812)},
            (
                "held back",
                "in 2 of 3 projected matrices, which all but stood still meanwhile: c for 812; limiter_at_zero",
            ),
        ),
        (
            {"scoring": ScoringFacts(cut_contexts={"piqa": 7}), "scores": (score("piqa", 5, 9),)},
            ("contexts cut", "lost their beginning, 5-shot is not true of them: piqa 7 of 9"),
        ),
        (
            {"scoring": ScoringFacts(cut_contexts={"piqa": 7}), "scores": (score("piqa", 0, 9),)},
            ("contexts cut", "lost their beginning: piqa 7 of 9"),
        ),
        ({"scoring": ScoringFacts(long_continuations={"piqa": 7})}, ("choices in pieces", "scored in pieces: piqa 7")),
        (
            {"scoring": ScoringFacts(tied_items={"boolq": 2}), "scores": (score("boolq", 0, 9),)},
            ("tied choices", "the first counts: boolq 2 of 9"),
        ),
        (
            {"scoring": ScoringFacts(questions_in_shots={"piqa": 2}), "scores": (score("piqa", 5, 9),)},
            ("question among its shots", "few-shot examples: piqa 2 of 9"),
        ),
        (
            {"scoring": ScoringFacts(repeated_answers={"qa": ("f1", "em")})},
            ("metrics by order", "once for each of several targets: qa: f1, em"),
        ),
        (
            {"scoring": ScoringFacts(own_generation={"num_beams": 3, "stop_strings": ["x"]})},
            ("model's own generation settings", 'as by lm-eval: num_beams = 3, stop_strings = ["x"]'),
        ),
        (
            {"scoring": ScoringFacts(overruled_generation={"max_time": 3.0})},
            ("generation settings set aside", "without the model's own generation settings: max_time = 3.0"),
        ),
        (
            {"scoring": ScoringFacts(num_empty_answers=3)},
            ("empty answers", "3 of MT-Bench's turns have"),
        ),
        ({"scoring": ScoringFacts(num_short_of_room=4)}, ("short of room", "4 of MT-Bench's turns had less room")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_fact_is_said(changes: dict[str, Any], said: tuple[str, str]) -> None:
    (remark,) = remarks_of(a_run("full", **changes))
    assert remark.kind == said[0]
    assert said[1] in remark.sentence


def test_held_back_updates_are_told_by_what_passes_the_limiter_and_what_is_set() -> None:
    record = a_run("full", proof=held_back(a=0, b=3))
    spec = record.spec.model_copy(update={"method": "fira", "config": {"limiter_at_zero": "skip", "projector": "svd"}})
    (remark,) = remarks_of(record.model_copy(update={"spec": spec}))
    assert remark.sentence == (
        "the norm-growth limiter left less than a hundredth of what is added to updates in 1 of 2 projected matrices, "
        "where GaLore's part alone moved them: b for 3"
    )


def test_text_of_scored_questions_that_was_read_before_is_said() -> None:
    record = a_run("full")
    sources = {"train": "packaged:commonsense@1", "general": "packaged:passages@1", "calibration": "github:c4"}
    evaluation = EvaluationSettings(tasks=("boolq", "piqa", "mmlu"), rows="hub")
    spec = record.spec.model_copy(update={"sources": sources, "evaluation": evaluation})
    (remark,) = remarks_of(record.model_copy(update={"spec": spec}))
    assert remark.kind == "scored text read"
    assert remark.sentence == (
        "text of questions that rows = 'hub' scores was read for training (boolq, piqa), the general text (boolq)"
    )
    ended = {"spec": spec, "status": "failed", "train": None, "scores": ()}
    assert remarks_of(record.model_copy(update=ended)) == (), "it ended before it read anything"
    scored = evaluation.model_copy(update={"rows": "packaged-scored"})
    assert remarks_of(record.model_copy(update={"spec": spec.model_copy(update={"evaluation": scored})})) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rows": RowFacts(num_blank_rows=0)},
        {"rows": RowFacts(num_packed_tokens=100_000, num_unpacked_tokens=900, num_untrained_rows=0)},
        {"rows": RowFacts(num_rows=1000, num_held_out_rows=10, num_held_out_prompts=10, num_prompts=1010)},
        {"rows": RowFacts(num_rows=10, num_held_out_rows=30, num_held_out_asked=0, num_repeated_rows=0)},
        {"encoding": EncodingFacts(beginning=("<s>",), left_out=(), end="</s>", num_rows_begun=0, num_rows_ended=0)},
        {"scoring": ScoringFacts(cut_contexts={})},
        {"scoring": ScoringFacts(tied_items={}, own_generation={}, overruled_generation={}, num_short_of_room=0)},
        {"train": None},
        {"proof": held_back(a=0)},
    ],
    ids=[
        "no facts",
        "no blank rows",
        "little behind the last packed row",
        "the share held out",
        "parts of its own",
        "nothing added or left out",
        "no cut contexts",
        "nothing of the scoring",
        "no training",
        "none held back",
    ],
)
def test_where_nothing_happened_nothing_is_said(changes: dict[str, Any]) -> None:
    assert remarks_of(a_run("full", **changes)) == ()


def test_the_rows_that_were_cut_are_counted_among_those_trained_on() -> None:
    train = training((2, 0, 1))
    record = a_run("full", train=train)
    asked = record.train_settings
    assert asked is not None
    rows = train.num_steps * asked.batch_size * asked.gradient_accumulation_steps
    (remark,) = remarks_of(record)
    assert remark.sentence.startswith(f"3 of {rows} trained rows ")


def test_a_report_marks_the_label_and_says_it_once_for_all_alike(tmp_path: Path) -> None:
    blank = RowFacts(num_blank_rows=3)
    suite = make.make_suite(labels=("full", "lora"), seeds=(1,))
    records = (a_run("full", rows=blank), a_run("lora", rows=blank), a_run("base"))
    (file, *_) = write_report(suite, Contents(records), tmp_path, ["md"])
    text = file.read_text()
    assert "¶ Blank rows: 3 blank rows of the training data were left out (full, lora)." in text
    assert text.count("3 blank rows") == 1
    words = [" ".join(line.split()) for line in text.splitlines()]
    assert [line for line in words if line.startswith("| full ¶ |")]
    assert not [line for line in words if line.startswith("| base ¶")]
    (file,) = write_report(suite, Contents(records), tmp_path, ["json"])
    assert [(one["label"], one["kind"]) for one in json.loads(file.read_text())["remarks"]] == [
        ("full", "blank rows"),
        ("lora", "blank rows"),
    ]
    page = Console(file=io.StringIO(), width=200)
    terminal_table(suite, Contents(records), page)
    assert isinstance(page.file, io.StringIO)
    assert "¶ Blank rows" in page.file.getvalue()


def test_a_report_says_it_of_scores_that_were_added_later(tmp_path: Path) -> None:
    record = a_run("full")
    few, many = (
        make.make_record("full", minute=minute, kind="evaluation", of=record.uuid, scores=(score("mmlu", 5, n),))
        for minute, n in ((10, 3), (20, 9))
    )
    few = few.model_copy(update={"scoring": ScoringFacts(cut_contexts={"mmlu": 1})})
    many = many.model_copy(update={"scoring": ScoringFacts(cut_contexts={"mmlu": 7})})
    suite = make.make_suite(labels=("full", "lora"), seeds=(1,))
    md, machine = write_report(suite, Contents((record, few, many)), tmp_path, ["md", "json"])[:2]
    assert "full ¶" in md.read_text()
    assert "lost their beginning, 5-shot is not true of them: mmlu 7 of 9 (full)." in md.read_text()
    assert "mmlu 1 of 3" not in md.read_text(), "of a score that stands in no cell nothing is said"
    assert [one["kind"] for one in json.loads(machine.read_text())["remarks"]] == ["contexts cut"]


def test_of_several_models_a_report_says_which_are_meant(tmp_path: Path) -> None:
    suite = make.make_suite(models=("first", "second"), labels=("full", "lora"), seeds=(1,))
    blank, cut = RowFacts(num_blank_rows=3), EncodingFacts(left_out=("[SEP]",))
    changes = {"train": training(())}
    records = (
        make.make_record("full", model="first", suite=suite, rows=blank, encoding=cut, **changes),
        make.make_record("lora", model="first", suite=suite, rows=blank, **changes),
        make.make_record("full", model="second", suite=suite, encoding=cut, **changes),
    )
    (file, *_) = write_report(suite, Contents(records), tmp_path, ["md"])
    assert "training data were left out (first: full, lora)." in file.read_text()
    assert "contexts and answers (full)." in file.read_text(), "alike on both"


def test_of_many_sentences_of_one_kind_the_first_are_said_and_the_rest_counted(tmp_path: Path) -> None:
    labels = tuple("abcde")
    suite = make.make_suite(labels=labels, seeds=(1,))
    records = tuple(a_run(label, rows=RowFacts(num_blank_rows=n + 1)) for n, label in enumerate(labels))
    (file, *_) = write_report(suite, Contents(records), tmp_path, ["md"])
    (line,) = (line for line in file.read_text().splitlines() if "Blank rows" in line)
    assert line.count("were left out") == 3
    assert "; and 2 more like it, in harness show" in line


def test_a_run_that_ends_says_it_after_what_went_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record(notes=("the checkpoint of step 2 was passed over",), rows=RowFacts(num_blank_rows=2))
    with Display(1) as display:
        display.run_ended(record)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: the checkpoint of step 2 was passed over",
        "note: 2 blank rows of the training data were left out",
    ]


def test_show_says_it_in_words_and_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record(notes=("passed over",), rows=RowFacts(num_blank_rows=2))
    Store(tmp_path).append(record)
    show(record.run_id, results=tmp_path)
    said = capsys.readouterr().out
    assert "passed over" in said
    assert "blank rows: 2 blank rows of the training data were left out" in said
    show(record.run_id, results=tmp_path, in_json=True)
    assert json.loads(capsys.readouterr().out)["remarks"] == [
        {"kind": "blank rows", "sentence": "2 blank rows of the training data were left out"}
    ]


def test_every_kind_is_written_as_a_title_may_begin() -> None:
    assert all(kind == kind.lower() and not kind.endswith(".") for kind in KINDS)
