"""The arguments of ``harness evaluate``."""

from __future__ import annotations

import argparse

from harness.cli._arguments import (
    add_assets,
    add_catalogue,
    add_gpus_per_run,
    add_results,
    add_run,
    add_tasks,
    assets_from,
    catalogue_from,
    positive,
    results_from,
    tasks_from,
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_run(command)
    command.add_argument(
        "--benchmark",
        action="append",
        metavar="TASK",
        help="may be repeated; without it a run that trained and could not be scored is scored as its suite asks",
    )
    command.add_argument("--limit", type=positive, metavar="N", help="score the first N items of each task")
    command.add_argument(
        "--model", metavar="NAME=PATH", help="the folder of the base model that the run trained an adapter on"
    )
    add_catalogue(command)
    add_tasks(command)
    add_results(command)
    add_assets(command)
    add_gpus_per_run(command, "as many as the run had")


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.evaluate import evaluate

    return evaluate(
        args.run,
        args.benchmark or (),
        assets_from(args),
        results=results_from(args),
        suite=args.suite,
        limit=args.limit,
        catalogue=catalogue_from(args),
        own=tasks_from(args),
        model=args.model,
        gpus_per_run=args.gpus_per_run,
    )
