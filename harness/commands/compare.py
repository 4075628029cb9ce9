"""``harness compare``: what became worse between two sets of records. Works where torch is absent."""

from __future__ import annotations

import sys

from harness.errors import HarnessError
from harness.printable import printable, printable_json
from harness.report.comparing.compare import compare_sides
from harness.report.comparing.page import comparison_json, comparison_markdown
from harness.report.reading.sides import load_side
from harness.store import no_collection


def compare(
    baseline: str, candidate: str, *, tolerances: str | None = None, level: float = 0.05, in_json: bool = False
) -> int:
    """Print the comparison; return 1 when something became worse, failed or vanished.

    Raises:
        HarnessError: a side cannot be read, wholly or in part, a tolerance is wrong, or nothing could be compared.
    """
    with no_collection(keep=True):
        comparison = compare_sides(load_side(baseline), load_side(candidate), tolerances, level)
        if in_json:
            sys.stdout.write(printable_json(comparison_json(comparison)))
        else:
            sys.stdout.write(printable(comparison_markdown(comparison)))
    sys.stdout.flush()
    if comparison.fails:
        return 1
    if comparison.damage:
        raise HarnessError(
            f"records are damaged, and what they held is not compared: {comparison.damage[0]}"
            + (f"; and {len(comparison.damage) - 1} more" if len(comparison.damage) > 1 else "")
        )
    if comparison.is_stale:
        raise HarnessError(
            f"nothing in {comparison.candidate} was measured again: it holds the records of {comparison.baseline}; run "
            "the suite with it first"
        )
    if comparison.is_empty:
        raise HarnessError(
            f"nothing in {comparison.candidate} can be compared with {comparison.baseline}: no metric was measured on "
            "both sides alike"
        )
    return 0
