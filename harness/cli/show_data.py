"""The arguments of ``harness show-data``."""

from __future__ import annotations

import argparse

from harness.cli._arguments import (
    add_assets,
    add_selection,
    add_settings,
    add_suite,
    assets_from,
    positive,
    seed,
    selection_from,
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_suite(command)
    add_selection(command)
    add_settings(command)
    command.add_argument("--n", type=positive, default=3, metavar="N", help="how many (default: 3)")
    command.add_argument("--seed", action="append", type=seed, metavar="N", help="in the order of this seed")
    add_assets(command)
    command.add_argument("--json", action="store_true", help="as JSON, with the token ids")


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.show_data import show_data

    selection = selection_from(args, seeds=args.seed, overrides=args.overrides)
    return show_data(selection, assets_from(args), num_examples=args.n, in_json=args.json)
