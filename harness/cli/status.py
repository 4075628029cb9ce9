"""The arguments of ``harness status``."""

from __future__ import annotations

import argparse

from harness.cli._arguments import (
    add_gpus_per_run,
    add_results,
    add_selection,
    add_suite,
    results_from,
    selection_from,
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_suite(command)
    add_selection(command)
    add_results(command)
    command.add_argument(
        "--any-environment", action="store_true", help="count also what was run in another environment"
    )
    add_gpus_per_run(command, "as its suite says")
    command.add_argument("--json", action="store_true", help="as JSON")


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.status import status

    return status(
        selection_from(args),
        results=results_from(args),
        any_environment=args.any_environment,
        gpus_per_run=args.gpus_per_run,
        in_json=args.json,
    )
