"""A small MT-Bench in FastChat's layout, and runs that answered it, made by hand for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.assets.mt_bench import content_checksum
from harness.record import MTBenchAnswers, Record
from harness.settings import EvaluationSettings, MTBenchSettings
from harness.store import Store
from tests.records import make_record, make_spec

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
SYSTEM = "You are a {judge}."


def write_bench(folder: Path, categories: tuple[str, ...] = CATEGORIES) -> Path:
    """Write one question a category, numbered from 81, with references for those that need them."""
    questions = [
        {"question_id": 81 + number, "category": category, "turns": [f"{category} é {{one}}?", f"{category} two?"]}
        for number, category in enumerate(categories)
    ]
    references = [
        {"question_id": q["question_id"], "choices": [{"index": 0, "turns": ["ref {1}", "ref 2"]}]}
        for q in questions
        if q["category"] in ("reasoning", "math", "coding")
    ]
    prompts = [
        {
            "name": f"{name}{ending}",
            "type": "single",
            "system_prompt": SYSTEM,
            "prompt_template": _template(name, ending),
            "output_format": "[[rating]]",
        }
        for name in ("single-v1", "single-math-v1")
        for ending in ("", "-multi-turn")
    ]
    pair = {"name": "pair-v2", "type": "pairwise", "prompt_template": "{a}", "output_format": "[[A]]"}
    lines(folder / "mt_bench" / "question.jsonl", questions)
    lines(folder / "mt_bench" / "reference_answer" / "gpt-4.jsonl", references)
    lines(folder / "judge_prompts.jsonl", [pair, *prompts])
    return folder


def _template(name: str, ending: str) -> str:
    first = "" if name == "single-v1" else "[ref {ref_answer_1}]"
    if not ending:
        return f"{first}[question {{question}}][answer {{answer}}]"
    second = "" if name == "single-v1" else "[ref {ref_answer_2}]"
    return f"{first}{second}[{{question_1}}][{{answer_1}}][{{question_2}}][{{answer_2}}]"


def lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def add_answers(results: Path, bench: Path, *, label: str = "full", seed: int = 1, uuid: str = "u1") -> Record:
    """Append the record of a run that answered every question, and its answers."""
    questions = [json.loads(line) for line in (bench / "mt_bench" / "question.jsonl").read_text().splitlines()]
    model_id = f"tiny-{label}-seed{seed}"
    file = f"items/{uuid}.answers.jsonl"
    answers = [
        {
            "question_id": question["question_id"],
            "answer_id": "a",
            "model_id": model_id,
            "choices": [{"index": 0, "turns": [f"{label} answer {{1}}", f"{label} answer 2"]}],
            "tstamp": 1.0,
        }
        for question in questions
    ]
    lines(results / file, answers)
    spec = make_spec(
        suite="mt-bench-small",
        protocol="mt-bench-fastchat-small-v1",
        label=label,
        seed=seed,
        evaluation=EvaluationSettings(tasks=(), mt_bench=MTBenchSettings(data="mt_bench", max_new_tokens=8), limit=1),
        conversation="chatml",
        sources={"train": "rows", "mt_bench": f"file:{content_checksum(bench)}"},
    )
    record = make_record(
        uuid=uuid,
        spec=spec,
        mt_bench=MTBenchAnswers(
            file=file,
            model_id=model_id,
            template="chatml",
            template_origin="harness",
            num_questions=len(answers),
            num_cut=0,
            sampling={"top_k": 50},
        ),
    )
    Store(results).append(record)
    return record
