"""MT-Bench against the installed fschat; what needs its old openai client is in ``tests/fastchat``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.evaluation.grading import parse_score
from harness.evaluation.verdicts import NOT_PARSED
from tests.fastchat import checks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    for name in ("fastchat", "openai", "anthropic", "psutil"):
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def bench() -> Any:
    return checks.packaged_bench()


@pytest.mark.parametrize("template", checks.TEMPLATES)
def test_all_prompts_are_byte_for_byte_fastchats(
    template: str, bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = checks.fastchat_answers(bench, template, monkeypatch, tmp_path)
    assert len(theirs[0]) == 160
    assert checks.our_answers(bench, template, monkeypatch) == theirs


def test_judge_prompts_scores_and_averages_are_fastchats(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastchat.llm_judge import common

    texts = iter(checks.judge_texts())
    messages: list[Any] = []

    def said(model: str, conversation: Any, **_settings: Any) -> str:
        messages.append(conversation.to_openai_api_messages())
        return next(texts)

    monkeypatch.setattr(common, "chat_completion_openai", said)
    ours = checks.our_gradings(bench)
    file = tmp_path / "gpt-4_single.jsonl"
    theirs = [common.play_a_match_single(match, str(file)) for match in checks.fastchat_matches(bench)]
    assert len(theirs) == 160
    mine = [ours[result["question_id"], result["turn"]] for result in theirs]
    assert [one.messages for one in mine] == messages
    assert [one.user_prompt for one in mine] == [result["user_prompt"] for result in theirs]
    assert [(checks.JUDGE, one.prompt_name) for one in mine] == [result["judge"] for result in theirs]
    scores = [parse_score(text) for text in checks.judge_texts()[:160]]
    assert scores == [result["score"] for result in theirs]
    assert 0 < scores.count(NOT_PARSED) < 160
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    categories = {question.question_id: question.category for question in bench.questions}
    judged = [
        checks.Judged(row["question_id"], categories[row["question_id"]], row["turn"], 0, row["score"]) for row in rows
    ]
    checks.check_averages(file, judged, capsys)
