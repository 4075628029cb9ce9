"""The rows of ``harness list``: everything that there is of one kind, a row each."""

from __future__ import annotations

from typing import Any

from harness.catalogue.datasets import DatasetSpec, fields_of
from harness.catalogue.devices import load_devices
from harness.catalogue.models import BaseModelSpec
from harness.catalogue.resolved import Catalogue
from harness.catalogue.tasks import TaskPlaces
from harness.errors import HarnessError
from harness.evaluation.own_tasks import OwnTasks, check_places
from harness.expansion import load_suite
from harness.method import METHODS
from harness.suite import suite_names


def methods(catalogue: Catalogue) -> list[dict[str, Any]]:
    """Return the labels, and methods that have none."""
    rows = []
    named = catalogue.labels
    for label, entry in named.items():
        sources = entry.sources()
        settings = {key: {"value": value, "source": sources[key]} for key, value in entry.values().items()}
        rows.append(
            {
                "label": label,
                "method": entry.method,
                "alias_of": entry.alias_of,
                "summary": entry.summary,
                "settings": settings,
            }
        )
    for name in METHODS.names():
        if all(entry.method != name for entry in named.values()):
            rows.append(
                {"label": name, "method": name, "alias_of": None, "summary": METHODS.get(name).summary, "settings": {}}
            )
    return rows


def models(catalogue: Catalogue) -> list[dict[str, Any]]:
    """Return the base models."""
    return [
        {
            "model": name,
            "source": source_of_model(spec),
            "architecture": spec.architecture or "as config.json says",
            "licence": licence_of(spec),
            "summary": spec.summary,
        }
        for name, spec in catalogue.models.items()
    ]


def licence_of(spec: BaseModelSpec) -> str:
    """Return a model's licence, with whether it has to be accepted first."""
    return f"{spec.licence} (gated)" if spec.gated else spec.licence


def source_of_model(spec: BaseModelSpec) -> str:
    """Return where a model's weights come from."""
    if spec.packaged:
        return f"packaged:{spec.packaged}"
    if spec.folder:
        return f"folder:{spec.folder}"
    return f"hub:{spec.hub_id}" if spec.hub_id else "shape alone"


def datasets(catalogue: Catalogue) -> list[dict[str, Any]]:
    """Return the data sets."""
    return [
        {
            "dataset": name,
            "source": origin_of(spec),
            **rows_of(spec),
            "rows": spec.num_rows,
            "licence": spec.licence,
            "summary": spec.summary,
        }
        for name, spec in catalogue.datasets.items()
    ]


def rows_of(spec: DatasetSpec) -> dict[str, Any]:
    """Return the layout of a data set, and its fields, each with what its column is called if not the same."""
    called = {field: spec.columns.get(field, field) for field in fields_of(spec.layout)}
    return {
        "layout": spec.layout or "found in the file",
        "columns": [field if theirs == field else f"{field} = {theirs}" for field, theirs in called.items()],
    }


def origin_of(spec: DatasetSpec) -> str:
    """Return where rows come from, of which kind a data set has one; a local file stands in for it."""
    if spec.file is not None:
        return f"file:{spec.file}"
    kinds = {"packaged": spec.packaged, "drawn": spec.drawn, "github": spec.repository, "hub": spec.hub_id}
    return next(f"{kind}:{value}" for kind, value in kinds.items() if value is not None)


def tera(flops: float | None) -> float | None:
    """Return FLOP/s in TFLOP/s."""
    return None if flops is None else flops / 1e12


def devices(_: Catalogue) -> list[dict[str, Any]]:
    """Return the devices, in TFLOP/s and GB."""
    return [
        {
            "device": name,
            "reported_as": list(device.names),
            "compute_capability": device.compute_capability,
            "bf16_tflops": tera(device.bf16_flops),
            "tf32_tflops": tera(device.tf32_flops),
            "fp32_tflops": tera(device.fp32_flops),
            "memory_gb": device.memory_gb,
            "source": device.source,
        }
        for name, device in load_devices().items()
    ]


def suites(_: Catalogue) -> list[dict[str, Any]]:
    """Return the packaged suites."""
    found = [load_suite(name) for name in suite_names()]
    return [
        {
            "suite": suite.name,
            "version": suite.version,
            "protocol": suite.protocol,
            "models": list(suite.models),
            "labels": list(suite.labels),
            "seeds": list(suite.seeds),
            "description": suite.description,
        }
        for suite in found
    ]


def own_tasks(places: TaskPlaces) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for each task, group and tag of the user's own that can be asked for, and why others cannot.

    Raises:
        HarnessError: a folder is not there.
    """
    check_places(places)
    own = OwnTasks(places)
    rows: list[dict[str, Any]] = []
    faults = own.faults()
    for entry in own.names():
        said = {} if entry.table is None else entry.table.values
        try:
            for name in own.expand(entry.name):
                if name in own:
                    own.task(name)
        except HarnessError as error:
            faults.append(str(error))
            continue
        rows.append(
            {
                "benchmark": entry.name,
                "suite": f"your own {entry.kind}",
                "rows": str(said.get("dataset_path", "")) if entry.kind == "task" else None,
                "num_fewshot": said.get("num_fewshot"),
                "limit": None,
            }
        )
    return rows, faults


def task_faults(places: TaskPlaces) -> list[str]:
    """Return why files and tasks of the user's own cannot be scored, in sentences."""
    return list(dict.fromkeys(own_tasks(places)[1]))


def task_rows(places: TaskPlaces) -> list[dict[str, Any]]:
    """Return a row for each task of the user's own, and for each of each packaged suite."""
    rows = own_tasks(places)[0]
    for name in suite_names():
        evaluation = load_suite(name).evaluation
        rows.extend(
            {
                "benchmark": task,
                "suite": name,
                "rows": evaluation.rows,
                "num_fewshot": evaluation.num_fewshot,
                "limit": evaluation.limit,
            }
            for task in evaluation.tasks
        )
        if evaluation.mt_bench is not None:
            rows.append(
                {
                    "benchmark": "mt_bench",
                    "suite": name,
                    "rows": evaluation.mt_bench.data,
                    "num_fewshot": None,
                    "limit": evaluation.limit,
                }
            )
    return rows


def benchmarks(catalogue: Catalogue) -> list[dict[str, Any]]:
    """Return the tasks of the user's own, and those of the packaged suites, each with the suites that ask for it."""
    suites: dict[str, list[str]] = {}
    for row in task_rows(catalogue.tasks):
        suites.setdefault(row["benchmark"], []).append(row["suite"])
    return [{"benchmark": task, "suites": names} for task, names in suites.items()]
