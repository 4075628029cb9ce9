"""``harness run`` as a function."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from harness.api.results import Results
from harness.commands.requests import RESULTS, AssetsRequest, HowToRun, SelectionRequest, TasksRequest, WhereToRun
from harness.errors import HarnessError
from harness.readings import newest_runs, scored_run
from harness.settings import no_seed
from harness.store import Contents, Store

INTERRUPTED = 130
Names = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
EXECUTORS = ("local", "ray")


def run(
    suite: str | os.PathLike[str],
    *,
    models: Names | None = None,
    labels: Names | None = None,
    seeds: int | Sequence[int] | None = None,
    data: Names | None = None,
    settings: Mapping[str, Any] | None = None,
    limit: int | None = None,
    max_steps: int | None = None,
    results: str | os.PathLike[str] = RESULTS,
    catalogue: str | os.PathLike[str] | None = None,
    include_path: Names | None = None,
    offline: bool = False,
    retry: Names | None = None,
    any_environment: bool = False,
    repeat: int | None = None,
    keep_weights: bool = False,
    checkpoint_every: int | None = None,
    timeout_seconds: float | None = None,
    budget_seconds: float | None = None,
    max_failures: int | None = None,
    log: Names | None = None,
    devices: Names | None = None,
    gpus_per_run: int | None = None,
    executor: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
) -> Results:
    """Run a suite and return the newest record of each of its runs, those that had an outcome before among them.

    It is ``harness run``: what has an outcome is skipped, what is missing is prepared, every run is a process of its
    own, and how it goes is printed. A run that fails raises nothing: look at ``status`` in the ``runs`` of what is
    returned. Nothing of the calling process is forked, so that a script needs no guard but the usual one and a notebook
    none.

    Args:
        suite: A packaged suite's name, or the path of a ``.toml`` file.
        models: Base models, each ``NAME`` or ``NAME=PATH``; None: the suite's.
        labels: None: the suite's.
        seeds: None: the suite's.
        data: Local files, each ``NAME=PATH``.
        settings: Changed settings by key, as ``--set``.
        limit: Items of each task that are scored.
        max_steps: Optimizer steps at most.
        results: Folder of the records.
        catalogue: A ``.toml`` file with base models, data sets and labels of one's own.
        include_path: Folders with lm-eval's YAML files of tasks of one's own.
        offline: Never touch the network.
        retry: Outcomes of runs that are done again.
        any_environment: Skip also what was run in another environment.
        repeat: Run everything so many times more, done or not.
        keep_weights: Save the trained weights beside the records.
        checkpoint_every: Optimizer steps between checkpoints.
        timeout_seconds: Of one run.
        budget_seconds: Of the whole call: no run starts later.
        max_failures: So many failed runs, and no further one starts.
        log: Loggers that are told while runs go on, as ``--log``.
        devices: CUDA devices by number or UUID; None: the first.
        gpus_per_run: Devices that share a run; None: as the suite says.
        executor: ``local``, or ``ray``.
        ray_address: Of a cluster that runs already.

    Raises:
        HarnessError: something is unknown, not valid, missing or cannot be had; nothing was begun, or what was under
            way has its record.
        KeyboardInterrupt: it was interrupted; what was under way has its record.
    """
    from harness.commands.called import run_called

    if executor not in EXECUTORS:
        raise HarnessError(f"harness.run: there is no executor {executor!r}; known: {', '.join(EXECUTORS)}")
    if settings is not None and not isinstance(settings, Mapping):
        raise HarnessError(f"harness.run: settings takes names with their values, not {settings!r}")
    chosen = SelectionRequest(
        suite=_path("suite", suite),
        models=_names("models", models),
        labels=_names("labels", labels),
        data=_names("data", data),
        catalogue=None if catalogue is None else Path(_path("catalogue", catalogue)),
        tasks=TasksRequest(include=_names("include_path", include_path)),
        seeds=_seeds(seeds),
        overrides=tuple(f"{key}={_text(value)}" for key, value in (settings or {}).items()),
        limit=_at_least_one("limit", limit),
        max_steps=_at_least_one("max_steps", max_steps),
    )
    how = HowToRun(
        retry=_names("retry", retry),
        any_environment=any_environment,
        repeat=_at_least_one("repeat", repeat),
        keep_weights=keep_weights,
        checkpoint_every=_at_least_one("checkpoint_every", checkpoint_every),
        timeout_seconds=_above_zero("timeout_seconds", timeout_seconds),
        budget_seconds=_above_zero("budget_seconds", budget_seconds),
        max_failures=_at_least_one("max_failures", max_failures),
        log=_names("log", log),
        where=WhereToRun(
            executor=executor,
            devices=_names("devices", devices),
            gpus_per_run=_at_least_one("gpus_per_run", gpus_per_run),
            ray_address=ray_address,
        ),
    )
    folder = Path(_path("results", results))
    try:
        code, asked = run_called(chosen, how, AssetsRequest(offline=offline), results=folder)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "harness":
            raise
        raise HarnessError(f"the package '{error.name}' is not installed, which a run needs") from error
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return Results(folder, _of(Store(folder).read(), asked))


def _of(contents: Contents, asked: frozenset[str]) -> Contents:
    """Return the newest record of each run, and the scores that were added to it."""
    newest = newest_runs(contents.records, asked)
    return Contents(tuple(record for record in contents.records if scored_run(record) in newest), contents.warnings)


def _path(what: str, given: object) -> str:
    """Return a name or a path as text.

    Raises:
        HarnessError: it is neither.
    """
    found = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(found, str):
        raise HarnessError(f"harness.run: {what} takes text or a path, not {given!r}")
    return found


def _names(what: str, given: Names | None) -> tuple[str, ...]:
    """Return words, of which one may stand alone; none for None.

    Raises:
        HarnessError: one of them is no word, or there is none, which would choose everything.
    """
    if given is None:
        return ()
    if isinstance(given, str | os.PathLike):
        return (_path(what, given),)
    found = tuple(_path(what, one) for one in given) if isinstance(given, Iterable) else (_path(what, given),)
    if not found:
        raise HarnessError(f"harness.run: {what} is empty; leave it out, or give None, for all that there is")
    return found


def _seeds(given: int | Sequence[int] | None) -> tuple[int, ...]:
    if given is None:
        return ()
    found = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    for one in found:
        if (wrong := no_seed(one)) is not None:
            raise HarnessError(f"harness.run: {wrong}")
    if not found:
        raise HarnessError("harness.run: seeds is empty; leave it out, or give None, for those of the suite")
    return found


def _at_least_one(what: str, given: int | None) -> int | None:
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        raise HarnessError(f"harness.run: {what} is {given!r}, and has to be a whole number of at least 1")
    return given


def _above_zero(what: str, given: float | None) -> float | None:
    if given is not None and (not isinstance(given, int | float) or not 0 < given < float("inf")):
        raise HarnessError(f"harness.run: {what} is {given!r}, and has to be a number of seconds above 0")
    return given


def _text(value: Any) -> str:
    """Return a value as ``--set`` takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
