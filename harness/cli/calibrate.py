"""The arguments of ``harness calibrate``."""

from __future__ import annotations

import argparse

from harness.cli._arguments import add_results, devices, results_from, seconds

GROUPS = ("checks", "sharded", "constants", "ladder", "evaluation")
"""As ``calibration_log`` has them, whose import would cost ``--help`` its start."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
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
    command.add_argument(
        "--gpus",
        type=devices,
        metavar="N",
        help="devices that share training in the part 'sharded'; on a CPU N processes (default: the CUDA devices there "
        "are)",
    )
    command.add_argument("--smoke", action="store_true", help="tiny shapes: tries the machinery, on a CPU too")
    command.add_argument("--again", action="store_true", help="ask also what is answered already")
    add_results(command)


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.calibrate import calibrate

    return calibrate(
        results=results_from(args),
        budget_seconds=args.budget_seconds,
        groups=args.part,
        smoke=args.smoke,
        again=args.again,
        gpus=args.gpus,
    )
