"""``harness list``: methods, models, data sets, suites, benchmarks, devices. Works where torch is absent.

A line an entry; with a name everything that there is to say of it. JSON says everything of all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.commands import _listed as listings
from harness.commands._described import described, plain
from harness.commands._output import note, print_table, warn
from harness.commands._selection import given_catalogue
from harness.commands.requests import NO_TASKS, TasksRequest
from harness.method import METHODS
from harness.printable import as_json

SHORT: Mapping[str, tuple[str, ...]] = {
    "methods": ("label", "method", "summary"),
    "models": ("model", "licence", "summary"),
    "datasets": ("dataset", "layout", "rows", "summary"),
    "suites": ("suite", "version", "description"),
    "benchmarks": ("benchmark", "suites"),
    "devices": ("device", "memory_gb", "bf16_tflops", "tf32_tflops", "fp32_tflops"),
}
"""What stands in the line of an entry."""


def list_kind(
    what: str,
    name: str | None = None,
    *,
    catalogue: Path | None = None,
    tasks: TasksRequest = NO_TASKS,
    in_json: bool = False,
) -> int:
    """Print what there is of one kind, with what a catalogue adds; or all that there is to say of one entry.

    Raises:
        HarnessError: there is no entry of that name.
    """
    known = given_catalogue(catalogue, tasks)
    if name is not None:
        facts, rows = described(what, name, known)
        if in_json:
            print(as_json({**facts, "rows": rows}))
            return 0
        print_table([{"what": key, "value": text} for key, value in facts.items() if (text := plain(value))])
        if rows:
            print()
            print_table(rows)
        return 0
    entries = {
        "methods": listings.methods,
        "models": listings.models,
        "datasets": listings.datasets,
        "suites": listings.suites,
        "benchmarks": listings.benchmarks,
        "devices": listings.devices,
    }[what](known)
    if in_json:
        print(json.dumps(listings.task_rows(known.tasks) if what == "benchmarks" else entries, indent=2))
    else:
        print_table([_short(what, entry) for entry in entries])
        print()
        note(f"harness list {what} NAME says the rest of one of them.")
    if what == "methods":
        warn(METHODS.broken().values())
    if what == "benchmarks":
        warn(listings.task_faults(known.tasks))
    return 0


def _short(what: str, entry: Mapping[str, Any]) -> dict[str, str]:
    cells = {key: plain(entry[key]) for key in SHORT[what]}
    if (alias := entry.get("alias_of")) is not None:
        cells["summary"] = f"alias of {alias}"
    return cells
