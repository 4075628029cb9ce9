"""``harness --version``: version, and the commit that runs or that was built."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from harness import __version__


class PrintVersion(argparse.Action):
    """Prints version and commit and ends; git is asked for the commit only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Print them."""
        print(version_text())
        parser.exit()


def version_text() -> str:
    """Return version and commit in a line."""
    from harness.source import checkout_state

    commit, dirty = checkout_state()
    if commit is None:
        return f"harness {__version__}"
    changes = ", with uncommitted changes" if dirty else ""
    return f"harness {__version__} (commit {commit[:12]}{changes})"
