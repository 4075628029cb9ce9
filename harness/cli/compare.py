"""The arguments of ``harness compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli._arguments import above_zero_to
from harness.report.formats import COMPARISON_FORMATS, ComparisonFormat


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
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
    command.add_argument(
        "--format",
        choices=COMPARISON_FORMATS,
        help="what is printed: text (default on a terminal), md (default elsewhere), json, junit, or github for "
        "annotations of a workflow",
    )
    command.add_argument(
        "--write",
        action="append",
        default=[],
        type=_written,
        metavar="FORMAT=FILE",
        help="also write md, json, junit or github into a file; may be repeated",
    )


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.compare import compare

    return compare(
        args.baseline,
        args.candidate,
        tolerances=args.fail_on,
        level=args.level,
        output=args.format,
        files=args.write,
    )


def _level(text: str) -> float:
    return above_zero_to(text, 0.5, "a number above 0, at most 0.5")


def _written(text: str) -> tuple[ComparisonFormat, Path]:
    kind, _, file = text.partition("=")
    for known in COMPARISON_FORMATS:
        if kind == known != "text" and file:
            return known, Path(file)
    raise argparse.ArgumentTypeError(f"'{text}' is not FORMAT=FILE with md, json, junit or github")
