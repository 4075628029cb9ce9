"""The arguments of ``compare``."""

from __future__ import annotations

import argparse
from typing import Any


def add_compare(commands: Any) -> None:
    """Add ``compare`` to the command line."""
    command = commands.add_parser(
        "compare", help="what became worse between two sets of records; exits with 1 when something did"
    )
    for name in ("baseline", "candidate"):
        command.add_argument(
            name,
            metavar=name.upper(),
            help="a file or folder of records, pytest-benchmark's JSON, or a git revision (REVISION[:PATH])",
        )
    command.add_argument(
        "--fail-on",
        metavar="TOLERANCES",
        help="what is judged, and how much worse it may become (default: peak_memory:3%%,step_time:2%%,score:1pt; of "
        "pytest-benchmark time:5%%)",
    )
    command.add_argument(
        "--level", type=_level, default=0.05, metavar="X", help="family-wise, of all tests together (default: 0.05)"
    )
    command.add_argument("--format", choices=("md", "json"), default="md", help="default: md")


def _level(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 0.5:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0, at most 0.5")
    return number
