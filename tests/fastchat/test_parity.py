"""MT-Bench against FastChat itself, with the openai client that it needs: run by ``tox -e fastchat``."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from harness.evaluation import mt_bench
from harness.evaluation.grading import parse_score
from harness.evaluation.judges import ChatEndpoint
from harness.evaluation.judging import JudgeSettings, judge_answers
from harness.evaluation.verdicts import NOT_PARSED
from tests.fastchat import checks
from tests.judge import Act, served

pytestmark = pytest.mark.fastchat


@pytest.fixture(scope="module")
def bench() -> Any:
    return checks.packaged_bench()


@pytest.fixture
def fastchat_judge(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that points the openai client of FastChat at a server."""
    import openai
    from fastchat.llm_judge import common

    assert int(version("openai").split(".")[0]) == 0
    monkeypatch.setattr(common, "API_RETRY_SLEEP", 0)

    def point(url: str) -> None:
        monkeypatch.setattr(openai, "api_base", url)
        monkeypatch.setattr(openai, "api_key", "none")

    return point


@pytest.mark.parametrize("template", checks.TEMPLATES)
def test_all_prompts_are_byte_for_byte_fastchats(
    template: str, bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = checks.fastchat_answers(bench, template, monkeypatch, tmp_path)
    ours = checks.our_answers(bench, template, monkeypatch)
    assert len(theirs[0]) == 160
    assert ours == theirs


def test_greedy_answers_of_a_model_are_fastchats(
    bench: Any, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The whole of ``get_model_answers``, on a real model of random weights, beside ours in batches."""
    import torch
    from fastchat.conversation import get_conv_template
    from fastchat.llm_judge import gen_model_answer

    from harness.conversation import find_template
    from harness.tensors.loading import load_model, load_tokenizer
    from harness.tensors.seeding import torch_generator

    model, tokenizer = load_model(tiny_llama, "fp32", torch.device("cpu")), load_tokenizer(tiny_llama)
    greedy = dict.fromkeys(mt_bench.TEMPERATURES, 0.0)
    monkeypatch.setattr(mt_bench, "TEMPERATURES", greedy)
    monkeypatch.setattr(gen_model_answer, "temperature_config", greedy)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(gen_model_answer, "load_model", lambda *_arguments, **_named: (model, tokenizer))
    monkeypatch.setattr(gen_model_answer, "get_conversation_template", lambda name: get_conv_template("zero_shot"))
    asked = [q for q in bench.questions if sum(map(len, q.turns)) < 300]
    assert len(asked) > 40
    rows = [{"question_id": q.question_id, "category": q.category, "turns": list(q.turns)} for q in asked]
    file = tmp_path / "theirs.jsonl"
    gen_model_answer.get_model_answers("", "m", rows, str(file), 12, 1, 1, None, None, "main")
    theirs = {row["question_id"]: row["choices"] for row in map(json.loads, file.read_text().splitlines())}
    given = mt_bench.answer_questions(
        model,
        tokenizer,
        asked,
        find_template("zero_shot"),
        model_id="m",
        max_new_tokens=12,
        batch_tokens=8192,
        generator=lambda stream: torch_generator(1, stream),
    )
    assert {row["question_id"]: row["choices"] for row in given.rows} == theirs


def test_all_requests_to_the_judge_are_fastchats(bench: Any, fastchat_judge: Any) -> None:
    """Both through HTTP: FastChat's by the openai client, ours by our own."""
    from fastchat.llm_judge import common

    ours = checks.our_gradings(bench)
    matches = checks.fastchat_matches(bench)
    assert len(matches) == len(ours) == 160
    with served(Act("Rating: [[5]]")) as server:
        fastchat_judge(server.url)
        results = [common.play_a_match_single(match, None) for match in matches]
        theirs, server.requests = server.requests, []
        endpoint = ChatEndpoint(server.url, checks.JUDGE, key=None)
        for result in results:
            endpoint.ask(ours[result["question_id"], result["turn"]].messages)
        assert server.requests == theirs
    for result in results:
        mine = ours[result["question_id"], result["turn"]]
        assert result["user_prompt"] == mine.user_prompt
        assert result["judge"] == (checks.JUDGE, mine.prompt_name)


def test_scores_and_averages_of_200_judgments_are_fastchats(
    bench: Any, fastchat_judge: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastchat.llm_judge import common

    texts = checks.judge_texts()
    assert len(texts) == 200
    match = checks.fastchat_matches(bench)[0]
    file = tmp_path / "judgments.jsonl"
    with served(lambda number, body: Act(texts[number])) as server:
        fastchat_judge(server.url)
        theirs = [common.play_a_match_single(match, str(file))["score"] for _ in texts]
    ours = [parse_score(text) for text in texts]
    assert ours == theirs
    assert 30 < ours.count(NOT_PARSED) < 170
    # The judgments of all questions, in a file that our stage wrote, read by FastChat's show_result.
    asked = list(checks.our_gradings(bench).values())
    settings = JudgeSettings(checks.JUDGE, "m", "p", 2048, 1)
    with served(lambda number, body: Act(texts[number])) as server:
        ours_file = tmp_path / "gpt-4_single.jsonl"
        outcome = judge_answers(ChatEndpoint(server.url, checks.JUDGE, key=None), asked, ours_file, settings)
    assert len(outcome.judged) == 160
    checks.check_averages(ours_file, outcome.judged, capsys)


def test_a_score_that_stops_fastchat_is_not_parsed_by_ours(bench: Any, fastchat_judge: Any) -> None:
    from fastchat.llm_judge import common

    match = checks.fastchat_matches(bench)[0]
    with served(Act("Rating: [[07]]")) as server:
        fastchat_judge(server.url)
        with pytest.raises(SyntaxError):
            common.play_a_match_single(match, None)
    assert parse_score("Rating: [[07]]") == NOT_PARSED


def test_fastchats_tables_are_ours() -> None:
    from fastchat.llm_judge import common

    from harness.evaluation.grading import REFERENCE_CATEGORIES
    from harness.evaluation.verdicts import PATTERNS

    theirs = {name: value for name, value in common.temperature_config.items() if name != "arena-hard-200"}
    assert theirs == mt_bench.TEMPERATURES
    assert [name for name in common.NEED_REF_CATS if name != "arena-hard-200"] == list(REFERENCE_CATEGORIES)
    assert [pattern.pattern for pattern in PATTERNS] == [
        common.one_score_pattern.pattern,
        common.one_score_pattern_backup.pattern,
    ]
