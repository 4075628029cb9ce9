"""``harness evaluate``: kept weights are scored without training: a record of its own beside the run's.

Of a run that trained and could not be scored, and without tasks, the run's own: what its suite asked for is scored, and
the new record takes over what the run had measured.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.assets.cache import cache_root
from harness.beside import within
from harness.catalogue.models import HUB, USUAL_PLACES, BaseModelSpec
from harness.catalogue.packaged_tasks import check_packaged_rows
from harness.catalogue.resolved import Catalogue
from harness.commands._assets import convert
from harness.commands._executor import devices_for
from harness.commands._find import find_records
from harness.commands._finishing import awaiting, finishing
from harness.commands._output import Display, say_score
from harness.commands._selection import existing, given_catalogue, given_wheels, own_sources
from harness.commands.requests import NO_TASKS, AssetsRequest, TasksRequest
from harness.errors import HarnessError
from harness.evaluation.task_names import check_task_names
from harness.expansion import catalogue_for, load_suite
from harness.kept import ADAPTER, BASE, can_be_scored
from harness.preparing.assets import prepare_model, resolve_model, resolved_datasets, source_identities
from harness.preparing.runs import prepare_scoring, questions_of
from harness.record import OUTCOMES, Record
from harness.record_environment import Environment
from harness.report.pages.model_card import model_card
from harness.runs.executor import Runs
from harness.runs.local import LocalMachine
from harness.runs.settling import checkpoint_folder, work_folder
from harness.settings import EvaluationSettings
from harness.spec import EVALUATION_ROLES, RunSpec, is_scored
from harness.store import Store
from harness.task import RunTask


def evaluate(
    run: str,
    tasks: Sequence[str],
    assets: AssetsRequest,
    *,
    results: Path,
    suite: str | None = None,
    limit: int | None = None,
    catalogue: Path | None = None,
    model: str | None = None,
    own: TasksRequest = NO_TASKS,
    gpus_per_run: int | None = None,
) -> int:
    """Evaluate the newest kept weights of a run, or finish a run that trained and could not be scored.

    Args:
        run: As ``harness.run_names`` has it.
        tasks: To score; none: what the run's own suite asked for and what was not scored.
        assets: How what is needed may be had.
        results: Where the records are.
        suite: Only runs of this suite; None: of any. The models and tasks that its file defines are known.
        limit: First items of each task.
        catalogue: A file of the user's with the base model.
        model: ``NAME=PATH``, the folder that an adapter was trained on.
        own: Where tasks of the user's own are.
        gpus_per_run: Devices that share the evaluation; None: as many as the run had.
    """
    store = Store(results.resolve())
    found = find_records(results, run, suite)
    record = _with_weights(found, store) if tasks else _unscored(found, store, limit)
    weights = within(store.folder, str(record.weights))
    adapter = weights / ADAPTER
    wrapped = adapter.is_dir()
    if wrapped:
        _check_adapter(adapter)
    elif model is not None:
        raise HarnessError(f"--model is for the base of an adapter, and the weights of {record.called} are whole")
    settings = _settings(record, tasks, limit)
    known = _known(suite, catalogue, own)
    sources = own_sources(settings, known.tasks, record.called)
    if not known.tasks.any:
        check_task_names(settings)
        check_packaged_rows(settings, record.called)
    store.check_writable()
    wheels = given_wheels(assets.wheels)
    spec = _model(record, known, weights)
    asked = record.spec.model_copy(
        update={"evaluation": settings, "sources": _sources_for(record.spec.sources, sources)}
    )
    datasets = resolved_datasets(known.datasets)
    if not tasks:
        _check_sources(record.spec, source_identities(datasets), sources)
    wanted = {name: datasets[name] for name in questions_of([asked])}
    base = _base_of(record, spec, weights, model) if wrapped else None
    with Display() as display:
        how: Any = {"offline": assets.offline, "wheels": wheels, "progress": display.progress}
        places = prepare_scoring([asked], wanted, **how)
        folder = weights if base is None else prepare_model(base, convert=convert, **how)
    (device,) = devices_for(gpus_per_run or record.environment.num_ranks)
    environment = device.environment
    identifier = uuid.uuid4().hex
    task = RunTask(
        spec=asked,
        uuid=identifier,
        model=spec,
        model_folder=folder,
        rows_folder=places.rows_folder,
        mt_bench_folder=places.mt_bench_folder,
        own_tasks=known.tasks,
        datasets=wanted,
        cache_folder=cache_root(),
        work_folder=work_folder(store, record.run_id, identifier),
        offline=assets.offline,
        gpus_per_run=environment.num_ranks,
        run_id=record.run_id,
        of=record.uuid if tasks else None,
        adapter_folder=adapter if wrapped else None,
    )
    if not tasks:
        task = _finishing_task(task, record, store, environment)
    with Display(1) as display:
        tally = LocalMachine([device]).run(Runs([task], store, card=model_card), display)
    for kept in tally.records:  # none where it was stopped before it began
        for score in kept.scores:
            say_score(score)
    return tally.exit_code


def _settings(record: Record, tasks: Sequence[str], limit: int | None) -> EvaluationSettings:
    """Return what is scored: the tasks on the run's rows, or without any what the run's suite asked for."""
    settings = record.evaluation_settings
    if not tasks:
        return settings
    if settings.rows is None:
        raise HarnessError(
            f"suite '{record.suite}' scores nothing, so it does not say from which rows: set rows in its "
            "[evaluation] and run it again"
        )
    changes = {"tasks": tuple(tasks), "subtasks": None, "limit": limit or settings.limit, "mt_bench": None}
    return settings.model_copy(update=changes)


def _sources_for(recorded: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return the sources of a run whose weights are scored on something else."""
    kept = {role: source for role, source in recorded.items() if not is_scored(role) or role in EVALUATION_ROLES}
    return kept | dict(own)


def _check_sources(spec: RunSpec, known: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Refuse to finish a run on other rows, questions or tasks than it asked for."""
    asked = {role: source for role, source in spec.sources.items() if is_scored(role) and role not in EVALUATION_ROLES}
    for role in sorted(asked.keys() | own.keys()):
        if asked.get(role) != own.get(role):
            raise HarnessError(
                f"run {spec.run_id} asked for {role} {asked.get(role, 'of lm-eval')}, and here that is "
                f"{own.get(role, 'not given')}: the command that ran it, with its --include-path or its suite's "
                "[tasks] as --catalogue, finishes it"
            )
    bench = spec.evaluation.mt_bench
    names = {"evaluation": spec.evaluation.rows, "mt_bench": None if bench is None else bench.data}
    for role, name in names.items():
        if name is not None and known[name] != spec.sources.get(role):
            raise HarnessError(
                f"run {spec.run_name} ({spec.run_id}) asked for {name} {spec.sources.get(role)}, and here that is "
                f"{known[name]}: the command that ran it, with its --data, finishes it"
            )


def _finishing_task(task: RunTask, record: Record, store: Store, environment: Environment) -> RunTask:
    """Return the task that scores what a run had trained and takes over what it measured.

    Raises:
        HarnessError: that was in another environment, whose figures have no scores from here beside them.
    """
    if not record.ran_in(environment.environment_id):
        raise HarnessError(
            f"{record.called} was trained in another environment ({record.environment_id[:8]}, not "
            f"{environment.environment_id[:8]}): finish it there, or name tasks with --benchmark, whose scores are "
            "then an evaluation's own"
        )
    checkpoints = checkpoint_folder(store, record.run_id, environment.environment_id)
    changes = {"claim": checkpoints.name, "checkpoint_folder": checkpoints}
    return finishing(task, record, store).model_copy(update=changes)


def _with_weights(found: Sequence[Record], store: Store) -> Record:
    """Return the newest of a run's records whose weights were kept.

    Raises:
        HarnessError: there is none, or they are no longer there.
    """
    kept = [record for record in found if record.weights is not None]
    if not kept:
        newest = found[-1].status
        how = "--keep-weights" + (f" --retry {newest}" if newest in OUTCOMES else "")
        raise HarnessError(f"the weights of {found[-1].called} were not kept; run it again with {how}")
    weights = within(store.folder, str(kept[-1].weights))
    if not can_be_scored(weights) and not (weights / ADAPTER).is_dir():  # of an adapter more can be said
        raise HarnessError(f"the weights of {kept[-1].called} are no longer in {weights}")
    return kept[-1]


def _unscored(found: Sequence[Record], store: Store, limit: int | None) -> Record:
    """Return the run among a run's records that trained and could not be scored.

    Raises:
        HarnessError: there is none, or a limit is given, which the suite's own question has already.
    """
    if limit is not None:
        raise HarnessError("--limit goes with --benchmark: without it a run is scored as its suite asks")
    record = awaiting(found, store)
    if record is None:
        called = found[-1].called
        if any(one.is_run and (one.is_ok or one.is_unproven) for one in found):
            raise HarnessError(f"{called} is scored as its suite asks: name a task with --benchmark")
        raise HarnessError(f"{called} has no trained weights that wait to be scored: run it again")
    return record


def _known(suite: str | None, catalogue: Path | None, own: TasksRequest) -> Catalogue:
    """Return what names stand for: the catalogue's, and those of a suite's file where one is given.

    Raises:
        HarnessError: a file cannot be read, or is not valid.
    """
    known = given_catalogue(catalogue, own)
    if suite is None or not suite.endswith(".toml"):
        return known
    return catalogue_for(load_suite(suite, known), suite, known)


def _model(record: Record, catalogue: Catalogue, weights: Path) -> BaseModelSpec:
    """Return the base model of a run, its parts where the run had them.

    Raises:
        HarnessError: no catalogue that is given holds it, and the record does not say where it is.
    """
    known, name, recorded = catalogue.models, record.model_name, record.spec.model
    source, parts = (
        str(recorded.get("source")),
        {part: recorded.get(part) or place for part, place in USUAL_PLACES.items()},
    )
    if recorded.get("final_norm") == "":
        parts["final_norm"] = ""
    if name in known:
        return known[name].model_copy(update=parts)
    if source == "folder":  # of a name that --model gave
        return BaseModelSpec(name=name, folder=_recorded_folder(weights) or weights, **parts)
    if source.startswith(HUB):
        return BaseModelSpec(name=name, hub_id=source.removeprefix(HUB), revision=recorded.get("revision"), **parts)
    raise HarnessError(
        f"{record.called} is of model '{name}', which is none of the packaged ones: name the file that defines "
        f"it in [base_models.{name}] with --catalogue"
    )


def _check_adapter(folder: Path) -> None:
    """Refuse an adapter whose weights are not safetensors: in their absence peft would load a pickle."""
    import safetensors

    try:
        with safetensors.safe_open(folder / "adapter_model.safetensors", framework="numpy") as weights:
            weights.keys()
    except (OSError, safetensors.SafetensorError) as error:
        raise HarnessError(
            f"{folder}: is no adapter in safetensors ({error}); run it again with --keep-weights"
        ) from error


def _base_of(record: Record, spec: BaseModelSpec, weights: Path, given: str | None) -> BaseModelSpec:
    """Return the base model under an adapter, checked to be the one that was trained on.

    That is a folder that is named, else the one that it was trained on, else what the name stands for.

    Raises:
        HarnessError: it is another, or not there.
    """
    how = f"name the folder that holds the one it was trained on with --model {spec.name}=PATH"
    folder = None
    if given is not None:
        name, equals, path = given.partition("=")
        if not equals or name != spec.name:
            raise HarnessError(f"--model {given}: expected {spec.name}=PATH, the base of {record.called}")
        folder = existing(path, f"--model {given}")
    elif record.spec.model.get("source") == "folder":
        folder = _recorded_folder(weights) or spec.folder
        if folder is None or not folder.is_dir():
            gone = "a local folder" if folder is None else f"{folder}, which is no longer there"
            raise HarnessError(f"{record.called} trained an adapter on {gone}: {how}")
    resolved = resolve_model(spec, folder)
    if resolved.identity() != record.spec.model:
        raise HarnessError(
            f"{record.called} trained an adapter on {weights_in_words(record.spec.model)}, and "
            f"{folder or spec.name} is {weights_in_words(resolved.identity())}: {how}"
        )
    return resolved


def _recorded_folder(weights: Path) -> Path | None:
    """Return where the files of an adapter's base lay when it was trained, as its kept weights say."""
    try:
        folder = json.loads((weights / BASE).read_text(encoding="utf-8"))["folder"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return Path(folder) if isinstance(folder, str) and Path(folder).is_absolute() else None


def weights_in_words(identity: Mapping[str, str | None]) -> str:
    """Return what identifies the weights of a base model in words."""
    source, checksum, revision = (identity.get(key) for key in ("source", "checksum", "revision"))
    where = "a local folder" if source == "folder" else f"{source}"
    return f"{where} with checksum {checksum[:12]}" if checksum else f"{where} at revision {revision or 'unknown'}"
