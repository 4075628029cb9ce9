"""The arguments of ``prepare --bundle``."""

from __future__ import annotations

import argparse


def add_bundle_options(command: argparse.ArgumentParser) -> None:
    """Add the options."""
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
