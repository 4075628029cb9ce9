"""Outcomes item by item, from the files that stand beside the records."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from harness.errors import HarnessError
from harness.record import Score

ItemKey = tuple[str, int, str]
"""Task, index and hash of a document: the same item in any run."""
Outcomes = Mapping[ItemKey, float]
ItemFile = Mapping[tuple[str, str], Outcomes]
"""Outcomes by task and metric."""
ReadItems = Callable[[str], ItemFile | None]
"""Returns the outcomes in a file of items by its name in a record, or None."""
LARGEST_BYTES = 256 << 20
"""Of the items of one run, unpacked; a small file can say that it holds any number of them."""
COMMON = {0.0: 0.0, 1.0: 1.0}
"""Most outcomes, held once."""
ROUNDING = 1e-6
"""How far a score may be from the mean of its items: farther, and the score is no mean of them."""


def no_items(name: str) -> ItemFile | None:
    """Return nothing: no file of items is at hand."""
    return None


def parse_items(
    data: bytes, where: str, alike: dict[ItemKey, ItemKey] | None = None
) -> dict[tuple[str, str], dict[ItemKey, float]]:
    """Return the outcomes of each (task, metric); a metric that is not one number an item is left out.

    Args:
        data: Of the file.
        where: What it is called in a sentence.
        alike: Names of items in other files, which take the place of equal ones here; those of this file are added.

    Raises:
        HarnessError: the bytes are no file of items, or were cut off or damaged.
    """
    import zstandard

    found: dict[tuple[str, str], dict[ItemKey, float]] = defaultdict(dict)
    try:
        if zstandard.frame_content_size(data) > LARGEST_BYTES:
            raise ValueError(f"it says that it holds over {LARGEST_BYTES:,} bytes")
        text = zstandard.ZstdDecompressor().decompress(data).decode()
        for line in text.split("\n"):  # splitlines() would also cut at U+2028
            if not line:
                continue
            item = json.loads(line)
            for metric, value in item["metrics"].items():
                if isinstance(value, int | float) and abs(value) <= sys.float_info.max:
                    key = item["task"], item["index"], item["doc_hash"]
                    if tuple(map(type, key)) != (str, int, str):
                        raise TypeError("an item is named by task, index and doc_hash")
                    key = key if alike is None else alike.setdefault(key, key)
                    found[item["task"], metric][key] = COMMON.get(value, float(value))
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HarnessError(f"{where}: is no file of items, or was cut off ({error})") from error
    return dict(found)


def outcomes_of(score: Score, file: ItemFile) -> dict[ItemKey, float] | None:
    """Return the outcomes that a score is the mean of, of a group's those of all its tasks; None: of none."""
    outcomes: dict[ItemKey, float] = {}
    for task in score.subtasks or (score.task,):
        outcomes |= file.get((task, score.metric), {})
    if not outcomes or abs(fmean(outcomes.values()) - score.value) > ROUNDING:
        return None
    return outcomes


def mean_outcomes(repeats: Sequence[Outcomes]) -> dict[ItemKey, float]:
    """Return each item's mean over the repeats of one run, for the items that all of them have."""
    if len(repeats) == 1:
        return dict(repeats[0])
    shared = set(repeats[0]).intersection(*repeats[1:])
    return {key: sum(repeat[key] for repeat in repeats) / len(repeats) for key in sorted(shared)}
