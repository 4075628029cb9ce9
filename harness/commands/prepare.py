"""``harness prepare``: every download and conversion that a suite needs, beforehand."""

from __future__ import annotations

import argparse

from harness.commands._assets import prepare
from harness.commands._output import Display
from harness.commands._selection import given_wheels, select


def main(args: argparse.Namespace) -> int:
    """Bring everything the suite needs into the cache."""
    selection = select(args, tuned=False)
    wheels = given_wheels(args.wheel)
    with Display() as display:
        prepare(selection, offline=args.offline, wheels=wheels, progress=display.progress)
    print(f"everything that suite '{selection.suite.name}' needs is there")
    return 0
