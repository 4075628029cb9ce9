"""The arguments of ``harness prepare``."""

from __future__ import annotations

import argparse

from harness.cli._arguments import add_assets, add_selection, add_suite, assets_from, selection_from
from harness.commands.requests import BundleOptions


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_suite(command)
    add_selection(command)
    add_assets(command)
    command.add_argument(
        "--bundle", metavar="DIR", help="also put all that a machine without a network needs into this folder"
    )
    command.add_argument("--python", metavar="X.Y", help="of that machine (default: the running one)")
    command.add_argument(
        "--platform", metavar="TAG", help="of that machine, such as manylinux_2_28_x86_64 (default: this machine)"
    )
    command.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="PACKAGE[==VERSION]",
        help="leave out what that machine has, and what only this needs, such as torch; may be repeated",
    )
    command.add_argument(
        "--extra", action="append", default=[], metavar="NAME", help="also what an extra needs, such as gpu"
    )
    command.add_argument("--part-size", metavar="SIZE", help="cut the bundle into parts of at most this, as 60MiB")


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.prepare import prepare_suite

    bundle = BundleOptions(
        folder=args.bundle,
        python=args.python,
        platform=args.platform,
        without=tuple(args.without),
        extras=tuple(args.extra),
        part_size=args.part_size,
    )
    return prepare_suite(selection_from(args), assets_from(args), bundle)
