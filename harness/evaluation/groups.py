"""Groups of lm-eval's tasks: what the name of one stands for, and its scores by category and overall.

Which tasks a group holds and how it weighs them is read from lm-eval's own YAML, and the mean is taken by lm-eval's own
``Group.aggregate``: over ``mmlu`` and its four categories every item counts once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from harness.errors import HarnessError, near_miss
from harness.evaluation.own_tasks import OwnGroup, OwnTasks
from harness.evaluation.task_names import MMLU, MMLU_FOLDER, MMLU_PREFIX
from harness.record import Score
from harness.settings import EvaluationSettings

STOCK = Path(lm_eval.tasks.__file__).parent
"""Where lm-eval keeps its tasks."""


def expand_tasks(settings: EvaluationSettings, own: OwnTasks | None = None) -> tuple[str, ...]:
    """Return the names of the single tasks that the settings ask for, a group's in its place and lm-eval's order.

    Args:
        settings: What is asked for.
        own: Tasks and groups of the user's own.

    Raises:
        HarnessError: ``subtasks`` names what no group among the tasks holds, a task stands there twice, or ``metrics``
            names one that is not asked for.
    """
    names: list[str] = []
    members: list[str] = []
    for name in settings.tasks:
        is_own = own is not None and name in own
        if (not is_own and not is_group(name)) or (is_own and own is not None and own.expand(name) == (name,)):
            names.append(name)
            continue
        found = list(own.expand(name)) if is_own and own is not None else list(_leaves(_manager(), name))
        members += found
        names += [task for task in found if settings.subtasks is None or task in settings.subtasks]
    for task in settings.subtasks or ():
        if task not in members:
            raise HarnessError(f"subtasks: no group among the tasks holds '{task}'{near_miss(task, members)}")
    for task in names:
        if names.count(task) > 1:
            raise HarnessError(f"task '{task}' is asked twice: by its own name or by a group that holds it")
    for task in settings.metrics or ():
        if task not in names:
            raise HarnessError(f"[evaluation] metrics: '{task}' is none of the tasks{near_miss(task, names)}")
    return tuple(names)


def is_group(name: str) -> bool:
    """Return whether a name is that of a group that can be asked for: MMLU, or one of its categories."""
    return (name == MMLU or name.startswith(MMLU_PREFIX)) and name in _manager().all_groups


def with_groups(
    settings: EvaluationSettings, tasks: Mapping[str, Task], scores: Sequence[Score], own: OwnTasks | None = None
) -> list[Score]:
    """Return the scores of tasks with those of the settings' groups behind them, each group after its categories.

    A group's headline is its tasks', whose own then enter no average.
    """
    asked = []
    for name in settings.tasks:
        if own is not None and own.is_group(name):
            asked.append(_own_group(own.group(name), tasks))
        elif is_group(name):
            asked.append(_group(_manager(), name, tasks))
    headlines = {(score.task, score.metric) for score in scores if score.headline}
    made: list[Score] = []
    inside: set[str] = set()
    for group in asked:
        for category in group.get_all_groups():
            made += _group_scores(category, scores, headlines=set())
        of_group = _group_scores(group, scores, headlines)
        if any(score.headline for score in of_group):  # a group that takes no mean leaves its tasks as they are
            inside |= {task.task_name for task in group.get_all_tasks()}
        made += of_group
    return [
        *(score.model_copy(update={"headline": False}) if score.task in inside else score for score in scores),
        *made,
    ]


def _group_scores(group: Group, scores: Sequence[Score], headlines: set[tuple[str, str]]) -> list[Score]:
    """Return what lm-eval's group makes of the scores of its tasks."""
    names = [task.task_name for task in group.get_all_tasks()]
    results: dict[str, dict[str, Any]] = defaultdict(dict)
    parts: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        if score.task in names:
            metric, _, filter_name = score.metric.partition(",")
            key = f"{metric},{filter_name or 'none'}"
            results[score.task] |= {key: score.value, "sample_len": score.n}
            if score.stderr is not None:
                results[score.task][f"{metric}_stderr,{filter_name or 'none'}"] = score.stderr
            parts[key].append(score)
    aggregated: dict[str, Any] = dict(group.aggregate(results))  # type: ignore[arg-type]
    made: list[Score] = []
    for key, count in aggregated.get("sample_count", {}).items():
        metric, filter_name = key.split(",")
        stderr = aggregated[f"{metric}_stderr,{filter_name}"]
        first, shots = parts[key][0], {score.num_fewshot for score in parts[key]}
        made.append(
            Score(
                task=group.name,
                metric=first.metric,
                value=float(aggregated[key]),
                stderr=None if stderr == "N/A" else float(stderr),
                n=count,
                higher_is_better=first.higher_is_better,
                task_version=group.version,
                num_fewshot=shots.pop() if len(shots) == 1 else None,
                unit=first.unit,
                headline=(first.task, first.metric) in headlines and not any(score.headline for score in made),
                subtasks=tuple(names),
            )
        )
    return made


@cache
def _manager() -> TaskManager:
    return TaskManager(include_path=str(STOCK / MMLU_FOLDER), include_defaults=False)


def _own_group(own: OwnGroup, tasks: Mapping[str, Task]) -> Group:
    """Return lm-eval's group of one's own over those of its tasks that there are."""
    group = Group.from_config(own.config | {"group": own.name})
    for child in own.children:
        if isinstance(child, OwnGroup):
            inner = _own_group(child, tasks)
            if inner.get_all_tasks():
                group.add(inner)
        elif child in tasks:
            group.add(tasks[child])
    return group


def _children(manager: TaskManager, name: str) -> list[str]:
    """Return what a group or a tag names: groups, tags or tasks."""
    entry = manager.task_index[name]
    return sorted(entry.tags) if entry.cfg is None else list(entry.cfg["task"])


def _leaves(manager: TaskManager, name: str) -> Iterator[str]:
    if name in manager.all_subtasks:
        yield name
        return
    for child in _children(manager, name):
        yield from _leaves(manager, child)


def _group(manager: TaskManager, name: str, tasks: Mapping[str, Task]) -> Group:
    """Return lm-eval's group over those of its tasks that there are, without categories that have none."""
    config = manager.task_index[name].cfg
    assert config is not None
    group = Group.from_config(config)
    for child in _children(manager, name):
        if child in manager.all_groups:
            inner = _group(manager, child, tasks)
            if inner.get_all_tasks():
                group.add(inner)
        else:
            for task in _leaves(manager, child):
                if task in tasks:
                    group.add(tasks[task])
    return group
