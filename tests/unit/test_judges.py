"""One call of a judge: every way in which an endpoint may fail, against a real server on this machine."""

from __future__ import annotations

import json
import threading
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from harness.errors import HarnessError
from harness.evaluation.chat_request import ChatRequest
from harness.evaluation.judges import ChatEndpoint, JudgeFailed, RateLimit, Stopped
from harness.evaluation.local_judge import LocalJudge
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
        (Act(None, body=b'{"choices": [{"message": {"content": [{"type": "image"}]}}]}'), "is no text"),
        (Act(None, body=b'{"choices": [{"message": {"content": {"text": "x"}}}]}'), "is no text"),
        (
            Act(None, body=b'{"error": {"message": "Provider returned error", "code": 502}}'),
            "no choices[0].message.content (Provider returned error)",
        ),
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


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ('{"content": []}', ""),
        ('{"content": [{"type": "text", "text": "Fine. "}, {"type": "text", "text": "[[8]]"}]}', "Fine. [[8]]"),
        ('{"content": [{"type": "thinking", "thinking": "[[2]]?"}, {"type": "text", "text": "[[8]]"}]}', "[[8]]"),
        ('{"content": null, "refusal": "I cannot judge this."}', "I cannot judge this."),
        ('{"content": "", "refusal": "I cannot."}', "I cannot."),
        ('{"content": "[[3]]", "refusal": null}', "[[3]]"),
        ('{"content": null, "reasoning_content": "[[2]]"}', ""),
    ],
)
def test_what_a_message_says_is_its_text(message: str, text: str) -> None:
    with served(Act(None, body=f'{{"choices": [{{"message": {message}}}]}}'.encode())) as judge:
        assert endpoint(judge).ask(MESSAGES).text == text
    assert len(judge.requests) == 1


def test_a_judgment_that_ended_at_the_limit_is_known() -> None:
    body = '{{"choices": [{{"message": {{"content": "x"}}, "finish_reason": "{}"}}]}}'
    for reason, cut in (("stop", False), ("length", True)):
        with served(Act(None, body=body.format(reason).encode())) as judge:
            assert endpoint(judge).ask(MESSAGES).cut is cut


def refusing(*fields: tuple[str, str], param: bool = True) -> Any:
    """Return a script that refuses fields of a request, each with a sentence, then judges."""

    def script(number: int, body: dict[str, Any]) -> Act:
        for name, words in fields:
            if name in body:
                error = {"message": words, "type": "invalid_request_error", "code": "unsupported_parameter"}
                return Act(
                    status=400, body=json.dumps({"error": {**error, **({"param": name} if param else {})}}).encode()
                )
        return Act()

    return script


MAX_TOKENS = (
    "max_tokens",
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
)
TEMPERATURE = (
    "temperature",
    "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
)


@pytest.mark.parametrize("param", [True, False])
def test_a_field_that_is_refused_is_renamed_or_left_out_once_and_for_all(param: bool) -> None:
    waits = Waits()
    with served(refusing(MAX_TOKENS, TEMPERATURE, param=param)) as judge:
        client = endpoint(judge, waits, max_retries=0)
        replies = [client.ask(MESSAGES) for _ in range(2)]
    fields = {"n": 1, "max_completion_tokens": 2048}
    assert [(reply.text, dict(reply.sent), reply.temperature) for reply in replies] == [
        ("Rating: [[7]]", fields, "refused")
    ] * 2
    assert len(judge.requests) == 4, "two were refused, and neither is sent a second time"
    assert judge.requests[-1] == {"model": "gpt-4", "messages": MESSAGES, **fields}
    assert waits == []


def test_threads_that_meet_one_refusal_adapt_once() -> None:
    request = ChatRequest(9)
    sent, _ = request.sent()
    data = json.dumps({"error": {"message": MAX_TOKENS[1], "param": "max_tokens"}}).encode()
    assert request.adapt(sent, 400, data)
    assert request.adapt(sent, 400, data)
    assert request.sent() == ({"n": 1, "temperature": 0, "max_completion_tokens": 9}, "protocol")


def test_n_is_left_out_where_it_is_refused_by_name() -> None:
    with served(refusing(("n", "n is not supported"))) as judge:
        assert dict(endpoint(judge).ask(MESSAGES).sent) == {"temperature": 0, "max_tokens": 2048}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "max_tokens is too large: 2048. This model supports at most 1024 completion tokens"),
        (400, "This model's maximum context length is 4096 tokens, reduce max_tokens"),
        (400, "the model gpt-4 is not supported"),
        (403, "max_tokens is not supported"),
    ],
)
def test_other_refusals_change_no_request(status: int, words: str) -> None:
    body = json.dumps({"error": {"message": words}}).encode()
    with served(Act(status=status, body=body)) as judge, pytest.raises(JudgeFailed, match=str(status)):
        endpoint(judge).ask(MESSAGES)
    assert len(judge.requests) == 1


def test_options_say_what_is_sent_from_the_first_request_on() -> None:
    with served(Act()) as judge:
        client = endpoint(judge, max_tokens_field="max_completion_tokens", temperature="default")
        reply = client.ask(MESSAGES)
    assert judge.requests == [{"model": "gpt-4", "messages": MESSAGES, "n": 1, "max_completion_tokens": 2048}]
    assert reply.temperature == "default"
    with served(refusing(MAX_TOKENS)) as judge, pytest.raises(JudgeFailed, match="not supported"):
        endpoint(judge, max_tokens_field="max_tokens").ask(MESSAGES)


def test_a_local_judge_whose_template_refuses_a_system_prompt_says_so(tiny_llama: Path) -> None:
    import torch

    from harness.tensors.loading import load_model, load_tokenizer

    model, tokenizer = load_model(tiny_llama, "fp32", torch.device("cpu")), load_tokenizer(tiny_llama)
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(JudgeFailed, match="refuses the question: System role not supported") as failure:
        LocalJudge(model, tokenizer, version="w").ask(MESSAGES)
    assert failure.value.hopeless


def test_a_local_judge_without_memory_fails_that_question_alone(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from harness.tensors.loading import load_model, load_tokenizer

    model, tokenizer = load_model(tiny_llama, "fp32", torch.device("cpu")), load_tokenizer(tiny_llama)

    def full(**_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    judge = LocalJudge(model, tokenizer, version="w", max_tokens=3)
    assert judge.ask(MESSAGES).cut
    monkeypatch.setattr(model, "generate", full)
    with pytest.raises(JudgeFailed, match="ran out of memory") as failure:
        judge.ask(MESSAGES)
    assert not failure.value.hopeless


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
