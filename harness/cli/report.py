"""The arguments of ``harness report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli._arguments import add_catalogue, add_results, add_tasks, catalogue_from, results_from, tasks_from
from harness.commands.requests import TableRequest
from harness.errors import HarnessError
from harness.report.formats import FORMATS


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    command.add_argument(
        "--suite",
        action="append",
        metavar="NAME",
        help="a packaged suite, or the path of a .toml file; with --table and --all it may be repeated",
    )
    command.add_argument(
        "--all",
        action="store_true",
        help="a page over all suites and commits of the results, and a report of each suite; --suite names files of "
        "suites of yours",
    )
    add_catalogue(command)
    add_tasks(command)
    add_results(command)
    command.add_argument("--out", metavar="DIR", help="where the report goes (default: report-SUITE), or the table")
    command.add_argument(
        "--format",
        action="append",
        choices=(*FORMATS, "text"),
        metavar="|".join((*FORMATS, "text")),
        help="may be repeated; of a table one of latex (default), md, csv, text",
    )
    table = command.add_argument_group("one table for a paper instead of a report")
    table.add_argument(
        "--table",
        metavar="COLUMNS",
        help='such as "label, peak, boolq, piqa, avg": quantities, tasks, groups of tasks, avg',
    )
    table.add_argument("--rows", metavar="LABELS", help='labels in their order, such as "base, lora" (default: all)')
    table.add_argument("--model", action="append", metavar="NAME", help="show this model; may be repeated")
    table.add_argument("--style", metavar="STYLE", help="of a score: mean (default), mean+-half-width or interval")
    marks = table.add_mutually_exclusive_group()
    marks.add_argument(
        "--best",
        action="store_const",
        const="best",
        dest="marked",
        help="set the best score in bold where it can be told apart from every other",
    )
    marks.add_argument(
        "--groups",
        action="store_const",
        const="groups",
        dest="marked",
        help="give scores that cannot be told apart a common letter",
    )
    table.add_argument("--spec", metavar="FILE", help="a .toml file that keeps such a choice")
    table.add_argument("--save-spec", metavar="FILE", help="keep this choice in a new file")


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on.

    Raises:
        HarnessError: an option has nothing to choose from, or there is not one suite for a report.
    """
    from harness.commands.report import report, table
    from harness.commands.report_all import report_all

    out = None if args.out is None else Path(args.out)
    given, own = catalogue_from(args), tasks_from(args)
    if args.all:
        if args.format or args.table is not None or args.spec is not None:
            raise HarnessError("--all writes HTML and Markdown of every suite: leave --format, --table and --spec out")
        return report_all(results=results_from(args), out=out, suites=args.suite or (), catalogue=given, tasks=own)
    if args.table is not None or args.spec is not None:
        asked = TableRequest(
            suites=tuple(args.suite or ()),
            models=tuple(args.model or ()),
            columns=args.table,
            rows=args.rows,
            style=args.style,
            marked=args.marked,
            spec=None if args.spec is None else Path(args.spec),
            save_spec=None if args.save_spec is None else Path(args.save_spec),
        )
        formats = tuple(args.format or ())
        return table(asked, results=results_from(args), out=out, formats=formats, catalogue=given, tasks=own)
    if any(option is not None for option in (args.model, args.rows, args.style, args.marked, args.save_spec)):
        raise HarnessError("what chooses rows, models, a style or marks is of a table: name its columns by --table")
    if len(args.suite or ()) != 1:
        found = "none is named" if not args.suite else f"{len(args.suite)} are named"
        raise HarnessError(f"--suite: a report is of one suite, and {found}; --table and --all take several")
    if "text" in (args.format or ()):
        raise HarnessError("--format text is of a table for a paper: name its columns by --table")
    return report(
        args.suite[0],
        results=results_from(args),
        out=out,
        formats=args.format or FORMATS,
        catalogue=given,
        tasks=own,
    )
