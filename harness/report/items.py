"""Outcomes item by item, from the files that stand beside the records."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from harness.errors import HarnessError

ItemKey = tuple[int, str]
"""Index and hash of a document: the same item in any run of the task."""
Outcomes = Mapping[ItemKey, float]


def parse_items(data: bytes, where: str) -> dict[tuple[str, str], dict[ItemKey, float]]:
    """Return the outcomes of each (task, metric); a metric that is not one number an item is left out.

    Raises:
        HarnessError: the bytes are no file of items, or were cut off or damaged.
    """
    import zstandard

    found: dict[tuple[str, str], dict[ItemKey, float]] = defaultdict(dict)
    try:
        text = zstandard.ZstdDecompressor().decompress(data).decode()
        for line in text.split("\n"):  # splitlines() would also cut at U+2028
            if not line:
                continue
            item = json.loads(line)
            for metric, value in item["metrics"].items():
                if isinstance(value, int | float) and math.isfinite(value):
                    found[item["task"], metric][item["index"], item["doc_hash"]] = float(value)
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HarnessError(f"{where}: is no file of items, or was cut off ({error})") from error
    return dict(found)


def mean_outcomes(repeats: Sequence[Outcomes]) -> dict[ItemKey, float]:
    """Return each item's mean over the repeats of one run, for the items that all of them have."""
    if len(repeats) == 1:
        return dict(repeats[0])
    shared = set(repeats[0]).intersection(*repeats[1:])
    return {key: sum(repeat[key] for repeat in repeats) / len(repeats) for key in sorted(shared)}
