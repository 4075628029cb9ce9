"""What the fuzzing tests read of a judge: its text, its replies, the files of answers and judgments, MT-Bench's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from harness.assets.mt_bench import load_mt_bench, read_answers
from harness.errors import HarnessError
from harness.evaluation.grading import Judged, gradings, mt_bench_scores, parse_score
from harness.evaluation.judges import ChatEndpoint, JudgeFailed, Reply
from harness.evaluation.judging import JudgeSettings, judge_answers
from harness.record import Score
from tests.fuzzing import JSON_ONLY, Target, as_json, documents
from tests.judge import Act, served
from tests.mt_bench import write_bench

JUDGMENT = {
    **{"question_id": 81, "model": "tiny", "judge": ["gpt-4", "single-v1"], "user_prompt": "p"},
    **{"judgment": "[[7]]", "score": 7, "turn": 1, "tstamp": 1.0, "repeat": 0, "judge_version": "v"},
    **{"prompt_version": "c", "max_tokens": 9},
}
REPLY = {"model": "gpt-4-0613", "choices": [{"message": {"role": "assistant", "content": "Rating: [[7]]"}}]}


def _judgments(folder: Path) -> Callable[[bytes], object]:
    """The text of a judge, scored; and as what a run's judgments become."""
    bench = load_mt_bench(write_bench(folder / "bench"))
    answers = {question.question_id: ("a", "b") for question in bench.questions}
    asked = gradings(bench, answers, "gpt-4")[:1]

    class Fake:
        endpoint = "fake"
        known_version = None
        text = ""

        def ask(self, _messages: object) -> Reply:
            return Reply(self.text, self.text[:20])

    def read(data: bytes) -> object:
        judge, file = Fake(), folder / "judgments.jsonl"
        try:
            judge.text = data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            judge.text = data.decode("utf-8", "replace")
        score = parse_score(judge.text)
        assert math.isfinite(score)
        file.unlink(missing_ok=True)
        settings = JudgeSettings("gpt-4", "tiny", "c", 9, 1)
        outcome = judge_answers(judge, asked, file, settings)
        found = mt_bench_scores([*outcome.judged, Judged(1, "math", 1, 0, score)], "judge")
        return [Score.model_validate_json(one.model_dump_json()) for one in found]

    return read


def _judgment_files(folder: Path) -> Callable[[bytes], object]:
    bench = load_mt_bench(write_bench(folder / "bench"))
    asked = gradings(bench, {81: ("a", "b")}, "gpt-4")[:1]
    known = json.dumps(JUDGMENT | {"user_prompt": asked[0].user_prompt, "judge": ["gpt-4", asked[0].prompt_name]})

    class Fake:
        endpoint = "fake"
        known_version = None

        def ask(self, _messages: object) -> Reply:
            return Reply("[[3]]", "v")

    def read(data: bytes) -> object:
        file = folder / "judgments.jsonl"
        file.write_bytes(data.replace(b'"p"', json.dumps(asked[0].user_prompt).encode()) + b"\n" + known.encode())
        outcome = judge_answers(Fake(), asked, file, JudgeSettings("gpt-4", "tiny", "c", 9, 1))
        return mt_bench_scores(outcome.judged, ", ".join(outcome.versions))

    return read


def _answers(folder: Path) -> Callable[[bytes], object]:
    """MT-Bench's files, each of which may be spoilt, and what is asked of them."""
    files = ("mt_bench/question.jsonl", "judge_prompts.jsonl", "mt_bench/reference_answer/gpt-4.jsonl", "answers.jsonl")

    def read(data: bytes) -> object:
        bench = write_bench(folder / "bench")
        answers = bench / "answers.jsonl"
        answers.write_text('{"question_id": 83, "choices": [{"turns": ["a", "b"]}]}\n')
        (bench / files[len(data) % len(files)]).write_bytes(data)
        found = load_mt_bench(bench)
        return [grading.messages for grading in gradings(found, read_answers(answers), "gpt-4")]

    return read


def _endpoint(_folder: Path) -> Callable[[bytes], object]:
    """What an endpoint replies, over HTTP."""

    def read(data: bytes) -> object:
        act = Act(None, body=data) if len(data) % 3 else Act(status=400 + len(data) % 200, body=data)
        with served(act) as judge:
            client = ChatEndpoint(judge.url, "gpt-4", key="sk-secret", max_retries=0, wait=lambda seconds: False)
            try:
                reply = client.ask([{"role": "user", "content": "x"}])
            except JudgeFailed as error:
                raise HarnessError(str(error)) from None
        return reply.text.encode(), reply.version.encode()

    return read


_SCORE_TEXT = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(("[[", "]]", "[", "]", "1", "10", "7.5", "9" * 400, "9" * 5000, ".", "٣", "0", "-", "\n")),
        st.sampled_from(("1" * 200_000, "[" * 200_000, "[[1" * 50_000, "[[" + "1." * 50_000, "\x1b[2J", "nan", "1e9")),
    ),
    max_size=8,
).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass"))

JUDGING: dict[str, Target] = {
    "judge answers": Target(_judgments, st.one_of(_SCORE_TEXT, _SCORE_TEXT, st.binary(max_size=400))),
    "judge replies": Target(_endpoint, documents([REPLY, {"error": {"message": "no"}}], as_json, *JSON_ONLY)),
    "judgment files": Target(_judgment_files, documents([JUDGMENT], as_json, *JSON_ONLY)),
    "MT-Bench files": Target(
        _answers,
        documents(
            [
                {"question_id": 83, "category": "math", "turns": ["a", "b"]},
                {"question_id": 83, "choices": [{"turns": ["a", "b"]}]},
                {
                    **{"name": "single-v1", "type": "single", "system_prompt": "s", "output_format": "[[rating]]"},
                    "prompt_template": "{question} {answer}",
                },
            ],
            as_json,
            *JSON_ONLY,
        ),
    ),
}
