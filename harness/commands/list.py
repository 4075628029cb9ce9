"""``harness list``: methods, models, data sets, suites, benchmarks, devices. Works where torch is absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.catalogue.datasets import DatasetSpec
from harness.catalogue.devices import load_devices
from harness.catalogue.models import BaseModelSpec
from harness.catalogue.resolved import Catalogue
from harness.commands._output import print_table, warn
from harness.commands._selection import given_catalogue
from harness.expansion import load_suite
from harness.method import METHODS
from harness.suite import suite_names


def list_kind(what: str, *, catalogue: Path | None = None, in_json: bool = False) -> int:
    """Print what there is of one kind, with what a catalogue adds."""
    kinds = {
        "methods": _methods,
        "models": _models,
        "datasets": _datasets,
        "suites": _suites,
        "benchmarks": _benchmarks,
        "devices": _devices,
    }
    rows = kinds[what](given_catalogue(catalogue))
    if in_json:
        print(json.dumps(rows, indent=2))
    else:
        print_table([{key: _plain(value) for key, value in row.items() if key != "settings"} for row in rows])
    if what == "methods":
        warn(METHODS.broken().values())
    return 0


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(part) for part in value)
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)


def _methods(catalogue: Catalogue) -> list[dict[str, Any]]:
    rows = []
    named = catalogue.labels
    for label, entry in named.items():
        sources = entry.sources()
        settings = {key: {"value": value, "source": sources[key]} for key, value in entry.values().items()}
        rows.append({"label": label, "method": entry.method, "summary": entry.summary, "settings": settings})
    for name in METHODS.names():
        if all(entry.method != name for entry in named.values()):
            rows.append({"label": name, "method": name, "summary": METHODS.get(name).summary, "settings": {}})
    return rows


def _models(catalogue: Catalogue) -> list[dict[str, Any]]:
    return [
        {
            "model": name,
            "source": _source(spec),
            "architecture": spec.architecture or "as config.json says",
            "licence": f"{spec.licence} (gated)" if spec.gated else spec.licence,
            "summary": spec.summary,
        }
        for name, spec in catalogue.models.items()
    ]


def _source(spec: BaseModelSpec) -> str:
    if spec.packaged:
        return f"packaged:{spec.packaged}"
    if spec.folder:
        return f"folder:{spec.folder}"
    return f"hub:{spec.hub_id}" if spec.hub_id else "shape alone"


def _datasets(catalogue: Catalogue) -> list[dict[str, Any]]:
    return [
        {
            "dataset": name,
            "source": _origin(spec),
            "rows": spec.num_rows,
            "licence": spec.licence,
            "summary": spec.summary,
        }
        for name, spec in catalogue.datasets.items()
    ]


def _origin(spec: DatasetSpec) -> str:
    """Return where rows come from, of which kind a data set has one; a local file stands in for it."""
    if spec.file is not None:
        return f"file:{spec.file}"
    kinds = {"packaged": spec.packaged, "drawn": spec.drawn, "github": spec.repository, "hub": spec.hub_id}
    return next(f"{kind}:{value}" for kind, value in kinds.items() if value is not None)


def _devices(_: Catalogue) -> list[dict[str, Any]]:
    def tera(flops: float | None) -> float | None:
        return None if flops is None else flops / 1e12

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


def _suites(_: Catalogue) -> list[dict[str, Any]]:
    suites = [load_suite(name) for name in suite_names()]
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
        for suite in suites
    ]


def _benchmarks(_: Catalogue) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
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
