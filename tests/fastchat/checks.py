"""FastChat's own code beside ours, on the same questions, answers and judgments."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.assets.mt_bench import MTBench, load_mt_bench, packaged_place
from harness.conversation import find_template
from harness.evaluation import mt_bench as ours
from harness.evaluation.grading import Judged, gradings, mt_bench_scores, parse_score
from tests.conftest import needed

TEMPLATES = ("llama-2", "mistral", "vicuna_v1.1", "zero_shot", "one_shot", "alpaca", "zephyr", "openchat_3.5", "raw")
JUDGE = "gpt-4"


def packaged_bench() -> MTBench:
    return load_mt_bench(needed(packaged_place()))


def scripted_answer(prompt: str) -> str:
    """Return an answer that depends on the prompt, with what templates and formats could stumble over."""
    draw = random.Random(prompt)
    return f"Answer {draw.random()} {{braces}} {{0}} %s\n\\n “é” 漢字 🙂"


def fastchat_answers(
    bench: MTBench, template: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> tuple[list[str], dict[int, list[str]]]:
    """Return the prompts that FastChat's ``get_model_answers`` makes, and its answers, with scripted ones."""
    import torch
    from fastchat.conversation import get_conv_template
    from fastchat.llm_judge import gen_model_answer

    prompts: list[str] = []

    class Tokenizer:
        def __init__(self) -> None:
            self.special_tokens_map: dict[str, str] = {}

        def __call__(self, texts: list[str]) -> Any:
            prompts.extend(texts)
            return type("Encoded", (), {"input_ids": [[0]]})

        def decode(self, ids: Any, **_named: Any) -> str:
            return scripted_answer(prompts[-1])

    class Model:
        config = type("Config", (), {"is_encoder_decoder": False})

        def generate(self, ids: Any, **_named: Any) -> Any:
            return torch.tensor([[0, 1]])

    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(gen_model_answer, "load_model", lambda *_arguments, **_named: (Model(), Tokenizer()))
    monkeypatch.setattr(gen_model_answer, "get_conversation_template", lambda name: get_conv_template(template))
    file = folder / "theirs.jsonl"
    questions = [
        {"question_id": q.question_id, "category": q.category, "turns": list(q.turns)} for q in bench.questions
    ]
    gen_model_answer.get_model_answers("", "m", questions, str(file), 8, 1, 1, None, None, "main")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return prompts, {row["question_id"]: row["choices"][0]["turns"] for row in rows}


def our_answers(
    bench: MTBench, template: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], dict[int, list[str]]]:
    """Return our prompts in FastChat's order, and our answers, with the same scripted ones."""
    prompts: dict[tuple[int, int], str] = {}
    stops = find_template(template).stop_strings

    class Generation:
        def __init__(self, *_arguments: Any) -> None:
            """Take anything."""

        def answer(self, batch: Sequence[Any]) -> list[tuple[str, bool]]:
            for ask in batch:
                prompts[ask.question.question_id, ask.turn] = "".join(map(chr, ask.ids))
            texts = [scripted_answer("".join(map(chr, ask.ids))) for ask in batch]
            assert not any(stop in text for stop in stops for text in texts)
            return [(text.strip(), False) for text in texts]

    def tokenizer(text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}

    class Model:
        training = False

        def eval(self) -> None:
            """Do nothing."""

        def train(self, mode: bool) -> None:
            """Do nothing."""

    import torch

    monkeypatch.setattr(ours, "_Generation", Generation)
    given = ours.answer_questions(
        Model(),
        tokenizer,
        bench.questions,
        find_template(template),
        model_id="m",
        max_new_tokens=8,
        batch_tokens=1 << 20,
        generator=lambda stream: torch.Generator(),
    )
    order = [(question.question_id, turn) for question in bench.questions for turn in (0, 1)]
    return [prompts[key] for key in order], {row["question_id"]: row["choices"][0]["turns"] for row in given.rows}


def answers_of(bench: MTBench) -> dict[int, tuple[str, str]]:
    """Return scripted answers to all questions."""
    return {
        question.question_id: (scripted_answer(question.turns[0]), scripted_answer(question.turns[1]))
        for question in bench.questions
    }


def fastchat_matches(bench: MTBench) -> list[Any]:
    """Return FastChat's matches in the order in which it plays them, made by its own functions from its own files."""
    from fastchat.llm_judge import common, gen_judgment

    folder = packaged_place()
    questions = common.load_questions(str(folder / "mt_bench" / "question.jsonl"), None, None)
    references = common.load_model_answers(str(folder / "mt_bench" / "reference_answer"))
    judges = gen_judgment.make_judge_single(JUDGE, common.load_judge_prompts(str(folder / "judge_prompts.jsonl")))
    answers = {
        "m": {number: {"choices": [{"index": 0, "turns": list(both)}]} for number, both in answers_of(bench).items()}
    }
    maths = [q for q in questions if q["category"] in common.NEED_REF_CATS]
    others = [q for q in questions if q["category"] not in common.NEED_REF_CATS]
    matches = []
    for multi_turn, ending in ((False, ""), (True, "-mt")):
        for asked, kind, given in ((others, "default", None), (maths, "math", references)):
            judge = judges[kind + ending]
            matches += gen_judgment.make_match_single(
                asked, ["m"], answers, judge, ref_answers=given, multi_turn=multi_turn
            )
    return matches


def our_gradings(bench: MTBench) -> dict[tuple[int, int], Any]:
    return {(one.question_id, one.turn): one for one in gradings(bench, answers_of(bench), JUDGE)}


def judge_texts() -> list[str]:
    """Return 200 judge's answers, the malformed among them, always the same."""
    draw = random.Random(26)
    forms: list[Callable[[str], str]] = [
        lambda n: f"The answer is good.\n\nRating: [[{n}]]",
        lambda n: f"Rating: [{n}]",
        lambda n: f"Rating: {n}",
        lambda n: f"Rating: [[{n}]] rather than [[1]]",
        lambda n: f"[1] first, then [[{n}]]",
        lambda n: f"[[{n}/10]]",
        lambda n: f"[[{n} ]]",
        lambda n: f"[[{n},{n}]]",
        lambda n: f"Rating: [[{n}",
        lambda n: f"Rating: {n}]]",
        lambda n: f"(({n}))",
        lambda n: f"[[-{n}]]",
        lambda n: f"[[rating]] [{n}]",
        lambda n: f"**Rating: [[{n}]]** 漢字",
        lambda n: f"[[[{n}]]]",
        lambda n: f"[\n[{n}]\n]",
        lambda n: "",
        lambda n: "I cannot judge this.",
        lambda n: f"[[{n}]" + "]" * 3,
        lambda n: f"Array[{n}] is used; Rating: [[{n}.5]]",
    ]
    numbers = ["1", "5", "10", "7.5", "8.", "0", "11", "100", "3.14159", "9"]
    return [form(draw.choice(numbers)) for form in forms for _ in range(10)]


def check_averages(file: Path, judged: Sequence[Judged], capsys: pytest.CaptureFixture[str]) -> None:
    """Compare our means with those that FastChat's ``show_result`` prints of the same file of judgments."""
    import argparse

    import pandas as pd
    from fastchat.llm_judge.show_result import display_result_single

    arguments = argparse.Namespace(bench_name="mt_bench", input_file=str(file), judge_model=JUDGE, model_list=None)
    capsys.readouterr()
    with pd.option_context("display.precision", 12):
        display_result_single(arguments)
    printed = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if line.startswith("m ")]
    scores = {score.metric: score.value for score in mt_bench_scores(judged, JUDGE)}
    assert printed == [pytest.approx(scores[name], abs=1e-11) for name in ("turn 1", "turn 2", "mean")]


def judged_by(texts: Sequence[str], bench: MTBench) -> list[Judged]:
    """Return judgments of all questions and turns, read from texts in turn."""
    return [
        Judged(one.question_id, one.category, one.turn, 0, parse_score(texts[number % len(texts)]))
        for number, one in enumerate(our_gradings(bench).values())
    ]
