"""Division of the packaged rows into train, few-shot, validation and scored parts, which share nothing.

There is no packaged training split, so each task's rows are divided by a hash of their content. Rows that resemble each
other stay together: they share a *key* (BoolQ's passage and how it starts and ends, HellaSwag's source document, the
option pair that two WinoGrande twins have in common, and so on), all tasks share one space of keys, and the unit that
is dealt out is a connected set of rows and keys. A key is compared without case, punctuation and spacing.

A change of anything here moves every score that rests on the parts: it raises ``SPLIT_VERSION``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SPLIT_VERSION = "split-v1"
SHARES = {"train": 0.5, "fewshot": 0.1, "validation": 0.1, "scored": 0.3}
PARTS = tuple(SHARES)

Row = Mapping[str, Any]

_EDGE = 100
"""Characters at either end by which two versions of one BoolQ passage are recognised: 31 beginnings and 22 endings of
its 2,938 different passages stand in more than one."""


def normalised(text: str) -> str:
    """Return a text without case, punctuation and spacing."""
    return re.sub(r"\W+", " ", text.casefold()).strip()


def _boolq(row: Row) -> list[str]:
    passage = normalised(row["passage"])
    edges = [f"start {passage[:_EDGE]}", f"end {passage[-_EDGE:]}"] if len(passage) > 2 * _EDGE else []
    return [passage, normalised(row["question"]), *edges]


def _winogrande(row: Row) -> list[str]:
    pair = sorted((normalised(row["option1"]), normalised(row["option2"])))
    return [f"pair {pair[0]} / {pair[1]}", normalised(row["sentence"])]


_KEYS: dict[str, Callable[[Row], list[str]]] = {
    "boolq": _boolq,
    "piqa": lambda row: [normalised(row["goal"])],
    "social_iqa": lambda row: [normalised(row["context"])],
    "hellaswag": lambda row: [f"source {row['source_id']}", normalised(row["ctx"])],
    "winogrande": _winogrande,
    "arc_easy": lambda row: [normalised(row["question"])],
    "arc_challenge": lambda row: [normalised(row["question"])],
    "openbookqa": lambda row: [normalised(row["question_stem"])],
    "gsm8k": lambda row: [normalised(row["question"])],
}
DIVIDED_TASKS = tuple(_KEYS)


def content_hash(row: Row) -> str:
    """Return the SHA-256 of a row's canonical JSON: rows are kept in this order, so that the first n are unbiased."""
    return hashlib.sha256(json.dumps(row, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def keys_of(task: str, row: Row) -> list[str]:
    """Return what a row shares with rows that resemble it; never empty."""
    return [key for key in _KEYS[task](row) if key] or [content_hash(row)]


def divide(rows: Mapping[str, Sequence[Row]]) -> dict[str, list[str]]:
    """Return the part of each row, by task and in the order given.

    Args:
        rows: All rows of every divided task: the tasks share one space of keys, so one cannot be divided alone.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    keys = {task: [[_hash(key) for key in keys_of(task, row)] for row in rows[task]] for task in rows}
    for row_keys in (row_keys for task in keys for row_keys in keys[task]):
        for key in row_keys:
            parent.setdefault(key, key)
            one, other = root(row_keys[0]), root(key)
            # The smallest hash names the set: the order of rows does not matter.
            parent[max(one, other)] = min(one, other)
    return {task: [_part(root(row_keys[0])) for row_keys in keys[task]] for task in keys}


def _hash(key: str) -> str:
    return hashlib.sha256(f"{SPLIT_VERSION}\n{key}".encode()).hexdigest()


def _part(name: str) -> str:
    # The smallest of several hashes is not uniform, a hash of it is.
    position = int(_hash(name)[:16], 16) / 2**64
    edge = 0.0
    for part, share in SHARES.items():
        edge += share
        if position < edge:
            return part
    return PARTS[-1]
