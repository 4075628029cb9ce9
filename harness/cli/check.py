"""The arguments of ``harness check``."""

from __future__ import annotations

import argparse

from harness.cli._arguments import add_selection, selection_from
from harness.errors import HarnessError


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    command.add_argument(
        "what",
        nargs="?",
        metavar="FILE|NAME",
        help="a suite's or a catalogue's .toml, a task's .yaml, a packaged suite, a label or a method",
    )
    add_selection(command)
    command.add_argument("--json", action="store_true", help="as JSON")
    command.add_argument("--schema", choices=("suite", "catalogue"), help="print the JSON schema of such files instead")


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.check import check, print_schema

    if (args.what is None) == (args.schema is None):
        raise HarnessError("give what to check, a file or a name, or --schema suite or --schema catalogue")
    if args.schema is not None:
        return print_schema(args.schema)
    return check(selection_from(args, suite=args.what), in_json=args.json)
