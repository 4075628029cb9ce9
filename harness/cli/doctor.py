"""The arguments of ``harness doctor``."""

from __future__ import annotations

import argparse

from harness.cli._arguments import add_results, add_selection, results_from, selection_from
from harness.errors import HarnessError


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    command.add_argument("--suite", metavar="NAME", help="also what this suite still lacks here")
    add_selection(command)
    add_results(command)
    command.add_argument("--json", action="store_true", help="as JSON")


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.doctor import diagnose

    if args.suite is None and (args.model or args.label or args.data):
        raise HarnessError("--model, --label and --data choose from a suite; name one with --suite")
    of = None if args.suite is None else selection_from(args)
    return diagnose(of, results=results_from(args), in_json=args.json)
