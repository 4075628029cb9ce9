"""The arguments of ``harness history``."""

from __future__ import annotations

import argparse

from harness.cli._arguments import add_labels, add_results, labels_from, results_from


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    command.add_argument("--suite", required=True, metavar="NAME", help="as the records name it")
    command.add_argument(
        "--metric",
        required=True,
        metavar="NAME",
        help="step_time or another quantity of docs/reports.md, score, a task",
    )
    command.add_argument("--model", action="append", metavar="NAME", help="of this base model; may be repeated")
    add_labels(command, "of this label; may be repeated")
    add_results(command)
    command.add_argument("--plot", metavar="FILE", help="also draw the series: FILE.png or FILE.svg")
    command.add_argument("--json", action="store_true", help="as JSON")


def main(args: argparse.Namespace) -> int:
    """Hand the arguments on."""
    from harness.commands.history import show_history

    return show_history(
        args.suite,
        args.metric,
        results=results_from(args),
        models=args.model or (),
        labels=labels_from(args),
        in_json=args.json,
        plot=args.plot,
    )
