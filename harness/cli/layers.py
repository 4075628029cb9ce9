"""The arguments of ``harness layers``."""

from __future__ import annotations

import argparse

from harness.cli._arguments import (
    above_zero,
    add_assets,
    add_catalogue,
    add_data,
    add_labels,
    add_tasks,
    assets_from,
    catalogue_from,
    labels_from,
    tasks_from,
)
from harness.commands.requests import BLOCK_SCORES, SelectionRequest


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    command.add_argument(
        "--model", required=True, metavar="NAME[=PATH]", help="a base model, from a local folder with =PATH"
    )
    command.add_argument(
        "--suite", default="quickstart", metavar="NAME", help="its [calibration] is used (default: quickstart)"
    )
    add_labels(
        command, "whose sampling law is shown (default: the first label that draws blocks by scores)", action="store"
    )
    command.add_argument("--tau", type=above_zero, metavar="X", help="threshold of an outlier, instead of the label's")
    command.add_argument(
        "--beside",
        action="append",
        choices=BLOCK_SCORES,
        default=[],
        metavar="SCORE",
        help="another score of the blocks to show beside the label's, with their rank correlations: "
        + ", ".join(BLOCK_SCORES)
        + "; may be repeated",
    )
    add_data(command, "a local file for a data set; may be repeated")
    add_catalogue(command)
    add_tasks(command)
    add_assets(command)
    command.add_argument("--json", action="store_true", help="as JSON")
    command.add_argument("--out", metavar="FILE", help="also draw a plot: FILE.png or FILE.svg")


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.layers import show_layers

    selection = SelectionRequest(
        suite=args.suite,
        models=(args.model,),
        labels=labels_from(args),
        data=tuple(args.data),
        catalogue=catalogue_from(args),
        tasks=tasks_from(args),
        overrides=() if args.tau is None else (f"tau={args.tau!r}",),
    )
    return show_layers(selection, assets_from(args), beside=tuple(args.beside), in_json=args.json, plot=args.out)
