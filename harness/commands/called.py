"""A suite run by a program: the same as ``harness run``, and which runs were asked for."""

from __future__ import annotations

from pathlib import Path

from harness.commands._selection import select
from harness.commands.requests import AssetsRequest, HowToRun, SelectionRequest
from harness.commands.run import execute


def run_called(
    chosen: SelectionRequest, how: HowToRun, assets: AssetsRequest, *, results: Path
) -> tuple[int, frozenset[str]]:
    """Run what is to be run of a selection; return as :func:`harness.commands.run.execute` does, and the runs' ids.

    Raises:
        HarnessError: something is unknown, not valid, missing or cannot be had.
        ModuleNotFoundError: torch is not installed.
    """
    code = execute(lambda: select(chosen), how, assets, results=results)
    # A revision that was unknown before it was prepared is part of a run's identity.
    return code, frozenset(spec.run_id for spec in select(chosen).specs)
