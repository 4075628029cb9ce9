"""What a chat endpoint is asked with: FastChat's fields, less those that it refuses.

OpenAI's newer models take ``max_completion_tokens`` in place of ``max_tokens``, and no temperature but their own; other
endpoints refuse ``n``. The error names the field, and the request is adapted once and for all. What was sent stands
beside every judgment.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import JsonValue

MaxTokensField = Literal["max_tokens", "max_completion_tokens"]
Temperature = Literal["protocol", "default"]
"""``protocol``: 0, unless the endpoint refuses it; ``default``: none is sent, and the endpoint takes its own."""
SentTemperature = Literal["protocol", "default", "refused"]
"""What a judgment was asked with; ``refused``: none, because the endpoint takes no other than its own."""

REFUSING_STATUSES = frozenset({400, 422})
UNSUPPORTED = ("unsupported", "not support", "unrecognized", "unknown", "unexpected", "extra inputs", "not permitted")
"""Words of endpoints that know no such field, or none but one value of it."""
ONLY = ("only the default", "does not support", "unsupported value", "must be 1", "only 1")


class ChatRequest:
    """The fields beside model and messages; shared by all threads that ask."""

    def __init__(self, max_tokens: int, *, field: MaxTokensField | None = None, temperature: Temperature = "protocol"):
        """Take what is asked for.

        Args:
            max_tokens: Of one judgment.
            field: What carries it; None: ``max_tokens``, or the other where that is refused.
            temperature: Whether one is sent.
        """
        self._lock = threading.Lock()
        self._may_change_field = field is None
        self._fields: dict[str, JsonValue] = {"n": 1}
        if temperature == "protocol":
            self._fields["temperature"] = 0
        self._fields[field or "max_tokens"] = max_tokens
        self._max_tokens = max_tokens
        self._temperature: SentTemperature = temperature

    def sent(self) -> tuple[dict[str, JsonValue], SentTemperature]:
        """Return the fields as they are sent now, and what became of the temperature."""
        with self._lock:
            return dict(self._fields), self._temperature

    def adapt(self, sent: Mapping[str, JsonValue], status: int, data: bytes) -> bool:
        """Leave out or rename the field that a refusal names; return whether the request is now another than it was."""
        refused = _refused_field(status, data, sent)
        if refused is None:
            return False
        with self._lock:
            if self._fields.get(refused) != sent[refused]:
                return True  # another thread met the same refusal
            if refused == "max_tokens":
                if not self._may_change_field:
                    return False
                del self._fields[refused]
                self._fields["max_completion_tokens"] = self._max_tokens
            elif refused == "temperature":
                del self._fields[refused]
                self._temperature = "refused"
            elif refused == "n":
                del self._fields[refused]
            else:
                return False
            return True


def _refused_field(status: int, data: bytes, sent: Mapping[str, JsonValue]) -> str | None:
    """Return which of the fields that were sent a refusal names as not taken; None: it says something else."""
    if status not in REFUSING_STATUSES:
        return None
    text = data.decode(errors="replace")
    try:
        value: Any = json.loads(text)
        error = value.get("error", value) if isinstance(value, dict) else value
    except (ValueError, RecursionError):
        error = text
    named = error.get("param") if isinstance(error, dict) else None
    said = str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)
    said = f"{said} {error.get('code', '')}".lower() if isinstance(error, dict) else said.lower()
    if not any(words in said for words in (*UNSUPPORTED, *ONLY)):
        return None
    if isinstance(named, str) and named in sent:
        return named
    places = {field: place for field in _named_first(sent) if (place := _place(said, field)) >= 0}
    return min(places, key=lambda field: places[field]) if places else None


def _named_first(sent: Mapping[str, JsonValue]) -> Sequence[str]:
    return [field for field in sent if len(field) > 1]  # 'n' stands in every sentence: it is known by param alone


def _place(said: str, field: str) -> int:
    """Return where a sentence names a field as a whole word, -1 where it does not."""
    padded = "".join(letter if letter.isalnum() or letter == "_" else " " for letter in said)
    return f" {padded} ".find(f" {field} ")
