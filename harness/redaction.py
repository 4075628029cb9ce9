"""Secrets cut out of sentences: what a library or a server says may repeat a key.

Two places call this: a record, of every sentence that it holds, and the command line, of every error and warning.
"""

from __future__ import annotations

import os
import re

SECRET = "[secret]"
SHORTEST = 8
"""Characters of a value of the environment that is looked for: shorter ones are words."""

_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?$", re.IGNORECASE)
_FORMS = (
    # A name and password in an address.
    (re.compile(r"(?<=://)[^\s/@'\"<>]{1,500}@"), f"{SECRET}@"),
    (
        re.compile(r"\b(Bearer|Authorization['\"]?[:=]\s?['\"]?\w{1,20})\s[\w.~+/=-]{8,}", re.IGNORECASE),
        rf"\1 {SECRET}",
    ),
    (
        re.compile(r"([?&][\w-]*(?:key|token|secret|password|sig|signature)=)[^&\s'\"<>]+", re.IGNORECASE),
        rf"\1{SECRET}",
    ),
    # Forms of well-known keys.
    (re.compile(r"\b(?:sk-|hf_|ghp_|github_pat_|AKIA)[\w-]{12,}"), SECRET),
)


def redacted(text: str) -> str:
    """Return text without keys: values of the environment that are named as such, and what has the form of one."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and _NAME.search(name) and value in text:
            text = text.replace(value, SECRET)
    for form, put in _FORMS:
        text = form.sub(put, text)
    return text
