"""The arguments of ``harness new``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    command.add_argument("kind", choices=("suite", "method", "task"), help="what to write")
    command.add_argument("name", metavar="NAME", help="what records will call it")
    command.add_argument("--out", default=".", metavar="DIR", help="the folder to write into (default: this one)")


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.new import new

    return new(args.kind, args.name, out=Path(args.out).expanduser())
