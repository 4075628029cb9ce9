"""The arguments of ``harness report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli._arguments import (
    add_catalogue,
    add_results,
    add_suite,
    add_tasks,
    catalogue_from,
    results_from,
    tasks_from,
)
from harness.report.formats import FORMATS


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_suite(command)
    add_catalogue(command)
    add_tasks(command)
    add_results(command)
    command.add_argument("--out", metavar="DIR", help="where the report goes (default: report-SUITE)")
    command.add_argument(
        "--format", action="append", choices=FORMATS, metavar="|".join(FORMATS), help="may be repeated"
    )


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.report import report

    return report(
        args.suite,
        results=results_from(args),
        out=None if args.out is None else Path(args.out),
        formats=args.format or FORMATS,
        catalogue=catalogue_from(args),
        tasks=tasks_from(args),
    )
