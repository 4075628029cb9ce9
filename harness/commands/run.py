"""``harness run``: the runs of a suite, one child process each; what has an outcome is skipped."""

from __future__ import annotations

import argparse
import shutil
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.assets.cache import cache_root
from harness.commands._assets import Prepared, prepare
from harness.commands._output import Display, print_table, warn
from harness.commands._selection import Selection, given_wheels, select
from harness.engine.executors import Tally, run_locally, work_folder
from harness.engine.launch import probe_environment
from harness.engine.task import RunTask
from harness.record import Environment
from harness.store import Contents, Store, has_outcome
from harness.suite import RunSpec


def main(args: argparse.Namespace) -> int:
    """Run what is to be run; return 0 when every run has an outcome, 1 when one failed, 130 on interrupt."""
    wheels = given_wheels(args.wheel)
    selection = select(args)
    store = Store(Path(args.results).resolve())
    if args.dry_run:
        return _dry_run(selection, store)
    store.check_writable()
    environment = probe_environment()
    if environment.device_busy:
        warn([f"the device is not idle: {environment.device_busy}; peaks and times may be off, and reports mark them"])
    environment_id = None if args.any_environment else environment.environment_id
    known = _Wanted(store, selection.suite.name, environment_id, frozenset(args.retry))
    warn(known.contents().warnings)
    wanted = _always if args.repeat else known
    to_do = _to_do(selection, wanted)
    if to_do.specs:
        with Display() as display:
            prepared = prepare(to_do, offline=args.offline, wheels=wheels, progress=display.progress)
        # A revision that was unknown until now is part of a run's identity.
        to_do = _to_do(select(args), wanted)
    if skipped := len(selection.specs) - len(to_do.specs):
        print(f"{skipped} of {len(selection.specs)} runs skipped: their outcome is recorded")
    if not to_do.specs:
        return 0
    tasks = [
        _task(spec, args, selection=to_do, prepared=prepared, store=store, environment_id=environment.environment_id)
        for _ in range(args.repeat or 1)
        for spec in to_do.specs
    ]
    with Display(len(tasks)) as display:
        tally = run_locally(
            tasks,
            store=store,
            environment=environment,
            watcher=display,
            timeout_seconds=args.timeout,
            wanted=lambda task: wanted(task.spec),
        )
    _close(store, tally, environment, len(tasks))
    return tally.exit_code


def _to_do(selection: Selection, wanted: Callable[[RunSpec], bool]) -> Selection:
    return replace(selection, specs=tuple(spec for spec in selection.specs if wanted(spec)))


def _always(spec: RunSpec) -> bool:
    return True


class _Wanted:
    """Whether a run is still to be done, by the records as they are now."""

    def __init__(self, store: Store, suite: str, environment_id: str | None, retry: frozenset[str]) -> None:
        self._store = store
        self._suite = suite
        self._environment_id = environment_id
        self._retry = retry
        self._size = -1
        self._contents = Contents(())

    def contents(self) -> Contents:
        """Return the suite's records; an append-only file of the same size is the same file and is not read again."""
        file = self._store.file_of(self._suite)
        size = file.stat().st_size if file.exists() else 0
        if size != self._size:
            self._contents, self._size = self._store.read(self._suite), size
        return self._contents

    def __call__(self, spec: RunSpec) -> bool:
        return not has_outcome(self.contents().records, spec.run_id, self._environment_id, self._retry)


def _task(
    spec: RunSpec,
    args: argparse.Namespace,
    *,
    selection: Selection,
    prepared: Prepared,
    store: Store,
    environment_id: str,
) -> RunTask:
    identifier = uuid.uuid4().hex
    return RunTask(
        spec=spec,
        uuid=identifier,
        model=selection.models[spec.model_name],
        model_folder=prepared.model_folders[spec.model_name],
        rows_folder=prepared.rows_folder,
        data_overrides=dict(selection.data),
        cache_folder=cache_root(),
        work_folder=work_folder(store, spec.run_id, identifier),
        keep_weights=args.keep_weights,
        checkpoint_folder=None if args.repeat else store.folder / "checkpoints" / f"{spec.run_id}-{environment_id}",
        checkpoint_every=args.checkpoint_every,
        offline=args.offline,
        run_id=spec.run_id,
    )


def _dry_run(selection: Selection, store: Store) -> int:
    contents = store.read(selection.suite.name)
    warn(contents.warnings)
    rows = []
    for spec in selection.specs:
        known = has_outcome(contents.records, spec.run_id, None, frozenset())
        rows.append(
            {
                "run_id": spec.run_id,
                "model": spec.model_name,
                "label": spec.label,
                "seed": str(spec.seed),
                "recorded": "yes" if known else "no",
            }
        )
    print_table(rows)
    print(f"\n{len(rows)} runs of suite '{selection.suite.name}' (version {selection.suite.version})")
    return 0


def _close(store: Store, tally: Tally, environment: Environment, num_tasks: int) -> None:
    counts = Counter(record.status for record in tally.records)
    what = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "nothing run"
    print(f"{what}; records in {store.folder}")
    if tally.interrupted:
        print(f"interrupted after {len(tally.records)} of {num_tasks} runs; the same command does the rest")
    leftover = store.folder / ".work"
    if leftover.is_dir() and not any(leftover.iterdir()):
        shutil.rmtree(leftover, ignore_errors=True)
