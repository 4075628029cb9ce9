"""The arguments of ``harness tune``."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli._arguments import (
    add_assets,
    add_how_to_run,
    add_results,
    add_selection,
    add_suite,
    assets_from,
    how_to_run_from,
    results_from,
    selection_from,
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_suite(command)
    add_selection(command)
    add_assets(command)
    add_results(command)
    command.add_argument("--out", metavar="FILE", help="where the choices go (default: what the suite names)")
    add_how_to_run(command)


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.tune import tune

    return tune(
        selection_from(args),
        how_to_run_from(args),
        assets_from(args),
        results=results_from(args),
        out=None if args.out is None else Path(args.out),
    )
