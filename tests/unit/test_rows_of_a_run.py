"""What became of a run's rows and text stands in its record, counted from the file to the last step, and is said."""

from __future__ import annotations

import json
import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from harness.catalogue.datasets import DatasetSpec
from harness.record import Record
from harness.remarks import remarks_of
from tests.proofs import record_of, task_of

GOOD = [{"instruction": f"say {i}", "output": f"word {i}"} for i in range(6)]
ODD: list[dict[str, Any]] = [
    {"instruction": "nothing", "output": None},
    {"instruction": "special tokens", "output": "</s>"},
    {"instruction": "blank", "output": "\u200b\n"},
    {"instruction": "long " * 8, "output": "kept"},
    {"instruction": "long answer", "output": "x" * 40},
    {"instruction": "ended", "output": "done</s>\n"},
    {"instruction": "again", "input": math.nan, "output": "same"},
    {"instruction": "again", "input": "", "output": "same"},
]


def run(rows: list[dict[str, Any]], model: Path, folder: Path, patch: pytest.MonkeyPatch, **changes: Any) -> Record:
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    asked = {"data": "own", "prompt": "plain", "loss_on": "answer", "sequence_length": 32, "batch_size": 2}
    task = task_of("full", model, folder, **{**asked, "num_steps": 5, **changes})
    own = DatasetSpec(name="own", layout="instructions", file=file, checksum=sha256(file.read_bytes()).hexdigest())
    return record_of(task.model_copy(update={"datasets": {"own": own}}), patch)


def test_one_epoch_is_counted_to_the_token(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run(GOOD + ODD, tiny_llama, tmp_path, monkeypatch)
    assert record.status == "ok", record.reason
    rows, encoding = record.rows, record.encoding
    assert rows is not None and encoding is not None and record.train is not None
    assert (rows.num_source_rows, rows.num_rows, rows.num_blank_rows, rows.num_repeated_rows) == (14, 10, 3, 1)
    assert rows.num_held_out_rows == 1
    # 41 + 5 tokens and 12 + 41 tokens where there is room for 32.
    assert (rows.num_cut_tokens, rows.num_cut_answers) == (14 + 21, 1)
    assert sum(record.train.curve.truncated_rows) == 2
    assert (encoding.num_rows_begun, encoding.num_rows_ended) == (0, 1)
    assert all(loss is not None and math.isfinite(loss) for loss in record.train.curve.loss)
    said = {remark.kind: remark.sentence for remark in remarks_of(record)}
    assert set(said) - {"second moments"} == {"rows cut", "blank rows", "repeated rows", "special tokens once"}
    assert said["rows cut"].startswith("2 of 10 trained rows were longer than sequence_length = 32")


def test_packed_rows_are_counted(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run(GOOD + ODD[3:4], tiny_llama, tmp_path, monkeypatch, packing=True)
    assert record.status == "ok", record.reason
    rows = record.rows
    assert rows is not None
    # One of 7 rows is held out; five of 6 and 7 tokens are left before one of 41 and 5, whose last
    # piece holds the end of the fifth, which nothing predicts, and prompt.
    assert (rows.num_packed_tokens, rows.num_unpacked_tokens, rows.num_untrained_rows) == (64, 15, 1)
    assert remarks_of(record)[0].sentence == (
        "1 of 3 packed rows hold no token to train on and 15 of 111 tokens stand behind the last whole packed row: "
        "left out"
    )


@pytest.mark.parametrize(
    ("rows", "changes", "reason"),
    [
        (ODD[:1], {}, "all of its 1 rows are blank"),
        (ODD[1:2], {}, "holds no example with a token to train on"),
        (GOOD[:1] * 20, {"validation_rows": 2}, "only 1 prompt, and rows with one prompt stay together"),
        (GOOD, {"packing": True, "sequence_length": 512}, "holds no example with a token to train on"),
    ],
)
def test_what_cannot_be_trained_on_is_one_sentence_and_no_divergence(
    rows: list[dict[str, Any]],
    changes: dict[str, Any],
    reason: str,
    tiny_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = run(rows, tiny_llama, tmp_path, monkeypatch, **changes)
    assert record.status in ("failed", "refused")
    assert record.reason is not None and reason in record.reason
