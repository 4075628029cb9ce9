"""The arguments of ``harness show``."""

from __future__ import annotations

import argparse

from harness.cli._arguments import add_results, add_run, results_from


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_run(command)
    add_results(command)
    command.add_argument("--json", action="store_true", help="the whole record as JSON")
    command.add_argument(
        "--plot", metavar="FILE", help="also draw memory and active blocks over the steps: FILE.png or FILE.svg"
    )


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.show import show

    return show(args.run, results=results_from(args), suite=args.suite, in_json=args.json, plot=args.plot)
