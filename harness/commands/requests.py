"""What a caller asks of the commands, in types of their own: the command line fills them, and so may a program.

What is given as text, such as ``NAME=PATH``, is read by the command, whose sentences quote it. Nothing heavy is
imported here, so that the command line can parse without what the commands work with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

RESULTS = "results/records"
"""Folder of the records where no other is named."""

BLOCK_SCORES = ("outlier", "weight_norm", "alpha_hill", "alpha_peak", "alpha_peak_corrected", "alpha_fit")
"""Kinds of scores that blocks can have."""


@dataclass(frozen=True, kw_only=True)
class TasksRequest:
    """Where tasks of the caller's own are, beside what a suite or a catalogue says."""

    include: tuple[str, ...] = ()
    """Folders of lm-eval's YAML files."""
    trusted: tuple[str, ...] = ()
    """Of all such folders those whose code may be run."""


NO_TASKS = TasksRequest()


@dataclass(frozen=True, kw_only=True)
class SelectionRequest:
    """A suite, and what is chosen from it or changed in it."""

    suite: str
    """The name of a packaged suite, or the path of a ``.toml`` file."""
    models: tuple[str, ...] = ()
    """Base models, each ``NAME`` or ``NAME=PATH``; none: the suite's."""
    labels: tuple[str, ...] = ()
    """None: the suite's."""
    data: tuple[str, ...] = ()
    """Local files, each ``NAME=PATH``, that stand in for data sets, or under a new name are what is trained on."""
    catalogue: Path | None = None
    """A ``.toml`` file with base models, data sets and labels of the caller's."""
    tasks: TasksRequest = NO_TASKS
    seeds: tuple[int, ...] = ()
    """None: the suite's."""
    overrides: tuple[str, ...] = ()
    """Changed settings, each ``KEY=VALUE``."""
    limit: int | None = None
    """Items of each task that are scored."""
    max_steps: int | None = None
    """Optimizer steps at most."""


@dataclass(frozen=True, kw_only=True)
class AssetsRequest:
    """How what a suite needs may be brought into the cache."""

    offline: bool = False
    """Never touch the network."""
    wheels: tuple[str, ...] = ()
    """Files that are used instead of pip's downloads."""


@dataclass(frozen=True, kw_only=True)
class BundleOptions:
    """What is asked of a bundle for a machine without a network, as text; see ``harness prepare --help``."""

    folder: str | None = None
    """None: no bundle is asked for."""
    python: str | None = None
    platform: str | None = None
    without: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    part_size: str | None = None


@dataclass(frozen=True, kw_only=True)
class WhereToRun:
    """Which machine does runs, and what of it."""

    executor: Literal["local", "ray", "slurm"] = "local"
    devices: tuple[str, ...] = ()
    """CUDA devices by number or UUID; none: the first, or as many as a run takes. For ``local``."""
    gpus_per_run: int | None = None
    """Devices that share one run; None: as many as the suite says."""
    busy: Literal["use", "skip"] = "use"
    """What becomes of devices that others use."""
    ray_address: str | None = None
    """None: a cluster is started on this machine. For ``ray``."""
    cpus_per_run: int | None = None
    """For ``ray`` and ``slurm``; None: as many threads as the environment asks of OpenMP, else one."""
    slurm: tuple[str, ...] = ()
    """``KEY=VALUE`` of a job, by submitit's names. For ``slurm``."""


@dataclass(frozen=True, kw_only=True)
class HowToRun:
    """Which runs of a selection are done, and how."""

    retry: tuple[str, ...] = ()
    """Outcomes of runs that are done again."""
    any_environment: bool = False
    """Skip also what was run in another environment."""
    repeat: int | None = None
    """Run everything so many times more, done or not."""
    keep_weights: bool = False
    checkpoint_every: int | None = None
    """Steps from one checkpoint to the next."""
    timeout_seconds: float | None = None
    """Of one run."""
    budget_seconds: float | None = None
    """Of the whole call: no run starts later."""
    max_failures: int | None = None
    """So many failed runs, and no further one starts."""
    dry_run: bool = False
    """List the runs and stop."""
    log: tuple[str, ...] = ()
    """What is told of steps, losses and figures as they come: tensorboard, wandb, mlflow, trackio, ``MODULE:CLASS``."""
    where: WhereToRun = field(default_factory=WhereToRun)


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """Who judges answers, and how it is asked."""

    judge: str
    """URL of an OpenAI-compatible endpoint, or a folder with a model."""
    judge_model: str
    """As the endpoint knows it."""
    key_variable: str | None = None
    """Environment variable with the key; None: the endpoint's usual one, where it is set."""
    references: str = "gpt-4"
    """Who gave the reference answers."""
    repeats: int = 1
    max_tokens: int = 2048
    """Of one judgment."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    """What carries it; None: the former, or the latter where the endpoint refuses that."""
    temperature: Literal["protocol", "default"] = "protocol"
    """``protocol``: 0, unless the endpoint refuses it; ``default``: the endpoint's own."""
    verdict: Literal["first", "last"] = "first"
    """Which of several ratings in a judgment counts."""
    requests_per_minute: float | None = None
    concurrency: int = 1
    timeout_seconds: float = 120.0
    max_retries: int = 8


@dataclass(frozen=True, kw_only=True)
class TableRequest:
    """One table for a paper; None and nothing: as the file of ``spec`` has it."""

    suites: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    columns: str | None = None
    """Names with commas between them."""
    rows: str | None = None
    """Labels with commas between them."""
    style: str | None = None
    marked: Literal["nothing", "best", "groups"] | None = None
    spec: Path | None = None
    """A file that keeps such a choice."""
    save_spec: Path | None = None
    """Where the choice is to be kept."""
