"""One call of a judge: every way in which an endpoint may fail, against a real server on this machine."""

from __future__ import annotations

import threading
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.evaluation.judges import ChatEndpoint, JudgeFailed, LocalJudge, RateLimit, Stopped
from tests.judge import Act, ServedJudge, served

MESSAGES = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": "Grade ü {x}."}]
KEY = "sk-very-secret"


class Waits(list[float]):
    """Pauses that were asked for; none is made."""

    def __call__(self, seconds: float) -> bool:
        if seconds > 0:
            self.append(seconds)
        return False


def endpoint(judge: ServedJudge, waits: Waits | None = None, **changes: Any) -> ChatEndpoint:
    settings: dict[str, Any] = {"key": KEY, "max_retries": 2, "wait": waits if waits is not None else Waits()}
    return ChatEndpoint(judge.url, "gpt-4", **{**settings, "jitter": lambda: 1.0, **changes})


def first(*acts: Act) -> Any:
    """Return a script of these acts, then good judgments."""
    return lambda number, body: acts[number] if number < len(acts) else Act()


def test_a_judgment_is_asked_for_as_fastchat_asks() -> None:
    with served(Act("Fine. [[8]]")) as judge:
        reply = endpoint(judge).ask(MESSAGES)
    assert (reply.text, reply.version) == ("Fine. [[8]]", "gpt-4-0613")
    assert judge.requests == [
        {"model": "gpt-4", "messages": MESSAGES, "n": 1, "temperature": 0, "max_tokens": 2048},
    ]
    assert judge.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert judge.headers[0]["path"] == "/v1/chat/completions"


def test_no_key_is_sent_where_there_is_none() -> None:
    with served(Act()) as judge:
        endpoint(judge, key=None).ask(MESSAGES)
    assert "Authorization" not in judge.headers[0]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again_after_a_growing_pause(status: int) -> None:
    waits = Waits()
    with served(first(Act(status=status), Act(status=status))) as judge:
        assert endpoint(judge, waits).ask(MESSAGES).text == "Rating: [[7]]"
    assert waits == [1.0, 2.0]
    assert len(judge.requests) == 3


def test_the_pause_has_jitter_and_a_bound() -> None:
    waits = Waits()
    with served(Act(status=503)) as judge, pytest.raises(JudgeFailed):
        endpoint(judge, waits, max_retries=9, jitter=lambda: 0.0).ask(MESSAGES)
    assert waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_a_pause_that_the_judge_asks_for_is_kept() -> None:
    waits = Waits()
    date = formatdate(timeval=4102444800, usegmt=True)  # far off: given up
    with served(first(Act(status=429, headers={"Retry-After": "7"}))) as judge:
        endpoint(judge, waits).ask(MESSAGES)
    assert waits == [7.0]
    with served(Act(status=429, headers={"Retry-After": date})) as judge, pytest.raises(JudgeFailed) as failure:
        endpoint(judge, waits).ask(MESSAGES)
    assert failure.value.hopeless
    assert "asks to wait" in str(failure.value)
    assert len(judge.requests) == 1


@pytest.mark.parametrize("header", ["soon", "nan", ""])
def test_a_pause_that_means_nothing_is_passed_over(header: str) -> None:
    waits = Waits()
    with served(first(Act(status=429, headers={"Retry-After": header}))) as judge:
        endpoint(judge, waits).ask(MESSAGES)
    assert waits == [1.0]


def test_429_for_ever_is_one_sentence() -> None:
    act = Act(status=429, body=b'{"error": {"message": "Rate limit reached"}}')
    with served(act) as judge, pytest.raises(JudgeFailed) as failure:
        endpoint(judge).ask(MESSAGES)
    assert str(failure.value) == "the judge answered 429 Too Many Requests (Rate limit reached), 3 times in a row"
    assert not failure.value.hopeless


@pytest.mark.parametrize(("status", "hopeless"), [(400, False), (401, True), (403, True), (404, True), (302, True)])
def test_a_refusal_is_not_tried_again(status: int, hopeless: bool) -> None:
    act = Act(status=status, body=f"no: {KEY} is wrong".encode(), headers={"Location": "http://127.0.0.1:1/steal"})
    with served(act) as judge, pytest.raises(JudgeFailed) as failure:
        endpoint(judge).ask(MESSAGES)
    assert failure.value.hopeless == hopeless
    assert len(judge.requests) == 1
    assert str(status) in str(failure.value)
    assert KEY not in str(failure.value)
    assert "[key]" in str(failure.value)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (Act(None, body=b"<html>busy</html>"), "is not JSON: '<html>busy</html>'"),
        (Act(None, body=b"[" * 100_000), "is not JSON"),
        (Act(None, body=b'{"choices": []}'), "no choices[0].message.content"),
        (Act(None, body=b"[]"), "no choices[0].message.content"),
        (Act(None, body=b'{"choices": [{"message": {"content": [1]}}]}'), "is no text"),
        (Act(hang_up=True), "broke the connection off"),
    ],
)
def test_a_reply_that_is_none_is_tried_again_and_then_said(act: Act, words: str) -> None:
    with served(act) as judge, pytest.raises(JudgeFailed) as failure:
        endpoint(judge).ask(MESSAGES)
    assert words in str(failure.value)
    assert "3 times in a row" in str(failure.value)
    assert len(judge.requests) == 3


def test_an_empty_judgment_is_a_judgment() -> None:
    with served(Act(None, body=b'{"choices": [{"message": {"content": null}}]}')) as judge:
        reply = endpoint(judge).ask(MESSAGES)
    assert (reply.text, reply.version) == ("", "not reported")


def test_silence_is_a_time_out() -> None:
    never = threading.Event()
    with served(Act(wait=never)) as judge, pytest.raises(JudgeFailed) as failure:
        endpoint(judge, timeout_seconds=0.1, max_retries=1).ask(MESSAGES)
    never.set()
    assert str(failure.value) == "the judge was silent for 0.1 s, 2 times in a row"


def test_nobody_there_is_said() -> None:
    with served(Act()) as judge:
        pass
    with pytest.raises(JudgeFailed, match="cannot be reached"):
        endpoint(judge).ask(MESSAGES)


def test_a_key_that_the_judge_repeats_is_cut_out() -> None:
    with served(Act(f"{KEY} [[3]]")) as judge:
        assert endpoint(judge).ask(MESSAGES).text == "[key] [[3]]"


@pytest.mark.parametrize("key", ["sk a", "sk\nx", "skü"])
def test_a_key_that_no_header_takes_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(HarnessError) as error:
        ChatEndpoint("http://127.0.0.1:1", "gpt-4", key=key)
    assert key not in str(error.value)


@pytest.mark.parametrize("url", ["ftp://x:secret@127.0.0.1", "http://me:secret@127.0.0.1/v1", "http://", "http://[::1"])
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(HarnessError) as error:
        ChatEndpoint(url, "gpt-4", key=None)
    assert "secret" not in str(error.value)


def test_the_whole_address_may_be_given() -> None:
    with served(Act()) as judge:
        judge.url += "/chat/completions"
        client = endpoint(judge)
        client.ask(MESSAGES)
    assert judge.headers[0]["path"] == "/v1/chat/completions"
    assert client.endpoint == judge.url.removesuffix("/v1/chat/completions")


def test_calls_are_spaced_out_over_the_minute_retries_included() -> None:
    now = [100.0]
    waits = Waits()

    def wait(seconds: float) -> bool:
        now[0] += seconds
        return waits(seconds)

    limit = RateLimit(20, wait, clock=lambda: now[0])
    for _ in range(4):
        limit.take()
    assert waits == [3.0, 3.0, 3.0]
    now[0] += 10
    limit.take()
    assert len(waits) == 3


def test_an_interrupt_ends_the_waiting() -> None:
    stop = threading.Event()
    stop.set()
    with served(Act(status=503)) as judge, pytest.raises(Stopped):
        endpoint(judge, wait=stop.wait).ask(MESSAGES)
    assert not judge.requests


def test_a_local_model_is_asked_in_its_own_chat_template_and_answers_greedily(tiny_llama: Path) -> None:
    import torch

    from harness.tensors.loading import load_model, load_tokenizer

    model, tokenizer = load_model(tiny_llama, "fp32", torch.device("cpu")), load_tokenizer(tiny_llama)
    local = LocalJudge(model, tokenizer, version="weights abc", max_tokens=6)
    reply = local.ask(MESSAGES)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
    assert reply.text == tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    assert reply.version == local.known_version == "weights abc"
    with pytest.raises(JudgeFailed, match="takes no prompt of"):
        local.ask([{"role": "user", "content": "x" * 2000}])
    tokenizer.chat_template = None
    with pytest.raises(HarnessError, match="no chat template"):
        LocalJudge(model, tokenizer, version="weights abc")
