"""A run as the engine executes it, in one process or in several, on tasks of one's own and MT-Bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.catalogue.tasks import TaskPlaces
from harness.engine.ranks import Ranks
from harness.settings import EvaluationSettings, MTBenchSettings
from harness.task import RunTask
from tests import mt_bench, own_tasks
from tests.proofs import task_of

TASKS = ("capitals", "writes", "texts")


def evaluated_task(label: str, model: Path, place: Path, **changes: Any) -> RunTask:
    """Return the task of a label whose model is scored by choices, by what it writes, by texts, and answers MT-Bench.

    Args:
        label: Of methods.toml.
        model: Folder of the base model.
        place: Where its tasks, questions and cache lie; made here.
        changes: As :func:`task_of`, and fields of the task.
    """
    own_tasks.write(place / "tasks")
    mt_bench.write_bench(place / "bench", mt_bench.CATEGORIES[:3])
    given: dict[str, Any] = {"gradient_accumulation_steps": 2, "num_steps": 4, "batch_size": 2}
    made = task_of(label, model, place, **given | changes)
    evaluation = EvaluationSettings(
        tasks=TASKS,
        rows="own",
        limit=2,
        batch_tokens=512,
        mt_bench=MTBenchSettings(data="mt-bench", max_new_tokens=4),
    )
    spec = made.spec.model_copy(update={"evaluation": evaluation, "conversation": "chatml"})
    update = {
        "spec": spec,
        "run_id": spec.run_id,
        "own_tasks": TaskPlaces(include_path=(place / "tasks",)),
        "mt_bench_folder": place / "bench",
        "offline": True,
    }
    return made.model_copy(
        update=update | {key: value for key, value in changes.items() if key in RunTask.model_fields}
    )


def executed(ranks: Ranks, tasks: dict[Path, str]) -> list[str]:
    """Return the records of tasks, all in JSON, as one of their processes makes them, by the work folder of each."""
    from harness.engine import run_scoring, runner, unchanged

    for module in (run_scoring, unchanged):
        module.check_scored = lambda task: None  # sources of a spec that nobody laid out
    records = []
    for work, task in tasks.items():
        work.mkdir(parents=True, exist_ok=True)
        given = RunTask.model_validate_json(task).model_copy(update={"work_folder": work})
        records.append(runner.execute(given, lambda *_: None, lambda record: None, ranks).model_dump_json())
    return records
