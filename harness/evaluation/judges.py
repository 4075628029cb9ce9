"""Judges: what they are asked and say, and an OpenAI-compatible chat endpoint, asked with retries and a rate limit.

FastChat's own call needs openai < 1 and waits ten seconds after each of sixteen failures; ours needs no client library.
The key comes from the environment, goes into one header, and is cut out of everything that the endpoint says, as are
the values of a query in its address.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pydantic import JsonValue

from harness.errors import HarnessError
from harness.evaluation.chat_request import ChatRequest, MaxTokensField, SentTemperature, Temperature

Messages = Sequence[Mapping[str, str]]

MAX_TOKENS = 2048
"""Of one judgment. Source: fschat 0.2.36, llm_judge/common.py, ``run_judge_single``; the temperature is 0 there too."""
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 120.0
"""The longest pause between two tries; an endpoint that asks for a longer one is given up."""
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may be another a moment later."""
HOPELESS = frozenset({401, 403, 404, 405})
"""Statuses that every other question would meet too."""
EXCERPT = 160
LARGEST_REPLY_BYTES = 16 << 20


@dataclass(frozen=True)
class Reply:
    """What a judge said."""

    text: str
    version: str
    """What it calls itself."""
    sent: Mapping[str, JsonValue] = field(default_factory=dict)
    """Fields of the request beside model and messages; none of a local judge."""
    temperature: SentTemperature = "protocol"
    cut: bool = False
    """Whether it ended at the limit of tokens."""


class JudgeFailed(Exception):
    """A judgment could not be had; the message says why."""

    def __init__(self, reason: str, *, hopeless: bool = False) -> None:
        super().__init__(reason)
        self.hopeless = hopeless
        """True: no other question would fare better."""


class Stopped(Exception):
    """The user asked to stop while a question waited for its turn."""


class Judge(Protocol):
    """Whoever grades answers."""

    endpoint: str
    """Where it is, without any secret."""

    @property
    def known_version(self) -> str | None:
        """Return what it will call itself, where that is known before it is asked."""

    def ask(self, messages: Messages) -> Reply:
        """Return what the judge says.

        Raises:
            JudgeFailed: it says nothing that could be used.
            Stopped: the user asked to stop first.
        """


@dataclass
class RateLimit:
    """Spaces calls out evenly over threads: at most so many a minute."""

    per_minute: float | None
    wait: Callable[[float], bool]
    """Waits so many seconds; True: stop."""
    clock: Callable[[], float] = time.monotonic
    _next: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> None:
        """Return when a call may start.

        Raises:
            Stopped: the user asked to stop first.
        """
        with self._lock:
            now = self.clock()
            start = max(now, self._next)
            self._next = start + (60.0 / self.per_minute if self.per_minute else 0.0)
        if self.wait(start - now):
            raise Stopped


class ChatEndpoint:
    """A chat endpoint that speaks OpenAI's protocol."""

    known_version = None

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None,
        max_tokens: int = MAX_TOKENS,
        max_tokens_field: MaxTokensField | None = None,
        temperature: Temperature = "protocol",
        timeout_seconds: float = 120.0,
        max_retries: int = 8,
        limit: RateLimit | None = None,
        stop: threading.Event | None = None,
        wait: Callable[[float], bool] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Take the address of an endpoint.

        Args:
            url: Its base, such as ``http://127.0.0.1:8000/v1``, or that of ``chat/completions`` itself.
            model: Name that it knows.
            key: Sent as a bearer token; None: none is sent.
            max_tokens: Of one judgment.
            max_tokens_field: What carries it; None: ``max_tokens``, or the newer name where the endpoint refuses that.
            temperature: ``default``: none is sent.
            timeout_seconds: How long the endpoint may stay silent.
            max_retries: Tries after the first.
            limit: Calls a minute, tries included.
            stop: Set to end all waiting.
            wait: Waits so many seconds and returns whether to stop, in tests.
            jitter: A number in [0, 1).

        Raises:
            HarnessError: the address is none, or holds a password; or the key is no single word of plain characters.
        """
        self._address, self.endpoint = _address(url)
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise HarnessError("the judge's key holds white space or characters that no header takes; set it anew")
        self._model = model
        self._key = key
        query = urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query)
        self._secrets = sorted({*filter(None, (key, *(value for _, value in query)))}, key=len, reverse=True)
        self._request = ChatRequest(max_tokens, field=max_tokens_field, temperature=temperature)
        self._timeout = timeout_seconds
        self._max_retries = max_retries
        self._wait = wait if wait is not None else (stop or threading.Event()).wait
        self._limit = limit if limit is not None else RateLimit(None, self._wait)
        self._jitter = jitter
        self._opener = urllib.request.build_opener(_NoRedirect)

    def ask(self, messages: Messages) -> Reply:
        """Return what the endpoint says, after retries where it may help.

        Raises:
            JudgeFailed: it says nothing that could be used.
            Stopped: the user asked to stop first.
        """
        for attempt in range(self._max_retries + 1):
            try:
                return self._adapted_call(messages)
            except _TryAgain as error:
                reason, wanted = str(error), error.wait_seconds
            if attempt == self._max_retries:
                break
            # Exponential, with jitter: clients that failed together do not come back together.
            pause = min(FIRST_WAIT_SECONDS * 2**attempt, LONGEST_WAIT_SECONDS) * (0.5 + self._jitter() / 2)
            if wanted is not None:
                if wanted > LONGEST_WAIT_SECONDS:
                    raise JudgeFailed(f"{reason}, and asks to wait {wanted:.0f} s", hopeless=True)
                pause = max(wanted, pause) if wanted > 0 else 0.0
            if self._wait(pause):
                raise Stopped
        tries = self._max_retries + 1
        raise JudgeFailed(f"{reason}, {tries} times in a row" if tries > 1 else reason)

    def _adapted_call(self, messages: Messages) -> Reply:
        """Call; again as often as the endpoint refuses another field of the request, which is no try."""
        while True:
            self._limit.take()
            try:
                return self._call(messages)
            except _OtherRequest:
                continue

    def _call(self, messages: Messages) -> Reply:
        sent, temperature = self._request.sent()
        body = {"model": self._model, "messages": list(messages), **sent}
        headers = {"Content-Type": "application/json", "User-Agent": "finetune-harness"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._address, json.dumps(body).encode(), headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                data = response.read(LARGEST_REPLY_BYTES + 1)
        except urllib.error.HTTPError as error:
            raise self._refusal(error, sent) from None
        except TimeoutError:
            raise _TryAgain(f"the judge was silent for {self._timeout:g} s") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _TryAgain(f"the judge was silent for {self._timeout:g} s") from None
            raise _TryAgain(f"the judge at {self.endpoint} cannot be reached ({self._clean(error.reason)})") from None
        except (http.client.HTTPException, ConnectionError) as error:
            raise _TryAgain(f"the judge broke the connection off ({type(error).__name__})") from None
        if len(data) > LARGEST_REPLY_BYTES:
            raise _TryAgain(f"the judge's reply has over {LARGEST_REPLY_BYTES:,} bytes")
        return replace(self._reply(data), sent=sent, temperature=temperature)

    def _refusal(self, error: urllib.error.HTTPError, sent: Mapping[str, JsonValue]) -> Exception:
        status = error.code
        with error:
            try:
                data = error.read(1 << 16)
            except (OSError, http.client.HTTPException):
                data = b""
        if self._request.adapt(sent, status, data):
            return _OtherRequest()
        said = self._clean(_error_text(data))
        reason = f"the judge answered {status} {http.client.responses.get(status, '')}".rstrip()
        reason += f" ({said})" if said else ""
        if status in RETRIED:
            return _TryAgain(reason, _retry_after(error.headers.get("Retry-After")))
        return JudgeFailed(reason, hopeless=status in HOPELESS or 300 <= status < 400)

    def _reply(self, data: bytes) -> Reply:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise _TryAgain(f"the judge's reply is not JSON: {self._clean(data.decode(errors='replace'))!r}") from None
        try:
            choice = value["choices"][0]
            message = choice["message"]
            content = message["content"]
        except (KeyError, IndexError, TypeError):
            said = ""
            if isinstance(value, dict) and value.get("error"):  # with status 200, as gateways send it
                said = f" ({self._clean(_error_text(data))})"
            raise _TryAgain(f"the judge's reply has no choices[0].message.content{said}") from None
        text = _text_of(content)
        if text is None:
            raise _TryAgain("the judge's choices[0].message.content is no text")
        refusal = message.get("refusal")
        if not text and isinstance(refusal, str):
            text = refusal
        version = self._without_key(str(value.get("model") or "not reported"))
        return Reply(self._without_key(text), version, cut=choice.get("finish_reason") == "length")

    def _clean(self, text: object) -> str:
        """Return the beginning of something said, on one line, without the key."""
        line = " ".join(self._without_key(str(text)).split())
        return line if len(line) <= EXCERPT else f"{line[: EXCERPT - 1]}…"

    def _without_key(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[key]").replace(urllib.parse.quote(secret, safe=""), "[key]")
        return text.encode(errors="replace").decode()  # half characters, which JSON can spell, are no text


class _TryAgain(Exception):
    """A call failed in a way that may pass."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds
        """What the endpoint asks for."""


class _OtherRequest(Exception):
    """The endpoint refused a field, and the request is now without it."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key would go along to wherever it points."""

    def redirect_request(self, *_arguments: Any) -> None:
        return None


def _address(url: str) -> tuple[str, str]:
    """Return the address to post to, and scheme, host and port of it."""
    try:
        parts = urllib.parse.urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_address = False
    if not is_address:
        raise HarnessError("--judge: what is given is neither an http address nor a folder with a model")
    if parts.username is not None or parts.password is not None:
        raise HarnessError("--judge: the address holds a name or password; put the key into an environment variable")
    path = parts.path.rstrip("/")
    path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
    return urllib.parse.urlunsplit(parts._replace(path=path, fragment="")), f"{parts.scheme}://{parts.netloc}"


def _text_of(content: object) -> str | None:
    """Return the text of a message's content: as it is, of its parts, or empty of none; None: it is no text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        texts = [part["text"] for part in content if isinstance(part.get("text"), str)]
        return "".join(texts) if texts or not content else None
    return None


def _error_text(data: bytes) -> str:
    """Return the message of an error in OpenAI's form, else what was sent."""
    text = data.decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return text


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, as a number or a date; None where it says nothing."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if seconds == seconds else None  # noqa: PLR0124 - NaN
