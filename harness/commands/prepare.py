"""``harness prepare``: every download and conversion that a suite needs, beforehand, and bundles of all of it."""

from __future__ import annotations

from harness.commands._assets import prepare
from harness.commands._bundling import bundle, bundle_request
from harness.commands._output import Display, say, warn
from harness.commands._readiness import check_ready
from harness.commands._selection import given_wheels, select
from harness.commands.requests import AssetsRequest, BundleOptions, SelectionRequest


def prepare_suite(chosen: SelectionRequest, assets: AssetsRequest, options: BundleOptions | None = None) -> int:
    """Bring everything the suite needs into the cache, and into a bundle where one is asked for."""
    request = None if options is None else bundle_request(options, offline=assets.offline)
    selection = select(chosen, tuned=False)
    wheels = given_wheels(assets.wheels)
    with Display() as display:
        prepared = prepare(selection, offline=assets.offline, wheels=wheels, progress=display.progress)
        check_ready(selection, prepared, offline=assets.offline, progress=display.progress)
        made = None if request is None else bundle(request, chosen, selection, display.progress)
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
