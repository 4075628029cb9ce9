"""``harness calibrate``: what this device can do, and whether predictions hold on it; resumable, most valuable first.

Checks and constants are asked in processes of their own, the ladder's runs are runs like any others, and evaluation
comes last. What is answered already in this environment is skipped; what failed is asked again.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock, Timeout

from harness.calibration.conductor import Order, conduct
from harness.calibration.foretelling import Foreteller
from harness.calibration.parts import Part, all_parts
from harness.calibration_log import FOLDER, GROUPS, SUITES, Group, PartResult, Sizes, append_result, read_log
from harness.calibration_profile import profile_of
from harness.commands._executor import devices_for, executor
from harness.commands._output import Display, note, print_table, say, warn
from harness.commands._selection import Selection, select
from harness.commands.requests import HowToRun, SelectionRequest, WhereToRun
from harness.commands.run import execute_on, plan_tasks
from harness.device_profile import ASSUMED_CONTEXT_BYTES, Rates, profile_text
from harness.errors import HarnessError
from harness.files import said_as, write_file
from harness.planning.questions import PlanAnswer
from harness.record import Record
from harness.record_environment import Environment
from harness.report.pages.calibration import calibration_lines, calibration_tables
from harness.report.pages.model_card import model_card
from harness.report.table import Table
from harness.runs.device_probe import ask_torch
from harness.runs.executor import Executor
from harness.runs.process import probe_environment
from harness.runs.settling import recover
from harness.source import package_checksum
from harness.spec import RunSpec
from harness.store import Store, has_outcome

CORES_FOR_TWO = 4
"""Cores from which a process that predicts takes nothing from one that measures a GPU."""
LEFT = "not reached: the budget ended"


@dataclass
class _Calibration:
    """One call of the command."""

    sizes: Sizes
    groups: tuple[Group, ...]
    store: Store
    environment: Environment
    stop_at: float
    again: bool
    not_run: list[tuple[Group, str, str]] = field(default_factory=list)
    """Of what has no answer: its group, its name and why."""
    shared_by: Sequence[Mapping[str, str]] = ()
    """Of each device that shares training the environment variables of its process; none where one is there alone."""
    interrupted_by_budget: bool = False
    failed: bool = False

    @property
    def environment_id(self) -> str:
        """Return the environment whose answers count."""
        return self.environment.environment_id

    def leave(self, group: Group, what: str) -> None:
        """Note what the budget did not reach."""
        self.interrupted_by_budget = True
        self.not_run.append((group, what, LEFT))

    def latest(self) -> tuple[PartResult, ...]:
        """Return the newest answer of each part in this environment, at these sizes."""
        return read_log(self.store.folder).latest(self.sizes, self.environment_id)


def calibrate(
    *,
    results: Path,
    budget_seconds: float = 480.0,
    groups: Sequence[Group] | None = None,
    smoke: bool = False,
    again: bool = False,
    gpus: int | None = None,
) -> int:
    """Ask what is not answered yet.

    Return 0 when all is answered, 1 when something failed, 3 when the budget ended first.

    Args:
        results: Folder of the records.
        budget_seconds: When to stop, the most valuable first.
        groups: The parts that are asked; None: all.
        smoke: Tiny shapes, on a CPU too.
        again: Ask also what is answered already.
        gpus: Devices that share training; on a CPU processes. None: the CUDA devices that are there.
    """
    begin = time.monotonic()
    environment = probe_environment()
    if not environment.on_cuda and not smoke:
        raise HarnessError(
            "torch sees no CUDA device here, which a calibration is of: harness doctor says what is there, and --smoke "
            "tries the machinery on the CPU"
        )
    store = Store(results.resolve())
    store.check_writable()
    wanted = groups or GROUPS
    shared_by = _sharing(environment, gpus) if "sharded" in wanted else ()
    if groups and "sharded" in groups and not shared_by:
        raise HarnessError(
            "--part sharded: several devices share what is asked there, and there is one: --gpus N takes N devices, on "
            "a CPU N processes"
        )
    run = _Calibration(
        sizes="smoke" if smoke else "full",
        groups=tuple(group for group in GROUPS if group in wanted),
        store=store,
        environment=environment,
        stop_at=begin + budget_seconds,
        again=again,
        shared_by=shared_by,
    )
    warn(read_log(store.folder).warnings)
    if (busy := environment.not_idle("the device")) is not None:
        warn([f"{busy}; peaks and times may be off"])
    with _alone(run.store), _foretelling(run) as foreteller:
        for group in run.groups:
            if group == "ladder":
                assert foreteller is not None
                _climb(run, foreteller)
            else:
                _ask(run, group)
    _conclude(run)
    return 3 if run.interrupted_by_budget else 1 if run.failed else 0


def _sharing(environment: Environment, gpus: int | None) -> Sequence[Mapping[str, str]]:
    """Return the environment variables of the process on each device that shares training; none where it is one.

    Raises:
        HarnessError: devices that were asked for are not there, or not of one kind.
    """
    if gpus is not None:
        return devices_for(gpus)[0].variables if gpus > 1 else ()
    facts = ask_torch() if environment.on_cuda else ""
    number = 1 if isinstance(facts, str) else len(facts.devices)
    if number < 2:
        return ()
    try:
        return devices_for(number)[0].variables
    except HarnessError as error:
        warn([f"{error}; nothing is asked of several devices together"])
        return ()


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Keep other calls on the same results folder out, which would measure beside this one.

    Raises:
        HarnessError: there is one.
    """
    file = store.folder / FOLDER / "calibrate.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(file, timeout=0):
            yield
    except Timeout as error:
        raise HarnessError(
            f"{store.folder}: another harness calibrate is at work there, and two would disturb each other's figures: "
            "wait for it, or name another folder with --results"
        ) from error


def _ask(run: _Calibration, group: Group) -> None:
    """Have the parts of a group answered that are not answered yet."""
    known = {result.part for result in run.latest() if result.outcome == "ok" and not run.again}
    asked = [part for part in all_parts(len(run.shared_by)) if part.group == group]
    if not asked:
        return
    parts = [part for part in asked if part.name not in known]
    if len(parts) < len(asked):
        print(f"{group}: {len(asked) - len(parts)} of {len(asked)} parts are answered already")
    order = Order(run.sizes, run.environment, run.stop_at, shared_by=run.shared_by)
    done: list[PartResult] = []

    def keep(result: PartResult) -> None:
        append_result(run.store.folder, result)
        done.append(result)

    with Display() as display:

        def begins(part: Part) -> None:
            display.progress(part.name, len(done), len(parts))

        left = conduct(parts, order, begins, keep)
    if any(result.outcome in ("failed", "out_of_memory") for result in done):
        run.failed = True
    for part in left:
        run.leave(group, part.name)


def _foretelling(run: _Calibration) -> AbstractContextManager[Foreteller | None]:
    """Return who predicts the ladder's runs: ahead, beside the checks, where that takes no core from them."""
    if "ladder" not in run.groups:
        return nullcontext()
    ahead = (os.cpu_count() or 1) >= CORES_FOR_TWO
    return Foreteller(plan_tasks(_ladder(run), run.environment), package_checksum(), ahead=ahead)


def _ladder(run: _Calibration) -> Selection:
    """Return the runs of the ladder, in the order of its rungs."""
    return select(SelectionRequest(suite=SUITES[run.sizes]))


def _climb(run: _Calibration, foreteller: Foreteller) -> None:
    """Do the runs of the ladder that the device holds, one by one, as far as the budget reaches."""
    selection = _ladder(run)
    recover(run.store, model_card)
    with executor(WhereToRun()) as chosen:
        for spec in selection.specs:
            records = run.store.read(selection.suite.name).records
            if not run.again and has_outcome(records, spec.run_id, run.environment_id, frozenset()):
                continue
            answer = foreteller.answer(spec.run_id, run.stop_at)
            if answer is None or time.monotonic() >= run.stop_at:
                run.leave("ladder", _title(spec))
            elif (why := _too_large(run, answer)) is not None:
                run.not_run.append(("ladder", _title(spec), why))
            else:
                _do(run, chosen, replace(selection, specs=(spec,)))


def _do(run: _Calibration, chosen: Executor, one: Selection) -> None:
    """Do one run of the ladder."""
    how = HowToRun(repeat=1 if run.again else None)
    tally, _ = execute_on(chosen, how, lambda: one, run.store, stop_at=run.stop_at, offline=True)
    if tally.interrupted:
        raise KeyboardInterrupt
    if tally.left_by_budget is not None:
        run.leave("ladder", _title(one.specs[0]))
    elif tally.exit_code:
        run.failed = True


def _title(spec: RunSpec) -> str:
    return f"{spec.model_name} {spec.label}"


def _too_large(run: _Calibration, answer: PlanAnswer) -> str | None:
    """Return why a run is left out that the device does not hold: it would tell no more than that."""
    memory, prediction = run.environment.device_memory_bytes, answer.prediction
    if memory is None or prediction is None:
        return None
    profile = profile_of(run.latest())
    measured = None if profile is None else profile.context_bytes
    if prediction.peak_bytes + (ASSUMED_CONTEXT_BYTES if measured is None else measured) <= memory:
        return None
    return f"not run: {prediction.peak_bytes / 1e9:.1f} GB predicted, the device has {memory / 1e9:.1f}"


def _records(run: _Calibration) -> Iterable[Record]:
    """Return the newest record of each run of the ladder in this environment, but of those that were cut off."""
    found = {}
    for record in run.store.read(SUITES[run.sizes]).records:
        if record.ran_in(run.environment_id) and record.is_run and not record.was_interrupted:
            found[record.attempted] = record
    return found.values()


def _conclude(run: _Calibration) -> None:
    """Write the profile and print the table of all that is known of this device, from earlier calls too."""
    results = [result for result in run.latest() if result.group in run.groups]
    profile = profile_of(run.latest())
    records: Iterable[Record] = _records(run) if "ladder" in run.groups else ()
    rates = Rates() if profile is None else profile.rates
    answered = {result.part for result in results}
    not_run = [entry for entry in run.not_run if entry[1] not in answered]
    lines = calibration_lines(results, records, rates, not_run)
    for title, table in calibration_tables(lines):
        print(f"\n{title}")
        _print(table)
    print()
    missed = sum(line.reached == "no" for line in lines)
    asked = sum(line.reached != "" for line in lines)
    if asked:
        say(f"{asked - missed} of {asked} of what was asked for is reached")
    say(f"records in {run.store.folder}")
    if profile is not None:
        file = run.store.folder / FOLDER / f"{_file_stem(profile.device_name, run.sizes)}.toml"
        with said_as(f"{file}: cannot be written", "name another folder with --results"):
            write_file(file, profile_text(profile))
        say(f"profile of {profile.device_name}: {file}; harness plan --device-profile takes it")
    if run.sizes == "smoke":
        note("These are tiny shapes: they show that the machinery works, and nothing of the device.")
    if run.interrupted_by_budget:
        note("The budget ended before everything was asked: the same command goes on.")


def _print(table: Table) -> None:
    titles = [column.title for column in table.columns]
    print_table([dict(zip(titles, map(str, row), strict=True)) for row in table.rows])


def _file_stem(device_name: str, sizes: Sizes) -> str:
    stem = re.sub(r"[^a-z0-9]+", "-", device_name.casefold()).strip("-") or "device"
    return stem if sizes == "full" else f"{stem}-smoke"
