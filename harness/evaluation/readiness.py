"""Whether runs can be scored, found out before they train: a process that is told tasks and answers with sentences.

It builds what an evaluation builds, of each of lm-eval's tasks the first few items: the definition, the rows, the
shots, and whether the model's length leaves room. A process of its own, as lm-eval's imports and rows would be in every
figure of memory that a run measures.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from lm_eval.api.task import Task
from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length
from pydantic import TypeAdapter

from harness.assets.mt_bench import load_mt_bench
from harness.conversation import find_template
from harness.errors import HarnessError
from harness.evaluation.groups import expand_tasks
from harness.evaluation.own_tasks import OwnTasks, check_places
from harness.evaluation.scoring import headline_of
from harness.evaluation.tasks import load_tasks, no_progress_bars
from harness.evaluation.text_generation import DEFAULT_GENERATED_TOKENS
from harness.settings import EvaluationSettings
from harness.task import RunTask
from harness.tensors.loading import load_tokenizer, model_config
from harness.tensors.seeding import fenced

ITEMS = 4
"""Of each task whose requests are built."""
SHOWN = 4


def main() -> None:
    """Answer the tasks on standard input, a JSON list of RunTask, with a list of sentences or null."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print
    tasks = TypeAdapter(list[RunTask]).validate_json(sys.stdin.buffer.read())
    print(json.dumps([fault(task) for task in tasks]), file=out, flush=True)


def fault(task: RunTask) -> str | None:
    """Return in one sentence why the trained model of a run could not be scored; None where nothing is found."""
    try:
        longest = _model_length(task.model_folder, task) if task.model_folder is not None else None
        if task.spec.evaluation.tasks:
            _check_tasks(task, longest)
        _check_mt_bench(task, longest)
    except HarnessError as error:
        return str(error)
    return None


def _model_length(folder: Path, task: RunTask) -> int:
    config = model_config(task.model.model_copy(update={"folder": folder}))
    return int(resolve_max_length(config, load_tokenizer(folder)))


def _check_tasks(task: RunTask, longest: int | None) -> None:
    """Raise HarnessError where a task cannot be built; rows that are missing are named all at once."""
    faults: dict[str, str] = {}
    settings = task.spec.evaluation
    places = task.own_tasks
    check_places(places)
    for part in _parts(settings, OwnTasks(places)):
        try:
            _check_part(task, part, longest)
        except HarnessError as error:
            faults[", ".join(part.tasks)] = str(error)
    if faults:
        names = list(faults)
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        others = f"; {len(names)} tasks cannot be scored: {', '.join(names[:SHOWN])}{more}" if len(names) > 1 else ""
        raise HarnessError(f"{faults[names[0]]}{others}")


def _parts(settings: EvaluationSettings, own: OwnTasks) -> Iterator[EvaluationSettings]:
    """Yield the settings with one task each, or an own group, which has a say in its tasks, with one of its tasks."""
    left = list(expand_tasks(settings, own))
    for group in filter(own.is_group, settings.tasks):
        for name in filter(left.__contains__, own.expand(group)):
            left.remove(name)
            yield settings.model_copy(update={"tasks": (group,), "subtasks": (name,), "metrics": _of(settings, name)})
    for name in left:
        yield settings.model_copy(update={"tasks": (name,), "subtasks": None, "metrics": _of(settings, name)})


def _of(settings: EvaluationSettings, name: str) -> dict[str, str] | None:
    return {name: settings.metrics[name]} if name in (settings.metrics or {}) and settings.metrics else None


def _check_part(task: RunTask, settings: EvaluationSettings, longest: int | None) -> None:
    (name,) = settings.subtasks or settings.tasks
    few = settings.model_copy(update={"limit": min(settings.limit or ITEMS, ITEMS)})
    cache = task.cache_folder / "datasets"
    with fenced(settings.fewshot_seed), no_progress_bars(), contextlib.redirect_stderr(io.StringIO()):
        loaded = load_tasks(
            few, rows_folder=task.rows_folder, datasets_cache=cache, offline=task.offline, places=task.own_tasks
        )[name]
        try:
            loaded.build_all_requests(limit=few.limit)
        except Exception as error:  # whatever lm-eval, a task's own functions or its templates raise
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise HarnessError(f"the requests of task '{name}' cannot be built: {first}"[:500]) from error
    _check_metric(name, loaded, (settings.metrics or {}).get(name))
    if not loaded.instances:
        raise HarnessError(f"task '{name}' has no items to score: leave it out")
    for request in loaded.instances:
        if request.request_type != "generate_until" or longest is None:
            continue
        new_tokens = int(normalize_gen_kwargs(request.args[1], DEFAULT_GENERATED_TOKENS)["max_gen_toks"])
        if new_tokens >= longest:
            raise HarnessError(
                f"task '{name}' generates up to {new_tokens} tokens, but the model's length is {longest}: there is no "
                "room for a prompt"
            )


def _check_metric(name: str, loaded: Task, asked: str | None) -> None:
    """Raise HarnessError where the metric that is to enter the average is none of the task's."""
    filters = [found.name for found in getattr(loaded, "_filters", ())]
    own = getattr(loaded, "_metric_fn_list", {})
    metrics = [m if f == "none" else f"{m},{f}" for f in filters for m in own]
    if asked is not None and metrics and headline_of(metrics, asked) is None:
        raise HarnessError(f"[evaluation] metrics: task '{name}' has no metric '{asked}', and has {', '.join(metrics)}")


def _check_mt_bench(task: RunTask, longest: int | None) -> None:
    """Raise HarnessError where MT-Bench's questions, its template or room for an answer is missing."""
    bench = task.spec.evaluation.mt_bench
    if bench is None:
        return
    if task.mt_bench_folder is None or task.spec.conversation is None:
        raise HarnessError("MT-Bench needs its files and a conversation template: run 'harness prepare' first")
    load_mt_bench(task.mt_bench_folder)
    find_template(task.spec.conversation)
    if longest is not None and bench.max_new_tokens >= longest:
        raise HarnessError(
            f"MT-Bench asks for up to {bench.max_new_tokens} new tokens, but the model's length is {longest}: there is "
            "no room for a question"
        )


if __name__ == "__main__":
    main()
