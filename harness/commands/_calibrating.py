"""The arguments of ``calibrate``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

GROUPS = ("checks", "constants", "ladder", "evaluation")
"""As ``calibration_log`` has them, whose import would cost every command its start."""
RUN_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(
        ("model", "method", "catalogue", "repeat", "checkpoint_every", "timeout", "devices", "ray_address")
    ),
    **dict.fromkeys(("keep_weights", "dry_run", "any_environment"), False),
    **{"data": [], "wheel": [], "retry": [], "offline": True, "busy": "use", "executor": "local", "cpus_per_run": None},
}
"""Of the options of ``run`` that the ladder's runs do without."""


def add_calibrate(commands: Any, results: str, seconds: Callable[[str], float]) -> None:
    """Add ``calibrate`` to the command line.

    Args:
        commands: The subparsers.
        results: Default folder of the records.
        seconds: Reads a number of seconds.
    """
    command = commands.add_parser(
        "calibrate", help="what this device can do, and whether predictions hold on it; what is answered is skipped"
    )
    command.add_argument(
        "--budget-seconds",
        type=seconds,
        default=480.0,
        metavar="N",
        help="stop after so long, the most valuable first, and exit with 3; the same command goes on (default: 480)",
    )
    command.add_argument(
        "--part", action="append", choices=GROUPS, help="this part only; may be repeated (default: all, in this order)"
    )
    command.add_argument("--smoke", action="store_true", help="tiny shapes: tries the machinery, on a CPU too")
    command.add_argument("--again", action="store_true", help="ask also what is answered already")
    command.add_argument(
        "--results", default=results, metavar="DIR", help=f"folder of the records (default: {results})"
    )
    command.set_defaults(**RUN_DEFAULTS)
