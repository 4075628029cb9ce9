"""Keys reach no record, no log and no error, whatever an endpoint or a library repeats of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import cli
from harness.engine.environment import describe_environment
from harness.evaluation.judges import ChatEndpoint, JudgeFailed
from harness.redaction import redacted
from tests.judge import Act, served
from tests.mt_bench import add_answers, write_bench
from tests.records import make_record

KEY = "correct-horse-battery-staple"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("https://me:{}@host.example/simple: 404", "https://[secret]@host.example/simple: 404"),
        ("401 for url https://h/x?api_key={}&n=1", "401 for url https://h/x?api_key=[secret]&n=1"),
        ("GET /x?a=1&X-Amz-Signature={} failed", "GET /x?a=1&X-Amz-Signature=[secret] failed"),
        ("sent Authorization: Bearer {} there", "sent Authorization: Bearer [secret] there"),
        ("Authorization: Basic {}", "Authorization: Basic [secret]"),
        ("key sk-{} is wrong", "key [secret] is wrong"),
        ("token hf_{}", "token [secret]"),
    ],
)
def test_what_has_the_form_of_a_key_is_cut_out(said: str, kept: str) -> None:
    assert redacted(said.format(KEY)) == kept
    record = make_record(status="failed", reason=said.format(KEY), log_tail=said.format(KEY))
    assert KEY not in record.model_dump_json()


def test_values_of_the_environment_that_are_keys_are_cut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JUDGE_KEY", "HF_TOKEN", "DB_PASSWORD", "aws_secret"):
        monkeypatch.setenv(name, f"{name}-{KEY}")
        record = make_record(status="failed", reason=f"cannot log in with {name}-{KEY}", prediction_error=KEY)
        assert record.reason == "cannot log in with [secret]"
    monkeypatch.setenv("EMPTY_KEY", "")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    monkeypatch.setenv("KEYBOARD", "a plain word")
    assert redacted("it is true, a plain word") == "it is true, a plain word"


def test_plain_sentences_stay_as_they_are() -> None:
    for text in ("https://host/path?x=1", "12:30 me@host", "the key 'rank' is missing", "a Basic idea", "risk-free"):
        assert redacted(text) == text


def test_a_long_log_takes_no_time() -> None:
    import time

    began = time.process_time()
    for text in ("://" * 300_000, "a" * 1_000_000, "?key=" * 200_000, "Bearer " * 100_000, "?" + "-" * 500_000):
        redacted(text)
    assert time.process_time() - began < 2


def test_the_environment_of_a_record_holds_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "SOME_VARIABLE"):
        monkeypatch.setenv(name, KEY)
    describe_environment.cache_clear()
    assert KEY not in describe_environment().model_dump_json()


@pytest.mark.parametrize("status", [200, 302, 400, 401, 429, 500])
def test_an_endpoint_that_repeats_header_and_address_leaks_nothing(status: int) -> None:
    body = f"header Bearer {KEY}, address /v1/chat/completions?code=query-{KEY}, query-{KEY}".encode()
    act = Act(None, body=body) if status == 200 else Act(status=status, body=body, headers={"Location": f"/{KEY}"})
    with served(act) as judge, pytest.raises(JudgeFailed) as failure:
        judge.url += f"?code=query-{KEY}"
        client = ChatEndpoint(judge.url, "m", key=KEY, max_retries=0, wait=lambda seconds: False)
        assert KEY not in client.endpoint
        client.ask([{"role": "user", "content": "x"}])
    assert judge.headers[0]["path"] == f"/v1/chat/completions?code=query-{KEY}"
    assert KEY not in str(failure.value)
    assert "[key]" in str(failure.value) or status == 302


def test_judging_leaves_no_key_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    results, bench = tmp_path / "results", write_bench(tmp_path / "bench")
    add_answers(results, bench)
    arguments = ["judge", "--suite", "mt-bench-small", "--judge-model", "m", "--max-retries", "0"]
    arguments += ["--data", f"mt_bench={bench}", "--results", str(results), "--key-variable", "MY_KEY"]
    for act in (Act(status=400, body=f"{{'Authorization': 'Bearer {KEY}'}}".encode()), Act(f"{KEY} [[7]]")):
        with served(act) as judge:
            cli.main([*arguments, "--judge", judge.url])
        assert judge.headers[0]["Authorization"] == f"Bearer {KEY}"
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    assert "[key]" in said.out
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_key_given_for_the_name_of_its_variable_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, bench = tmp_path / "results", write_bench(tmp_path / "bench")
    add_answers(results, bench)
    arguments = ["judge", "--suite", "mt-bench-small", "--judge-model", "m", "--judge", "http://127.0.0.1:1"]
    arguments += ["--data", f"mt_bench={bench}", "--results", str(results), "--key-variable", KEY]
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert "is no name of an environment variable" in said.err
    assert KEY not in said.out + said.err


def test_an_address_with_a_password_is_refused_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://me:{KEY}@127.0.0.1:1/v1"
    with pytest.raises(Exception, match="holds a name or password") as error:
        ChatEndpoint(url, "m", key=None)
    assert KEY not in str(error.value)
