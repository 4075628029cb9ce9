"""The arguments of ``harness plan``."""

from __future__ import annotations

import argparse

from harness.cli._arguments import above_zero_to, add_selection, add_settings, devices, positive, seed, selection_from
from harness.errors import HarnessError

DEFAULT_SUITE = "commonsense"
"""Whose settings a single run is planned with when no suite is named."""
CHECKPOINTING = {"on": "true", "off": "false"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    command.add_argument(
        "--suite",
        metavar="NAME",
        help="a packaged suite, or the path of a .toml file; without one --model and --label in the settings of suite "
        f"{DEFAULT_SUITE}",
    )
    add_selection(command)
    add_settings(command)
    command.add_argument("--seed", action="append", type=seed, metavar="N", help="plan this seed; may be repeated")
    command.add_argument("--max-steps", type=positive, metavar="N", help="train at most N optimizer steps")
    command.add_argument("--batch-size", type=positive, metavar="B", help="rows of a micro-batch")
    command.add_argument("--seq-len", type=positive, metavar="N", help="tokens of a row")
    command.add_argument("--dtype", choices=("bf16", "fp32"), help="of the weights")
    command.add_argument("--checkpointing", choices=tuple(CHECKPOINTING), help="gradient checkpointing")
    command.add_argument(
        "--horizon",
        choices=("first", "run", "all-visited"),
        default="run",
        help="the first active blocks only; the worst step of the run's own draws (default); every block visited",
    )
    command.add_argument(
        "--gpus",
        type=devices,
        metavar="N",
        help="GPUs that share each run: what each of them needs (default: gpus_per_run of the suite)",
    )
    command.add_argument("--device", metavar="NAME", help="a device of 'harness list devices': its memory and its peak")
    command.add_argument(
        "--device-profile",
        metavar="FILE",
        help="what harness calibrate measured of a device (default: what comes with the project for --device)",
    )
    command.add_argument("--device-memory", metavar="SIZE", help="such as 24GiB: whether each run fits")
    command.add_argument(
        "--mfu", type=_share, metavar="X", help="share of the device's peak, for times (above 0, to 1)"
    )
    command.add_argument(
        "--fit",
        action="store_true",
        help="the largest batch and length of each label that fit --device or --device-memory, and which settings make "
        "the others fit",
    )
    command.add_argument("--json", action="store_true", help="as JSON")


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.plan import plan

    if args.suite is None and not (args.model and (args.label or args.fit)):
        raise HarnessError("name a suite with --suite, or one run with --model and --label")
    settings = {
        "batch_size": args.batch_size,
        "sequence_length": args.seq_len,
        "dtype": args.dtype,
        "gradient_checkpointing": CHECKPOINTING.get(args.checkpointing),
    }
    short = [f"{key}={value}" for key, value in settings.items() if value is not None]
    selection = selection_from(
        args,
        suite=args.suite or DEFAULT_SUITE,
        seeds=args.seed,
        overrides=[*args.overrides, *short],
        max_steps=args.max_steps,
    )
    return plan(
        selection,
        horizon=args.horizon,
        device_name=args.device,
        device_profile=args.device_profile,
        device_memory=args.device_memory,
        mfu=args.mfu,
        gpus=args.gpus,
        fit=args.fit,
        in_json=args.json,
    )


def _share(text: str) -> float:
    return above_zero_to(text, 1.0, "a number above 0, at most 1")
