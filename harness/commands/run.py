"""``harness run``: the runs of a suite, one child process each; what has an outcome is skipped.

``--budget-seconds`` cuts a suite into calls: no run starts after it, and the one under way is interrupted
as by one Ctrl-C; with ``--checkpoint-every`` the next call takes it up at its last checkpoint, else it begins anew.
"""

from __future__ import annotations

import contextlib
import shlex
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.answers import answer
from harness.assets.cache import cache_root
from harness.commands._assets import Prepared, prepare
from harness.commands._executor import executor
from harness.commands._finishing import awaiting, finishing
from harness.commands._following import observer, ready_loggers
from harness.commands._kept import from_kept, way_of, ways_sentences
from harness.commands._output import Display, print_table, say, warn
from harness.commands._readiness import unready
from harness.commands._selection import Selection, given_catalogue, given_wheels, select
from harness.commands.requests import RESULTS, AssetsRequest, HowToRun, SelectionRequest
from harness.device_profile import packaged_profile
from harness.errors import HarnessError
from harness.evaluation.own_tasks import OwnTasks
from harness.evaluation.task_names import check_task_names
from harness.expansion import load_suite
from harness.planning.questions import PlanAnswer, PlanTask, ask
from harness.progress import Progress
from harness.record import Record
from harness.record_environment import Environment
from harness.record_training import Prediction
from harness.report.pages.model_card import model_card
from harness.report.units import gib, memory_text
from harness.runs.executor import NOBODY, Executor, Limits, Observer, Runs, Tally
from harness.runs.failing import Endings, NotStarted, told
from harness.runs.local import LocalMachine
from harness.runs.settling import WORK, checkpoint_folder, recover, work_folder
from harness.runs.slurm import SlurmCluster
from harness.source import package_checksum
from harness.spec import RunSpec
from harness.stand_ins import mark_of
from harness.store import Contents, Following, Store, newest_outcomes, runs_of
from harness.task import RunTask


def run(chosen: SelectionRequest, how: HowToRun, assets: AssetsRequest, *, results: Path) -> int:
    """Run what is to be run, and return as :func:`execute` does."""
    code = execute(lambda: select(chosen), how, assets, results=results)
    if code in (0, 1) and not how.dry_run:
        _say_what_is_next(chosen, results)
    return code


def _say_what_is_next(chosen: SelectionRequest, results: Path) -> None:
    """Print the command that shows what came out, where anything did."""
    suite = load_suite(chosen.suite, given_catalogue(chosen.catalogue, chosen.tasks))
    if not any(record.is_ok for record in Store(results).read(suite.name).records):
        return
    options = ["--suite", chosen.suite]
    options += [] if chosen.catalogue is None else ["--catalogue", str(chosen.catalogue)]
    options += [] if results == Path(RESULTS) else ["--results", str(results)]
    if suite.evaluation.mt_bench is not None:
        judge = shlex.join(["harness", "judge", *options])
        say(f"next, to have the answers graded: {judge} --judge URL --judge-model NAME")
    for option, folders in (("--include-path", chosen.tasks.include), ("--trust-tasks", chosen.tasks.trusted)):
        options += [word for folder in folders for word in (option, folder)]
    say(f"next: {shlex.join(['harness', 'report', *options])}")


def execute(choose: Callable[[], Selection], how: HowToRun, assets: AssetsRequest, *, results: Path) -> int:
    """Run what is to be run of a selection, which is chosen again once everything is prepared.

    Return 0 when every run has an outcome, 1 when one failed, 3 when the budget ended before all were done (whatever
    else failed), 130 on interrupt.
    """
    stop_at = None if how.budget_seconds is None else time.monotonic() + how.budget_seconds
    if stop_at is not None and how.repeat:
        raise HarnessError(
            "--repeat runs everything again at each call, so no call could go on where --budget-seconds cut the last: "
            "leave one of them out"
        )
    wheels = given_wheels(assets.wheels)
    selection = choose()
    check_task_names(selection.suite.evaluation, OwnTasks(selection.tasks))
    if how.keep_weights and selection.suite.weights == "random":
        raise HarnessError(f"--keep-weights: suite '{selection.suite.name}' trains random weights, worth nothing later")
    store = Store(results.resolve())
    if selection.stand_in is not None:
        print(selection.stand_in)
    if how.dry_run:
        return _dry_run(selection, store)
    if how.log and how.where.executor == "slurm":
        raise HarnessError("--log is not of --executor slurm: its jobs tell nothing of a run before it is recorded")
    loggers = ready_loggers(how.log, store.folder, assets.offline)
    store.check_writable()
    if recovered := recover(store, model_card):
        print(f"{recovered} finished runs of a process that was ended are recorded now")
    with (
        executor(how.where, selection.suite.gpus_per_run, store.folder) as chosen,
        observer(loggers, store.folder) as watching,
    ):
        tally, num_tasks = execute_on(
            chosen,
            how,
            choose,
            store,
            stop_at=stop_at,
            offline=assets.offline,
            wheels=wheels,
            watching=watching,
        )
    if num_tasks:
        _close(store, tally, num_tasks)
    return tally.exit_code


def execute_on(
    chosen: Executor,
    how: HowToRun,
    choose: Callable[[], Selection],
    store: Store,
    *,
    stop_at: float | None,
    offline: bool,
    wheels: Sequence[Path] = (),
    watching: Observer = NOBODY,
) -> tuple[Tally, int]:
    """Do what is to be done of a selection where the executor has its machines; return how it went, and of how many.

    Raises:
        HarnessError: something cannot be prepared, predicted or stored.
    """
    selection = choose()
    environment = chosen.environment()
    environment_id = None if how.any_environment else environment.environment_id
    known = _Wanted(store, selection.suite.name, environment_id, frozenset(how.retry))
    warn(known.contents().warnings)
    wanted = _always if how.repeat else known
    to_do = _to_do(selection, wanted)
    if to_do.specs:
        if isinstance(chosen, LocalMachine):
            chosen.expect(model.architecture for model in to_do.models.values() if model.architecture is not None)
        with Display() as display:
            prepared = prepare(to_do, offline=offline, wheels=wheels, progress=display.progress)
        # A revision that was unknown until now is part of a run's identity.
        to_do = _to_do(choose(), wanted)
    if skipped := len(selection.specs) - len(to_do.specs):
        print(f"{skipped} of {len(selection.specs)} runs skipped: their outcome is recorded")
    if not how.repeat:
        to_do = _hopeful(to_do, known.endings())
        records = known.contents().records
        for sentence in ways_sentences(records, to_do.specs, environment, store, reached=_is_here(chosen)):
            print(sentence)
    if not to_do.specs:
        return Tally(()), 0
    with Display() as display:
        answers = predictions(to_do, environment, display.progress)
    warn(_too_large(answers, environment))
    tasks = [
        _task(
            spec,
            how,
            selection=to_do,
            prepared=prepared,
            store=store,
            environment=environment,
            answer=answers.get(spec.run_id, PlanAnswer()),
            offline=offline,
        )
        for _ in range(how.repeat or 1)
        for spec in to_do.specs
    ]
    if not how.repeat and _is_here(chosen):
        tasks = [known.begun(task, environment) for task in tasks]
    tasks = _that_can_be_scored(tasks)
    with Display(tasks=tasks) as display:
        limits = Limits(how.timeout_seconds, stop_at, how.max_failures)
        tried = frozenset(how.retry)
        runs = Runs(
            tasks,
            store,
            limits,
            wanted=lambda task: wanted(task.spec),
            tried=tried,
            recorded=[record for record in known.contents().records if record.ran_in(environment.environment_id)],
            card=model_card,
            observer=watching,
        )
        tally = chosen.run(runs, display)
    return tally, len(tasks)


def _is_here(chosen: Executor) -> bool:
    """Return whether runs see the results folder under its path here, where kept weights lie."""
    return isinstance(chosen, LocalMachine | SlurmCluster)


def _that_can_be_scored(tasks: Sequence[RunTask]) -> list[RunTask]:
    """Return the tasks that can be scored once they are trained, and the first of those that cannot for each reason."""
    with Display() as display:
        faults = unready(tasks, display.progress)
    kept, said = [], set()
    for task in tasks:
        fault = faults.get(task.uuid)
        if fault is None:
            kept.append(task)
        elif fault not in said:
            said.add(fault)
            kept.append(task.model_copy(update={"unready": fault}))
    if left := len(tasks) - len(kept):
        runs = "1 more run" if left == 1 else f"{left} more runs"
        warn([f"{runs} could not be scored for the same reason: not begun"])
    return kept


def _to_do(selection: Selection, wanted: Callable[[RunSpec], bool]) -> Selection:
    return replace(selection, specs=tuple(spec for spec in selection.specs if wanted(spec)))


def _hopeful(selection: Selection, endings: Endings) -> Selection:
    """Return a selection without the runs that would end as another seed's is recorded to have ended, and say so."""
    found = [NotStarted(spec, ending) for spec in selection.specs if (ending := endings.of(spec)) is not None]
    for sentence in told(found):
        say(sentence)
    left_out = {one.spec.run_id for one in found}
    return replace(selection, specs=tuple(spec for spec in selection.specs if spec.run_id not in left_out))


def _always(spec: RunSpec) -> bool:
    return True


class _Wanted:
    """Whether a run is still to be done, by the records as they are now."""

    def __init__(self, store: Store, suite: str, environment_id: str | None, retry: frozenset[str]) -> None:
        self._store = store
        self._records = Following(store, suite)
        self._environment_id = environment_id
        self._retry = retry
        self._looked_at: Contents | None = None
        self._newest: dict[str, Record] = {}

    def contents(self) -> Contents:
        """Return the suite's records as they are now."""
        return self._records.contents()

    def endings(self) -> Endings:
        """Return how recorded runs ended that every seed would end so."""
        return Endings.recorded(self.contents().records, self._environment_id, self._retry)

    def begun(self, task: RunTask, environment: Environment) -> RunTask:
        """Return a task as one that scores what is trained already, by an earlier attempt at it or by a run alike."""
        records = self.contents().records
        own = [record for record in runs_of(records, task.run_id) if record.ran_in(environment.environment_id)]
        trained = awaiting(own, self._store)
        if trained is not None:
            return finishing(task, trained, self._store)
        return from_kept(task, self._store, records, environment)

    def __call__(self, spec: RunSpec) -> bool:
        contents = self.contents()
        if contents is not self._looked_at:
            self._newest = newest_outcomes(contents.records, self._environment_id)
            self._looked_at = contents
        return answer(contents.records, spec, self._environment_id, self._retry, self._newest) is None


def _task(
    spec: RunSpec,
    how: HowToRun,
    *,
    selection: Selection,
    prepared: Prepared,
    store: Store,
    environment: Environment,
    answer: PlanAnswer,
    offline: bool,
) -> RunTask:
    identifier = uuid.uuid4().hex
    checkpoints = checkpoint_folder(store, spec.run_id, environment)
    uneven = None if spec.train is None else spec.train.cannot_share_out(environment.num_ranks)
    return RunTask(
        spec=spec,
        uuid=identifier,
        model=selection.models[spec.model_name],
        model_folder=prepared.model_folders.get(spec.model_name),
        rows_folder=prepared.rows_folder,
        mt_bench_folder=prepared.mt_bench_folder,
        own_tasks=selection.tasks,
        datasets=selection.datasets_of(spec),
        cache_folder=cache_root(),
        work_folder=work_folder(store, spec.run_id, identifier),
        keep_weights=how.keep_weights,
        checkpoint_folder=None if how.repeat else checkpoints,
        checkpoint_every=how.checkpoint_every,
        claim=None if how.repeat else spec.run_id if how.any_environment else checkpoints.name,
        offline=offline,
        run_id=spec.run_id,
        prediction=answer.prediction,
        prediction_error=answer.error,
        gpus_per_run=environment.num_ranks,
        refusal=uneven or _refusal(answer.prediction, environment),
    )


def predictions(selection: Selection, environment: Environment, progress: Progress) -> dict[str, PlanAnswer]:
    """Return what each run that trains is told to need on this device, by run id; answers are kept.

    Raises:
        HarnessError: the process that predicts cannot be started or ended early.
    """
    tasks = plan_tasks(selection, environment)
    return dict(zip(tasks, ask(list(tasks.values()), package_checksum(), progress), strict=True))


def plan_tasks(selection: Selection, environment: Environment) -> dict[str, PlanTask]:
    """Return what is asked of each run that trains, by run id."""
    return {
        spec.run_id: PlanTask(
            spec=spec,
            model=selection.models[spec.model_name],
            dataset=selection.datasets[spec.train.data],
            device=environment.device_type,
            device_name=environment.gpu_name,
            compute_capability=environment.compute_capability,
            profile=None if environment.gpu_name is None else packaged_profile(environment.gpu_name),
            num_ranks=environment.num_ranks,
            cache_folder=cache_root(),
        )
        for spec in selection.specs
        if spec.train is not None
    }


def _too_large(answers: Mapping[str, PlanAnswer], environment: Environment) -> list[str]:
    """Return a sentence when runs are told to need more than the device has."""
    predicted = [answer.prediction for answer in answers.values() if answer.prediction is not None]
    too_large = [prediction.peak_bytes for prediction in predicted if not environment.holds(prediction)]
    if not too_large:
        return []
    return [
        f"{len(too_large)} of {len(predicted)} runs are predicted to need up to {gib(max(too_large))} GiB"
        f"{_each(environment)}, more than the {memory_text(environment)} of {environment.device_name}: see harness plan"
    ]


def _refusal(prediction: Prediction | None, environment: Environment) -> str | None:
    """Return why a run is hopeless: its weights alone do not fit."""
    if prediction is None or environment.has_room_for(prediction.weights_bytes):
        return None
    return (
        f"the weights alone need {gib(prediction.weights_bytes)} GiB{_each(environment)}, more than the "
        f"{memory_text(environment)} of {environment.device_name}; the predicted peak is "
        f"{gib(prediction.peak_bytes)} GiB"
    )


def _each(environment: Environment) -> str:
    """Return where memory is needed, where several devices share a run."""
    return "" if environment.num_ranks == 1 else f" on each of {environment.num_ranks} devices"


def _dry_run(selection: Selection, store: Store) -> int:
    contents = store.read(selection.suite.name)
    warn(contents.warnings)
    rows = []
    for spec in selection.specs:
        known = answer(contents.records, spec, None)
        rows.append(
            {
                "run": spec.run_name + mark_of((spec,)),
                "id": spec.run_id[:8],
                "recorded": "yes" if known is not None else "no",
                "what is done": "nothing" if known is not None else way_of(contents.records, spec, None, store),
            }
        )
    print_table(rows)
    runs = "1 run" if len(rows) == 1 else f"{len(rows)} runs"
    print(f"\n{runs} of suite '{selection.suite.name}' (version {selection.suite.version})")
    return 0


def _close(store: Store, tally: Tally, num_tasks: int) -> None:
    counts = Counter(record.status for record in tally.records)
    what = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "nothing run"
    print(f"{what}; records in {store.folder}")
    if unproven := counts["unproven"]:
        print(f"the proof of {unproven} run{'s' * (unproven > 1)} fails: see harness show, or --retry unproven")
    if tally.interrupted:
        print(f"interrupted after {len(tally.records)} of {num_tasks} runs; the same command does the rest")
    if tally.left_by_budget is not None:
        runs = "1 run is" if tally.left_by_budget == 1 else f"{tally.left_by_budget} runs are"
        print(f"the budget has ended: {runs} still to do; the same command goes on with the rest")
    for sentence in told(tally.not_started):
        say(sentence)
    if tally.left_by_failures is not None:
        runs = "1 run is" if tally.left_by_failures == 1 else f"{tally.left_by_failures} runs are"
        print(f"stopped by --max-failures: {runs} still to do; the same command goes on with the rest")
    if tally.num_by_others:
        print(f"{tally.num_by_others} of {num_tasks} runs were done by other processes meanwhile")
    with contextlib.suppress(OSError):  # not empty: other processes are at work
        (store.folder / WORK).rmdir()
