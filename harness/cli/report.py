"""The arguments of ``harness report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli._arguments import add_catalogue, add_results, add_tasks, catalogue_from, results_from, tasks_from
from harness.errors import HarnessError
from harness.report.formats import FORMATS


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    command.add_argument(
        "--suite", action="append", default=[], metavar="NAME", help="a packaged suite, or the path of a .toml file"
    )
    command.add_argument(
        "--all",
        action="store_true",
        help="a page over all suites and commits of the results, and a report of each suite; --suite, which may be "
        "repeated, names the files of suites of yours",
    )
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
    from harness.commands.report_all import report_all

    out = None if args.out is None else Path(args.out)
    if args.all:
        if args.format:
            raise HarnessError("--all writes HTML and Markdown: leave --format out")
        return report_all(
            results=results_from(args),
            out=out,
            suites=args.suite,
            catalogue=catalogue_from(args),
            tasks=tasks_from(args),
        )
    if len(args.suite) != 1:
        raise HarnessError("name one suite with --suite, or take --all")
    return report(
        args.suite[0],
        results=results_from(args),
        out=out,
        formats=args.format or FORMATS,
        catalogue=catalogue_from(args),
        tasks=tasks_from(args),
    )
