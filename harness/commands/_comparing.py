"""The arguments of ``compare`` and ``history``."""

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
        help="what is judged, and how much worse it may become (default: of runs on CUDA "
        "peak_memory:3%%,step_time:2%%,optimizer_state:1%%,score:1pt; of runs on a CPU "
        "tracked_peak:3%%,step_time:2%%,optimizer_state:1%%,loss:1%%,score:1pt; of pytest-benchmark time:5%%)",
    )
    command.add_argument(
        "--level", type=_level, default=0.05, metavar="X", help="family-wise, of all tests together (default: 0.05)"
    )
    command.add_argument("--format", choices=("md", "json"), default="md", help="default: md")


def add_history(commands: Any, results: str) -> None:
    """Add ``history`` to the command line."""
    command = commands.add_parser("history", help="one metric of a suite over the commits of its records")
    command.add_argument("--suite", required=True, metavar="NAME", help="as the records name it")
    command.add_argument(
        "--metric",
        required=True,
        metavar="NAME",
        help="step_time or another quantity of docs/reports.md, score, a task",
    )
    command.add_argument("--model", action="append", metavar="NAME", help="of this base model; may be repeated")
    command.add_argument("--method", action="append", metavar="LABEL", help="of this label; may be repeated")
    command.add_argument(
        "--results", default=results, metavar="DIR", help=f"folder of the records (default: {results})"
    )
    command.add_argument("--plot", metavar="FILE", help="also draw the series: FILE.png or FILE.svg")
    command.add_argument("--json", action="store_true", help="as JSON")


def _level(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 0.5:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0, at most 0.5")
    return number
