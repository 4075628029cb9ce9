"""The contract of a method, tried on a tiny model made on the spot: no download, no GPU, seconds on a CPU.

A plug-in's own tests call it (``harness new method`` writes them), and so does ``harness check``.
"""

from __future__ import annotations

from harness.checking.contract import CHECKS, Checked, check_method

__all__ = ["CHECKS", "Checked", "check_method"]
