"""The arguments of ``harness list``."""

from __future__ import annotations

import argparse

from harness.cli._arguments import add_catalogue, add_tasks, catalogue_from, tasks_from


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    command.add_argument("what", choices=("methods", "models", "datasets", "suites", "benchmarks", "devices"))
    command.add_argument("name", nargs="?", metavar="NAME", help="of one entry: everything that there is to say of it")
    add_catalogue(command)
    add_tasks(command)
    command.add_argument("--json", action="store_true", help="as JSON")


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.list import list_kind

    return list_kind(args.what, args.name, catalogue=catalogue_from(args), tasks=tasks_from(args), in_json=args.json)
