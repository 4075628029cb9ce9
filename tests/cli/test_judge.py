"""``harness judge`` as a user runs it, against a real server on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from harness.record import Record
from harness.store import Store
from tests.cli.conftest import called
from tests.judge import Act, served
from tests.mt_bench import add_answers, write_bench

KEY = "sk-very-secret-0123"
FAST = ("--max-retries", "1", "--timeout", "5")


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return write_bench(tmp_path / "bench")


@pytest.fixture
def results(tmp_path: Path, bench: Path) -> Path:
    add_answers(tmp_path / "results", bench)
    return tmp_path / "results"


def arguments(url: str, results: Path, bench: Path, *more: str) -> list[str]:
    """Return a judging's command line; what ``more`` says itself is not said before it."""
    usual = {
        "--suite": "mt-bench-small",
        "--judge": url,
        "--judge-model": "gpt-4",
        "--results": str(results),
        "--data": f"mt_bench={bench}",
    }
    said = [part for option, value in usual.items() if option not in more for part in (option, value)]
    return [sys.executable, "-P", "-m", "harness.cli", "judge", *said, *more]


def judge(url: str, results: Path, bench: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    asked = arguments(url, results, bench, *more)
    said = {"NO_PROXY": "127.0.0.1", "OPENAI_API_KEY": KEY, **environment}
    return called(*asked[asked.index("judge") :], cwd=results.parent, environment=said)


def judged(results: Path) -> list[Record]:
    return [record for record in Store(results).read("mt-bench-small").records if record.kind == "evaluation"]


def rows(results: Path) -> list[dict[str, Any]]:
    (file,) = (results / "judgments").rglob("*_single.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def nowhere_written(root: Path, secret: str) -> bool:
    return not any(secret.encode() in file.read_bytes() for file in root.rglob("*") if file.is_file())


def test_all_answers_are_judged_and_the_scores_are_a_record(results: Path, bench: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> Act:
        return Act(f"Rating: [[{1 + number % 8}]]")

    with served(script) as server:
        done = judge(server.url, results, bench)
    assert done.returncode == 0, done.stderr
    assert "mean 4.50 points over 16 of 16 judgments" in done.stdout
    assert len(server.requests) == 16
    (record,) = judged(results)
    (run,) = (r for r in Store(results).read().records if r.kind == "run")
    assert (record.status, record.reason, record.of, record.run_id) == ("ok", None, run.uuid, run.run_id)
    scores = {score.metric: score for score in record.scores}
    assert {metric: score.value for metric, score in scores.items()} == {
        "turn 1": 4.5,
        "turn 2": 4.5,
        "mean": 4.5,
        "mean of 8 categories": 4.5,
        "mean of 7 categories": pytest.approx((36 - 5) / 7),  # coding, the fifth, left out
        **{name: number for number, name in enumerate(("writing", "roleplay", "reasoning", "math", "coding"), 1)},
        "extraction": 6,
        "stem": 7,
        "humanities": 8,
    }
    assert {score.unit for score in record.scores} == {"points"}
    assert {score.task_version for score in record.scores} == {record.judging.identity}  # type: ignore[union-attr]
    assert record.judging is not None
    assert (record.judging.judge, record.judging.judge_version) == ("gpt-4", "gpt-4-0613")
    assert (record.judging.num_parsed, record.judging.num_unparsed, record.judging.num_missing) == (16, 0, 0)
    assert record.judging.endpoint == server.url.removesuffix("/v1")


def test_the_judgments_are_in_fastchats_fields(results: Path, bench: Path) -> None:
    with served(Act("Good. [[9.5]]")) as server:
        judge(server.url, results, bench)
    first, last = rows(results)[0], rows(results)[-1]
    assert {name: first[name] for name in ("question_id", "model", "judge", "judgment", "score", "turn")} == {
        "question_id": 81,
        "model": "tiny-full-seed1",
        "judge": ["gpt-4", "single-v1"],
        "judgment": "Good. [[9.5]]",
        "score": 9.5,
        "turn": 1,
    }
    assert first["user_prompt"] == "[question writing é {one}?][answer full answer {1}]"
    assert last["turn"] == 2
    math = next(row for row in rows(results) if row["judge"][1] == "single-math-v1-multi-turn")
    assert math["user_prompt"].startswith("[ref ref {1}][ref ref 2][reasoning é {one}?][full answer {1}]")


def test_the_key_reaches_the_judge_and_nothing_else(results: Path, bench: Path) -> None:
    with served(Act(f"{KEY} [[5]]")) as server:
        done = judge(server.url, results, bench)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in done.stdout + done.stderr
    assert nowhere_written(results, KEY)
    with served(Act(status=401, body=f"bad key {KEY}".encode())) as server:
        done = judge(server.url, results, bench, "--judge-model", "other", "--key-variable", "MINE", MINE=KEY)
    assert done.returncode == 1
    assert KEY not in done.stdout + done.stderr
    assert nowhere_written(results, KEY)


def test_a_named_key_that_is_not_there_is_wrong_use(results: Path, bench: Path) -> None:
    done = judge("http://127.0.0.1:1/v1", results, bench, "--key-variable", "NOT_SET_ANYWHERE")
    assert done.returncode == 2
    assert "NOT_SET_ANYWHERE" in done.stderr


@pytest.mark.parametrize(
    ("act", "words", "num_requests"),
    [
        (Act(status=401), "16 of 16 judgments are missing: the judge answered 401 Unauthorized", 1),
        (
            Act(status=429, headers={"Retry-After": "0"}),
            "16 of 16 judgments are missing: the judge answered 429 Too Many Requests, 2 times in a row",
            6,
        ),
        (Act("I would rather not."), "no score could be read in any of 16 judgments; the first is 'I would rath", 16),
        (Act(""), "no score could be read in any of 16 judgments; the first is empty", 16),
    ],
)
def test_a_judge_that_fails_is_a_recorded_outcome(
    act: Act, words: str, num_requests: int, results: Path, bench: Path
) -> None:
    with served(act) as server:
        done = judge(server.url, results, bench, *FAST)
    assert done.returncode == 1
    assert words in done.stdout
    assert "Traceback" not in done.stderr
    assert len(server.requests) == num_requests
    (record,) = judged(results)
    assert record.status == "failed"
    assert record.reason is not None
    assert record.reason.startswith(words)
    assert not record.scores


def test_a_judge_that_is_silent_or_talks_rubbish_is_a_recorded_outcome(results: Path, bench: Path) -> None:
    never = threading.Event()

    def script(number: int, body: dict[str, Any]) -> Act:
        return Act(wait=never) if number == 0 else Act(None, body=b"<html>")

    with served(script) as server:
        done = judge(server.url, results, bench, "--max-retries", "0", "--timeout", "0.3")
        never.set()
    assert done.returncode == 1
    (record,) = judged(results)
    assert record.reason == "16 of 16 judgments are missing: the judge was silent for 0.3 s"
    assert len(server.requests) == 3, "after three failures in a row nobody is asked any more"


def test_judgments_without_a_score_are_counted_and_in_no_mean(results: Path, bench: Path) -> None:
    with served(lambda number, body: Act("[[4]]" if number % 2 else "no idea")) as server:
        done = judge(server.url, results, bench)
    assert done.returncode == 0
    assert "in 8 judgments no score could be read" in done.stderr
    (record,) = judged(results)
    assert record.judging is not None
    assert (record.judging.num_parsed, record.judging.num_unparsed) == (8, 8)
    mean = next(score for score in record.scores if score.metric == "mean")
    assert (mean.value, mean.n) == (4.0, 8)
    assert [row["score"] for row in rows(results)].count(-1) == 8


def test_one_question_that_fails_leaves_the_others_and_is_asked_again(results: Path, bench: Path) -> None:
    with served(lambda number, body: Act(status=400) if number == 4 else Act()) as server:
        done = judge(server.url, results, bench)
        assert done.returncode == 1
        assert len(server.requests) == 16
        again = judge(server.url, results, bench)
        assert again.returncode == 0, again.stdout
    assert len(server.requests) == 17
    assert set(server.paid.values()) == {1}
    assert [record.status for record in judged(results)] == ["failed", "ok"]


def test_several_ratings_are_counted_and_the_last_may_be_asked_for(results: Path, bench: Path) -> None:
    texts = ("The format is [[5]]. Rating: [[9]]", "Rating: [[7]]", "<think>[[1]]</think> Rating: [[8]]")
    with served(lambda number, body: Act(texts[number % 3])) as server:
        done = judge(server.url, results, bench)
        assert "6 judgments give several ratings that differ, of which the first counts" in done.stderr
        assert "5 judgments begin with thinking, in which no rating is read" in done.stderr
        last = judge(server.url, results, bench, "--verdict", "last")
        assert len(server.requests) == 16, "the judgments on file are read anew"
    assert f"mean {(6 * 5 + 5 * 7 + 5 * 8) / 16:.2f}" in done.stdout
    assert f"mean {(6 * 9 + 5 * 7 + 5 * 8) / 16:.2f}" in last.stdout
    assert "of which the last counts" in last.stderr
    found = [record.judging for record in judged(results)]
    assert [(one.num_several, one.num_thinking, one.verdict) for one in found if one] == [(6, 5, None), (6, 5, "last")]
    first, second = (one.identity for one in found if one)
    assert second == f"{first}, the last rating of several"


def newer(number: int, body: dict[str, Any]) -> Act:
    """Refuse what OpenAI's newer models refuse."""
    for name in ("max_tokens", "temperature"):
        if name in body:
            error = {"message": f"'{name}' is not supported with this model", "param": name}
            return Act(status=400, body=json.dumps({"error": error}).encode())
    return Act()


def test_an_endpoint_that_takes_no_temperature_is_asked_without_and_that_is_who_judged(
    results: Path, bench: Path
) -> None:
    with served(newer) as server:
        done = judge(server.url, results, bench, "--max-retries", "0")
        assert done.returncode == 0, done.stderr
        assert "at the endpoint's own temperature" in done.stderr
        assert len(server.requests) == 18
        for more in ((), ("--temperature", "default")):
            assert judge(server.url, results, bench, *more).returncode == 0
            assert len(server.requests) == 18, "what is on file stands for both"
    (record,) = judged(results)
    assert record.judging is not None
    assert record.judging.sent == ({"n": 1, "max_completion_tokens": 2048},)
    assert record.judging.identity.endswith(", the endpoint's own temperature")
    assert {(row["temperature"], "max_completion_tokens" in row["sent"]) for row in rows(results)} == {
        ("refused", True)
    }


def test_a_judgment_at_another_temperature_stands_for_none_at_the_protocols(results: Path, bench: Path) -> None:
    with served(Act()) as server:
        for number, more in enumerate((("--temperature", "default"), (), ("--temperature", "default")), start=1):
            assert judge(server.url, results, bench, *more).returncode == 0
            assert len(server.requests) == 16 * min(number, 2)
    assert [record.judging.temperature for record in judged(results) if record.judging] == ["default", None]


def test_options_of_an_endpoint_are_none_of_a_folder(results: Path, bench: Path, tmp_path: Path) -> None:
    done = judge(str(tmp_path), results, bench, "--temperature", "default")
    assert done.returncode == 2
    assert "are for an endpoint, and --judge names a folder" in done.stderr


def test_what_is_judged_is_not_judged_again(results: Path, bench: Path) -> None:
    with served(Act()) as server:
        judge(server.url, results, bench)
        done = judge(server.url, results, bench)
        assert done.returncode == 0
        assert len(server.requests) == 16
        assert len(judged(results)) == 1
        judge(server.url, results, bench, "--judge-model", "gpt-5")
        assert len(server.requests) == 32, "another judge is asked anew"


def test_a_killed_judging_goes_on_without_a_second_paid_call(results: Path, bench: Path) -> None:
    reached, never = threading.Event(), threading.Event()

    def script(number: int, body: dict[str, Any]) -> Act:
        if number == 5:
            reached.set()
            return Act(wait=never)
        return Act()

    with served(script) as server:
        process = subprocess.Popen(
            arguments(server.url, results, bench),
            env={**os.environ, "NO_PROXY": "127.0.0.1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert reached.wait(30)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(rows(results)) == 5
        (file,) = (results / "judgments").rglob("*_single.jsonl")
        with file.open("a") as stream:
            stream.write('{"question_id": 8')  # as a crash in the middle of a line leaves it
        done = judge(server.url, results, bench)
        never.set()
    assert done.returncode == 0, done.stderr
    assert len(server.paid) == 16
    assert set(server.paid.values()) == {1}
    assert len(rows(results)) == 16


def test_an_interrupt_keeps_what_is_under_way(results: Path, bench: Path) -> None:
    reached = threading.Event()

    def script(number: int, body: dict[str, Any]) -> Act:
        if number == 3:
            reached.set()
            time.sleep(0.5)  # the call that is under way when the interrupt comes
        return Act()

    with served(script) as server:
        process = subprocess.Popen(
            arguments(server.url, results, bench),
            env={**os.environ, "NO_PROXY": "127.0.0.1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert reached.wait(30)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "the same command goes on" in said
        assert len(rows(results)) == 4
        assert judged(results)[-1].status == "interrupted"
        assert judge(server.url, results, bench).returncode == 0
    assert set(server.paid.values()) == {1}


def test_repeats_are_judgments_of_their_own(results: Path, bench: Path) -> None:
    with served(lambda number, body: Act("[[4]]" if number < 16 else "[[6]]")) as server:
        judge(server.url, results, bench)
        done = judge(server.url, results, bench, "--repeats", "2")
    assert done.returncode == 0, done.stderr
    assert len(server.requests) == 32, "the first repeat was on file"
    record = judged(results)[-1]
    assert record.judging is not None
    assert record.judging.repeat_means == (4.0, 6.0)
    mean = next(score for score in record.scores if score.metric == "mean")
    assert (mean.value, mean.n) == (5.0, 32)


def test_several_calls_at_a_time_give_the_same(results: Path, bench: Path) -> None:
    with served(Act()) as server:
        done = judge(server.url, results, bench, "--concurrency", "4")
    assert done.returncode == 0
    assert set(server.paid.values()) == {1}
    assert len(rows(results)) == 16


def test_a_dry_run_counts_calls_and_tokens_and_makes_none(results: Path, bench: Path) -> None:
    with served(Act()) as server:
        judge(server.url, results, bench)
        done = judge(server.url, results, bench, "--repeats", "3", "--dry-run")
    assert done.returncode == 0
    assert "1 runs, 48 judgments, 16 of them on file" in done.stdout
    assert "32 calls, about " in done.stdout
    assert "at most 65,536 tokens of judgments" in done.stdout
    assert len(server.requests) == 16


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--suite", "quickstart"), "asks no MT-Bench questions"),
        (("--suite", "mt-bench"), "has answers to judge; run it with"),
        (("--judge", "ftp://somewhere"), "neither an http address nor a folder"),
        (("--judge", "no-such-folder"), "there is no file or folder"),
        (("--run", "ffff"), "no run of suite"),
        (("--references", "gpt-5"), "no reference answers of 'gpt-5'; did you mean 'gpt-4'?"),
        (("--repeats", "0"), "at least 1"),
        (("--data", "mt_bench=."), "expected a folder in the layout of FastChat's data"),
    ],
)
def test_wrong_use_is_one_sentence(more: tuple[str, ...], words: str, results: Path, bench: Path) -> None:
    done = judge("http://127.0.0.1:1/v1", results, bench, *more)
    assert done.returncode == 2, done.stdout
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_answers_to_other_questions_are_not_judged(results: Path, tmp_path: Path) -> None:
    other = write_bench(tmp_path / "other", ("writing",))
    done = judge("http://127.0.0.1:1/v1", results, other)
    assert done.returncode == 2
    assert "answered the questions of file:" in done.stderr


def test_a_local_model_judges_too_without_a_network(results: Path, bench: Path, tiny_llama: Path) -> None:
    done = judge(str(tiny_llama), results, bench, "--max-tokens", "4", "--judge-model", "tiny")
    assert done.returncode == 1
    assert "no score could be read in any of 16 judgments" in done.stdout, done.stderr
    (record,) = judged(results)
    assert record.judging is not None
    assert record.judging.endpoint == "local"
    assert record.judging.judge_version is not None
    assert record.judging.judge_version.startswith("weights ")
    assert record.judging.max_tokens == 4
    assert len(rows(results)) == 16
