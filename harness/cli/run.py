"""The arguments of ``harness run``."""

from __future__ import annotations

import argparse

from harness.cli._arguments import (
    add_assets,
    add_how_to_run,
    add_results,
    add_selection,
    add_settings,
    add_suite,
    assets_from,
    how_to_run_from,
    positive,
    results_from,
    seed,
    selection_from,
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_suite(command)
    add_selection(command)
    add_assets(command)
    add_results(command)
    command.add_argument("--seed", action="append", type=seed, metavar="N", help="run this seed; may be repeated")
    add_settings(command)
    command.add_argument("--limit", type=positive, metavar="N", help="score the first N items of each task")
    command.add_argument("--max-steps", type=positive, metavar="N", help="train at most N optimizer steps")
    command.add_argument("--repeat", type=positive, metavar="K", help="run everything K more times, done or not")
    command.add_argument("--keep-weights", action="store_true", help="save the trained weights beside the records")
    add_how_to_run(command)


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.run import run

    return run(
        selection_from(args, seeds=args.seed, overrides=args.overrides, limit=args.limit, max_steps=args.max_steps),
        how_to_run_from(args, repeat=args.repeat, keep_weights=args.keep_weights),
        assets_from(args),
        results=results_from(args),
    )
