"""The arguments of ``harness paper``."""

from __future__ import annotations

import argparse

from harness.cli._arguments import add_results, results_from


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    command.add_argument("action", choices=("list", "show", "compare"))
    command.add_argument("table", nargs="?", metavar="TABLE", help="a packaged table, or the path of a .csv file")
    add_results(command)
    command.add_argument("--format", choices=("text", "csv", "json"), default="text", help="(default: text)")


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.paper import paper

    return paper(args.action, args.table, results=results_from(args), style=args.format)
