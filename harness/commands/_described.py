"""One entry of ``harness list`` as facts, each with its name, and the tables that stand below them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.catalogue.devices import find_device, load_devices
from harness.catalogue.resolved import Catalogue
from harness.commands._listed import licence_of, origin_of, rows_of, source_of_model, task_rows, tera
from harness.errors import HarnessError, near_miss
from harness.expansion import load_suite
from harness.method import METHODS
from harness.suite import Suite, labels_of, suite_names

Facts = dict[str, Any]
Rows = list[dict[str, str]]


def described(kind: str, name: str, catalogue: Catalogue) -> tuple[Facts, Rows]:
    """Return what there is to say of one entry: facts by their names, and a table.

    Raises:
        HarnessError: there is no such entry; the sentence holds a near miss.
    """
    return {
        "methods": _method,
        "models": _model,
        "datasets": _dataset,
        "suites": _suite,
        "benchmarks": _benchmark,
        "devices": _device,
    }[kind](name, catalogue)


def plain(value: Any) -> str:
    """Return a value in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {plain(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return "" if value is None else str(value)


def _method(name: str, catalogue: Catalogue) -> tuple[Facts, Rows]:
    entry = catalogue.labels.get(name)
    if entry is None:
        if name not in METHODS.names():
            known = (*catalogue.labels, *METHODS.names())
            raise HarnessError(f"there is no label or method '{name}'{near_miss(name, known)}")
        return {"label": name, "method": name, "summary": METHODS.get(name).summary}, []
    facts = {"label": name, "method": entry.method, "alias of": entry.alias_of, "summary": entry.summary}
    sources = entry.sources()
    rows = [{"setting": key, "value": plain(value), "source": sources[key]} for key, value in entry.values().items()]
    return facts, rows


def _model(name: str, catalogue: Catalogue) -> tuple[Facts, Rows]:
    spec = catalogue.model(name)
    known = spec.model_dump(
        mode="json", exclude={"summary", "licence", "gated", "name", "packaged", "folder", "hub_id"}
    )
    facts = {"model": name, "summary": spec.summary, "source": source_of_model(spec), "licence": licence_of(spec)}
    return facts | {key.replace("_", " "): value for key, value in known.items()} | _used_by("models", name), []


def _dataset(name: str, catalogue: Catalogue) -> tuple[Facts, Rows]:
    spec = catalogue.dataset(name)
    known = spec.model_dump(
        mode="json", exclude={"summary", "name", "packaged", "drawn", "repository", "hub_id", "file", "source"}
    )
    facts = {"dataset": name, "summary": spec.summary, "from": origin_of(spec), "public source": spec.source}
    known |= rows_of(spec)
    return facts | {key.replace("_", " "): value for key, value in known.items()} | _used_by("data", name), []


def _device(name: str, _: Catalogue) -> tuple[Facts, Rows]:
    device = find_device(name, load_devices())
    return {
        "device": device.name,
        "summary": device.summary,
        "reported as": device.names,
        "compute capability": device.compute_capability,
        "memory": f"{device.memory_gb:g} GB",
        "bf16": _rate(device.bf16_flops),
        "tf32": _rate(device.tf32_flops),
        "fp32": _rate(device.fp32_flops),
        "note": device.note,
        "source": device.source,
    }, []


def _rate(flops: float | None) -> str | None:
    return None if flops is None else f"{tera(flops):g} TFLOP/s, dense"


def _benchmark(name: str, catalogue: Catalogue) -> tuple[Facts, Rows]:
    rows = task_rows(catalogue.tasks)
    found = [row for row in rows if row["benchmark"] == name]
    if not found:
        raise HarnessError(
            f"no packaged suite has a task '{name}'{near_miss(name, {row['benchmark'] for row in rows})}"
        )
    shown = [{key: plain(row[key]) for key in ("suite", "rows", "num_fewshot", "limit")} for row in found]
    return {"benchmark": name, "suites": [row["suite"] for row in found]}, shown


def _suite(name: str, catalogue: Catalogue) -> tuple[Facts, Rows]:
    suite = load_suite(name, catalogue)
    evaluation = suite.evaluation
    labels = {model: labels_of(suite, model) for model in suite.models}
    asked = evaluation.model_dump(mode="json", exclude_none=True, exclude={"tasks", "mt_bench"})
    facts: Facts = {
        "suite": suite.name,
        "version": suite.version,
        "protocol": suite.protocol,
        "description": suite.description,
        "note": " ".join(suite.notes),
        "models": suite.models,
        "labels": suite.labels,
        "seeds": suite.seeds,
        "label and model": f"{sum(map(len, labels.values()))} pairs, sweeps counted, each for every seed if it trains",
        "tasks": evaluation.tasks or "none",
        "evaluation": asked if evaluation.tasks else None,
        "MT-Bench": None if evaluation.mt_bench is None else evaluation.mt_bench.model_dump(exclude_none=True),
        "training": suite.train,
        "devices of a run": suite.gpus_per_run if suite.gpus_per_run > 1 else None,
        "weights": suite.weights if suite.weights != "pretrained" else None,
        "learning rates": None if suite.tuned is None else f"tuned, in {suite.tuned}",
        "needs": _needs(suite, catalogue),
    }
    own = [{"label": label, "settings": plain(settings)} for label, settings in suite.settings.items()]
    own += [{"label": label, "settings": f"sweep: {plain(points)}"} for label, points in suite.sweep.items()]
    return facts, own


def _needs(suite: Suite, catalogue: Catalogue) -> list[str]:
    """Return where a suite's models and data come from."""
    known = catalogue.with_entries(suite, suite.name, may_redefine_labels=True)
    models = [known.model(name) for name in suite.models]
    needs = [f"{spec.name} ({source_of_model(spec)}{', gated' * spec.gated})" for spec in models]
    return needs + [f"{name} ({origin_of(known.dataset(name))})" for name in data_of(suite)]


def data_of(suite: Suite) -> list[str]:
    """Return the data sets that a suite trains on, calibrates on or asks questions from."""
    named = [suite.train.get("data"), *(settings.get("data") for settings in suite.settings.values())]
    named += [part.data for part in (suite.calibration, suite.general, suite.evaluation.mt_bench) if part is not None]
    return list(dict.fromkeys(str(name) for name in named if name is not None))


def _used_by(what: str, name: str) -> Facts:
    suites = [load_suite(suite) for suite in suite_names()]
    return {"suites": [one.name for one in suites if name in (one.models if what == "models" else data_of(one))]}
