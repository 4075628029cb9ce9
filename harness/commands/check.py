"""``harness check``: what is wrong with, or missing for, a suite, a catalogue, a task or a method, all at once."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

from harness.assets.cache import cache_root
from harness.catalogue.tasks import TaskPlaces
from harness.commands._check_suite import Found, check_catalogue, check_suite, is_suite
from harness.commands._check_text import say_checks, say_found
from harness.commands._selection import given_catalogue
from harness.commands.requests import SelectionRequest
from harness.errors import HarnessError, near_miss
from harness.evaluation.own_tasks import OwnTasks, check_places
from harness.method import METHODS
from harness.schema import schema_text
from harness.suite import suite_names

YAML = (".yaml", ".yml")


def check(chosen: SelectionRequest, *, in_json: bool = False) -> int:
    """Print what is found; return 1 where something is wrong.

    Args:
        chosen: Its ``suite`` is what is checked: a file of a suite, a catalogue or a task, a packaged suite, a label
            or a method.
        in_json: As JSON.

    Raises:
        HarnessError: there is no such file or name.
    """
    what = chosen.suite
    if what.endswith((".toml", *YAML)):
        file = Path(what).expanduser()
        if not file.is_file():
            kind = "a folder" if file.is_dir() else "not there"
            raise HarnessError(f"check {what}: the file is {kind}")
        if what.endswith(YAML):
            return say_found(_check_tasks(file, chosen), in_json=in_json)
        if is_suite(file):
            return say_found(check_suite(replace(chosen, suite=str(file))), in_json=in_json)
        return say_found(check_catalogue(file.resolve()), in_json=in_json)
    if what in suite_names():
        return say_found(check_suite(chosen), in_json=in_json)
    return _check_method(chosen, in_json=in_json)


def print_schema(kind: Literal["suite", "catalogue"]) -> int:
    """Print the JSON schema of a kind of file, plug-ins' settings in it."""
    print(schema_text(kind), end="")
    return 0


def _check_method(chosen: SelectionRequest, *, in_json: bool) -> int:
    catalogue = given_catalogue(chosen.catalogue, chosen.tasks)
    name = chosen.suite
    kind = "label" if name in catalogue.labels else "method"
    if name not in (known := {*catalogue.labels, *METHODS.names(), *METHODS.broken()}):
        hint = near_miss(name, [*known, *suite_names()])
        raise HarnessError(f"there is no suite, label or method '{name}'{hint} (a file ends in .toml, .yaml or .yml)")
    if name in METHODS.broken():
        return say_found(Found(kind, name, [METHODS.broken()[name]]), in_json=in_json)
    from harness.checking import check_method  # torch, which the rest works without

    return say_checks(kind, name, check_method(name, catalogue=catalogue), in_json=in_json)


def _check_tasks(file: Path, chosen: SelectionRequest) -> Found:
    """Return what is wrong with the tasks that a YAML file defines: their rows are read, their first ones rendered."""
    found = Found("tasks", str(file))
    folder = file.resolve().parent
    folders = (folder, *(Path(place).expanduser().resolve() for place in chosen.tasks.include))
    trusted = tuple(Path(place).expanduser().resolve() for place in chosen.tasks.trusted)
    places = TaskPlaces().with_folders(folders, trusted)
    found.of(lambda: check_places(places))
    if found.faults:
        return found
    own = OwnTasks(places)
    names = [
        entry.name for entry in own.names() if entry.file is not None and Path(entry.file).resolve() == file.resolve()
    ]
    found.add(fault for fault in own.faults() if str(file.resolve()) in fault or str(file) in fault)
    if not names and not found.faults:
        found.add([f"{file}: defines no task, group or tag: it lacks the key 'task'"])
    for name in names:
        for leaf in found.of(lambda name=name: own.expand(name)) or ():  # type: ignore[misc]
            found.of(lambda leaf=leaf: _build(own, leaf, found))  # type: ignore[misc]
        found.runs.append(name)
    return found


def _build(own: OwnTasks, name: str, found: Found) -> None:
    task = own.task(name)
    if own.needs_network([name]):
        found.missing.append(f"the rows of task '{name}', which are of the hub and are read when it is prepared")
        return
    from harness.evaluation.own_loading import load_own  # lm-eval, which the rest works without
    from harness.evaluation.tasks import no_progress_bars

    logging.disable(logging.WARNING)  # lm-eval's, of what its own command line takes
    try:
        with no_progress_bars():
            load_own(task, datasets_cache=cache_root() / "datasets", offline=True)
    finally:
        logging.disable(logging.NOTSET)
