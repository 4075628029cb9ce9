"""``python -m harness``: the ``harness`` command where its script is not on the path.

By name, as what stands at the top of the package imports no command.
"""

from __future__ import annotations

import runpy

if __name__ == "__main__":
    runpy.run_module("harness.cli", run_name="__main__")
