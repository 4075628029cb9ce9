"""``harness compare``: what became worse between two sets of records. Works where torch is absent."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.commands._output import note, print_table, say
from harness.errors import HarnessError
from harness.files import said_as, write_file
from harness.printable import printable, printable_json
from harness.report.comparing.annotations import comparison_annotations
from harness.report.comparing.cells import Comparison
from harness.report.comparing.compare import compare_sides
from harness.report.comparing.junit import comparison_junit
from harness.report.comparing.page import comparison_json, comparison_markdown
from harness.report.comparing.text import comparison_text
from harness.report.formats import ComparisonFormat
from harness.report.reading.sides import load_side
from harness.store import no_collection

WRITERS: dict[str, Callable[[Comparison], str]] = {
    "md": lambda comparison: printable(comparison_markdown(comparison)),
    "json": lambda comparison: printable_json(comparison_json(comparison)),
    "junit": comparison_junit,
    "github": lambda comparison: printable(comparison_annotations(comparison)),
}
"""What each format but ``text`` is."""


def compare(
    baseline: str,
    candidate: str,
    *,
    tolerances: str | None = None,
    level: float = 0.05,
    output: ComparisonFormat | None = None,
    files: Sequence[tuple[ComparisonFormat, Path]] = (),
) -> int:
    """Print the comparison; return 1 when something became worse, failed or vanished.

    Args:
        baseline: What was: a path or a git revision.
        candidate: What is.
        tolerances: What is judged, and how much worse it may become; None: the usual ones.
        level: Family-wise, of all tests together.
        output: What is printed; None: text on a terminal, Markdown elsewhere.
        files: More formats, each into a file.

    Raises:
        HarnessError: a side cannot be read, wholly or in part, a tolerance is wrong, a file cannot be written, or
            nothing could be compared.
    """
    shown = output or ("text" if sys.stdout.isatty() else "md")
    with no_collection(keep=True):
        comparison = compare_sides(load_side(baseline), load_side(candidate), tolerances, level)
        for kind, file in files:
            with said_as(f"--write {kind}={file}: cannot be written", "name another file"):
                write_file(file, WRITERS[kind](comparison))
        if shown == "text":
            _print(comparison)
        else:
            sys.stdout.write(WRITERS[shown](comparison))
    sys.stdout.flush()
    if comparison.fails:
        return 1
    if comparison.unusable is not None:
        raise HarnessError(comparison.unusable)
    return 0


def _print(comparison: Comparison) -> None:
    top, parts, below = comparison_text(comparison)
    for line in top:
        note(line)
    for part in parts:
        say(f"\n{part.title}")
        print_table(part.rows)
    print()
    for line in below:
        note(line)
