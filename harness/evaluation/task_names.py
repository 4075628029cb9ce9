"""Which tasks lm-eval has, from the names in its YAML files: a typo is found before anything is loaded. No lm_eval."""

from __future__ import annotations

import re
from collections.abc import Container
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from harness.catalogue.packaged_tasks import MMLU_GROUPS
from harness.errors import HarnessError, near_miss
from harness.settings import EvaluationSettings

STOCK_FOLDERS = {
    "boolq": "super_glue/boolq",
    "piqa": "piqa",
    "social_iqa": "siqa",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "openbookqa": "openbookqa",
    "gsm8k": "gsm8k",
    "gsm8k_cot": "gsm8k",
}
"""Where lm-eval keeps these tasks: its own index of all folders takes over ten seconds."""
MMLU = "mmlu"
MMLU_PREFIX = "mmlu_"
MMLU_FOLDER = "mmlu/default"

_TASK_LINE = re.compile(rb"""^["']?task["']?:[ ]*["']?([\w.+-]+)["']?[ ]*$""", re.MULTILINE)
_TAG_LINE = re.compile(rb"""^["']?tag["']?:[ ]*["']?([\w.+-]+)["']?[ ]*$""", re.MULTILINE)
_TAG_LIST = re.compile(rb"""^["']?tag["']?:[ ]*\n((?:[ ]*-.*(?:\n|$))+)""", re.MULTILINE)
_LISTED = re.compile(rb"""-[ ]*["']?([\w.+-]+)""")
_GROUP_LINE = re.compile(rb"""^["']?group["']?:[ ]*["']?([\w.+-]+)["']?[ ]*$""", re.MULTILINE)


def check_task_names(settings: EvaluationSettings, own: Container[str] = ()) -> None:
    """Refuse tasks that lm-eval does not have. Where it is not installed, nothing can be said and nothing is.

    Args:
        settings: What is asked for.
        own: Tasks that are the user's.

    Raises:
        HarnessError: a task, or one of ``subtasks``, is not known.
    """
    if stock_tasks_folder() is None:
        return
    for name in settings.tasks:
        if name not in own and name not in STOCK_FOLDERS and name not in _mmlu_names():
            folder_of_task(name)
    for name in settings.subtasks or ():
        if name not in own and name not in _mmlu_names():
            raise HarnessError(f"subtasks: no group among the tasks holds '{name}'{near_miss(name, _mmlu_names())}")


def folder_of_task(name: str) -> Path:
    """Return the folder of lm-eval's that holds a task.

    Raises:
        HarnessError: lm-eval has no such task.
    """
    folders = _folders()
    if name in folders:
        return folders[name]
    hint = near_miss(name, folders)
    raise HarnessError(
        f"lm-eval has no task '{name}'{hint if 'did you mean' in hint else ''}; a group other than {MMLU} is given by "
        "its tasks, and one of your own has its folder named with --include-path"
    )


@cache
def stock_tasks_folder() -> Path | None:
    """Return where lm-eval keeps its tasks; None where it is not installed."""
    try:
        spec = find_spec("lm_eval")
    except ModuleNotFoundError:
        return None
    places = None if spec is None else spec.submodule_search_locations
    return Path(next(iter(places))) / "tasks" if places else None


def is_stock_name(name: str) -> bool:
    """Return whether lm-eval has a task, a group or a tag of that name; where it is not installed, one of a few."""
    if name in STOCK_FOLDERS or name in MMLU_GROUPS:
        return True
    return stock_tasks_folder() is not None and (name in _folders() or name in _stock()[1])


def _folders() -> dict[str, Path]:
    return _stock()[0]


@cache
def _stock() -> tuple[dict[str, Path], frozenset[str]]:
    """Return the folders of lm-eval's tasks by name, and the names of its groups and tags."""
    stock = stock_tasks_folder()
    assert stock is not None
    folders: dict[str, Path] = {}
    others: set[str] = set()
    for path in sorted(stock.rglob("*.yaml")):
        text = path.read_bytes()
        folders |= {match.decode(): path.parent for match in _TASK_LINE.findall(text)}
        others |= {match.decode() for line in (_GROUP_LINE, _TAG_LINE) for match in line.findall(text)}
        others |= {match.decode() for tags in _TAG_LIST.findall(text) for match in _LISTED.findall(tags)}
    return folders, frozenset(others)


@cache
def _mmlu_names() -> frozenset[str]:
    stock = stock_tasks_folder()
    assert stock is not None
    texts = [path.read_bytes() for path in (stock / MMLU_FOLDER).glob("*.yaml")]
    return frozenset(
        match.decode() for text in texts for line in (_TASK_LINE, _GROUP_LINE) for match in line.findall(text)
    )
