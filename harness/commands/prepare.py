"""``harness prepare``: every download and conversion that a suite needs, beforehand, and bundles of all of it."""

from __future__ import annotations

import argparse

from harness.commands._assets import prepare
from harness.commands._bundling import bundle, bundle_request
from harness.commands._output import Display, say, warn
from harness.commands._selection import given_wheels, select


def main(args: argparse.Namespace) -> int:
    """Bring everything the suite needs into the cache, and into a bundle where one is asked for."""
    request = bundle_request(args)
    selection = select(args, tuned=False)
    wheels = given_wheels(args.wheel)
    with Display() as display:
        prepare(selection, offline=args.offline, wheels=wheels, progress=display.progress)
        made = None if request is None else bundle(request, args, selection, display.progress)
    say(f"everything that suite '{selection.suite.name}' needs is there")
    if made is not None and request is not None:
        warn(made.notes)
        parts = f" in {made.num_parts} parts" if made.num_parts else ""
        say(
            f"{made.place} is a bundle for {request.target}: {made.num_packages} packages, "
            f"{made.num_bytes / 1e6:.1f} MB{parts}"
        )
        say(f"copy it there, then: bash {made.place.name}/{'join.sh' if made.num_parts else 'install.sh'}")
    return 0
