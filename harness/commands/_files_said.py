"""Which of the files that were written is to be opened, and what else there is.

To a person on a terminal two lines; to a pipe every path on a line of its own, the one to open first.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness.commands._output import say

PAGES = ("report.html", "report.md", "report.tex")
"""What a person opens, the best first."""
KINDS = {".csv": "CSV file", ".tex": "LaTeX file", ".png": "plot", ".json": "JSON file", ".toml": "TOML file"}
"""What files are called by their endings; a plot is counted as its PNG."""
SAME = frozenset({".svg"})
"""Endings of the same plots in another form."""


def say_files(files: Sequence[Path]) -> None:
    """Print where the files are."""
    ordered = sorted(files, key=lambda file: _rank(file, files))
    if not sys.stdout.isatty():
        for file in ordered:
            say(str(file))
        return
    if not ordered:
        return
    first, *others = ordered
    say(f"open {first}" if first.name in PAGES else f"written: {first}")
    if others:
        say(f"beside it: {_counted(others, first)}")


def _rank(file: Path, files: Sequence[Path]) -> tuple[int, int]:
    """Return where a file stands: pages first, all else as it was written."""
    return PAGES.index(file.name) if file.name in PAGES else len(PAGES), files.index(file)


def _counted(files: Sequence[Path], first: Path) -> str:
    """Return what there is beside the first file: pages and numbers by name, of a kind with many files how many."""
    named = [file for file in files if file.parent == first.parent]
    rest = Counter((os.path.relpath(file.parent, first.parent), file.suffix) for file in files if file not in named)
    counted = []
    for (folder, ending), number in rest.items():
        if ending not in SAME:
            kind = KINDS.get(ending, f"{ending.lstrip('.')} file")
            counted.append(f"{number} {kind}{'s' * (number > 1)} in {folder}{os.sep}")
    return ", ".join([*(file.name for file in named), *counted])
