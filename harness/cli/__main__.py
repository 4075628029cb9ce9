"""``python -m harness.cli``: the ``harness`` command where no script is installed."""

from __future__ import annotations

import sys

from harness.cli import main

if __name__ == "__main__":
    sys.exit(main())
