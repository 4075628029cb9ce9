"""Text from files, models and judges as a terminal may show it: without control and escape sequences.

Renderers of reports escape on their own; this is for what the commands print.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

_DROPPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_KEPT = frozenset("\n\t")
_UNSAFE = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return text without control characters but newline and tab, and without half characters."""
    if text.isprintable():
        return text
    return "".join(char for char in text if char in _KEPT or unicodedata.category(char) not in _DROPPED)


def printable_json(text: str) -> str:
    """Return JSON that says the same, with what a terminal would act on written as ``\\uXXXX``."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def as_json(value: Any, indent: int = 2) -> str:
    """Return a value as JSON that a terminal may show."""
    return printable_json(json.dumps(value, indent=indent, ensure_ascii=False))
