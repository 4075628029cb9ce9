"""The arguments of ``harness list``."""

from __future__ import annotations

import argparse


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    command.add_argument("what", choices=("methods", "models", "suites", "benchmarks", "devices"))
    command.add_argument("--json", action="store_true", help="as JSON")


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.list import list_kind

    return list_kind(args.what, in_json=args.json)
