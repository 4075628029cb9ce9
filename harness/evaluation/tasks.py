"""lm-eval's own tasks for an evaluation: the stock YAML as it is, on the rows that the settings ask for.

``hub`` rows come from where the YAML says. Packaged rows stand in for them: a YAML of one include and one
``custom_dataset`` is laid over the stock one, so that prompts, choices, metrics, filters and versions stay lm-eval's.
So do the names of its splits, on which its few-shot draws depend: a task without a test split draws one example more
than it needs and drops the scored question (lm_eval 0.4.13, api/task.py, ``fewshot_context``). Scored rows stand where
the task scores, few-shot rows where it draws examples from.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from harness.catalogue.packaged_tasks import ROWS_OF
from harness.catalogue.tasks import TaskPlaces, TaskRows
from harness.errors import HarnessError
from harness.evaluation.groups import STOCK, expand_tasks
from harness.evaluation.own_loading import load_own, stand_in_rows
from harness.evaluation.own_tasks import OwnTasks
from harness.evaluation.shots import refuse_leak, refuse_too_few
from harness.evaluation.task_names import MMLU_FOLDER, MMLU_PREFIX, STOCK_FOLDERS, folder_of_task
from harness.files import said_as
from harness.settings import EvaluationSettings

SCORED_FILES = {"packaged": "all", "packaged-scored": "scored"}
SCRIPT = "scripts are no longer supported"
"""What ``datasets`` (4.0 and later) says of rows that a script on the hub would make."""


def load_tasks(
    settings: EvaluationSettings,
    *,
    rows_folder: Path | None,
    datasets_cache: Path,
    offline: bool,
    places: TaskPlaces | None = None,
) -> dict[str, Task]:
    """Return lm-eval's task objects by name, in the settings' order, with shots and their seed set.

    A group gives its tasks.

    Args:
        settings: Which tasks, on which rows.
        rows_folder: Holds ``<task>/<part>.jsonl`` and ``mmlu/<subject>/<split>.jsonl``; needed for packaged rows.
        datasets_cache: Where ``datasets`` keeps what it downloads for ``hub`` rows.
        offline: Take ``hub`` rows from that cache only.
        places: Of tasks and rows of the user's own.

    Raises:
        HarnessError: lm-eval has no such task, or its rows are missing or not to be had, or its prompts may hold the
            answer.
    """
    if settings.rows in SCORED_FILES and rows_folder is None:
        raise HarnessError(f"evaluation rows '{settings.rows}' need a folder of packaged rows, but none was given")
    own = OwnTasks(places or TaskPlaces())
    with no_progress_bars(), _quiet(), tempfile.TemporaryDirectory(prefix="harness-tasks-") as folder:
        tasks = {}
        for name in expand_tasks(settings, own):
            with _hub(datasets_cache, offline):
                if name in own:
                    task = load_own(own.task(name), datasets_cache=datasets_cache, offline=offline)
                elif (files := own.places.rows.get(name)) is not None:
                    task = _from_files(_manager(name), name, files, datasets_cache, Path(folder))
                elif settings.rows == "own":
                    raise HarnessError(
                        f"rows = 'own', and task '{name}' is lm-eval's: name its rows in [tasks.rows], or set rows"
                    )
                elif rows_folder is None or settings.rows == "hub":
                    task = _from_hub(_manager(name), name, offline)
                else:
                    task = _from_rows(_manager(name), name, rows_folder, settings, Path(folder))
            _set_shots(task, settings)
            refuse_leak(name, task)
            refuse_too_few(name, task)
            tasks[name] = task
        return tasks


def read_splits(*, splits: Mapping[str, Sequence[Any]], **_metadata: Any) -> dict[str, datasets.Dataset]:
    """Return the rows of each split; lm-eval calls this for the tasks that :func:`load_tasks` lays over its own.

    Args:
        splits: Name of a split -> (path of its JSON Lines file, number of its first rows to take; None: all).

    Raises:
        HarnessError: a file cannot be read or is not JSON Lines.
    """
    return {name: datasets.Dataset.from_list(_read_rows(Path(path), limit)) for name, (path, limit) in splits.items()}


def given_splits(*, key: str, **_metadata: Any) -> dict[str, datasets.Dataset]:
    """Return the splits that :func:`_from_files` has read; lm-eval calls this for a task with rows of files."""
    return _GIVEN[key]


_GIVEN: dict[str, dict[str, datasets.Dataset]] = {}
"""What :func:`given_splits` hands on: lm-eval's YAML names a function and takes no rows."""


def _read_rows(path: Path, limit: int | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        with said_as(f"{path}: cannot be read"), path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if limit is not None and len(rows) == limit:
                    break
                try:
                    rows.append(json.loads(line))
                except (ValueError, RecursionError) as error:
                    raise HarnessError(
                        f"{path} line {number}: is not JSON ({error}); prepare the rows again"
                    ) from error
    except UnicodeDecodeError as error:
        raise HarnessError(f"{path}: is not UTF-8 text; prepare the rows again") from error
    if not rows:
        raise HarnessError(f"{path}: holds no rows; prepare the rows again")
    return rows


def _manager(name: str) -> TaskManager:
    """Return a task manager that knows the task, over the one folder of lm-eval's that holds it."""
    known = MMLU_FOLDER if name.startswith(MMLU_PREFIX) else STOCK_FOLDERS.get(name)
    if known is not None:
        manager = TaskManager(include_path=str(STOCK / known), include_defaults=False)
        if name in manager.all_subtasks:
            return manager
    return TaskManager(include_path=str(folder_of_task(name)), include_defaults=False)


def _from_rows(manager: TaskManager, name: str, rows_folder: Path, settings: EvaluationSettings, scratch: Path) -> Task:
    """Return the stock task on packaged rows."""
    scored, drawn = _splits_of(manager, name)
    assert settings.rows is not None
    splits = {scored: [str(_rows_file(rows_folder, name, SCORED_FILES[settings.rows], scored)), settings.limit]}
    if drawn is not None:
        splits[drawn] = [str(_rows_file(rows_folder, name, "fewshot", drawn)), None]
    return _overlaid(manager, name, read_splits.__name__, {"splits": splits}, scratch)


def _from_files(manager: TaskManager, name: str, files: TaskRows, cache: Path, scratch: Path) -> Task:
    """Return the stock task on rows of the user's files; of examples that no file holds there are none to draw."""
    scored, drawn = _splits_of(manager, name)
    rows = stand_in_rows(files.scored, cache)
    splits = {scored: rows}
    if drawn is not None:
        splits[drawn] = stand_in_rows(files.fewshot, cache) if files.fewshot else rows.select([])
    _GIVEN[name] = splits
    try:
        return _overlaid(manager, name, given_splits.__name__, {"key": name}, scratch)
    except Exception as error:  # whatever lm-eval and the task's own functions make of rows that are not theirs
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise HarnessError(
            f"{files.scored}: task '{name}' cannot be scored on these rows ({type(error).__name__}: {first}); they "
            f"have {', '.join(rows.column_names)}, and its YAML reads the fields of its own rows"
        ) from error


def _splits_of(manager: TaskManager, name: str) -> tuple[str, str | None]:
    """Return which split a stock task scores, and which it draws its examples from."""
    config = manager.task_index[name].cfg or {}
    scored = config.get("test_split") or config.get("validation_split")
    if scored is None:
        raise HarnessError(f"task '{name}' scores neither a test nor a validation split; no other rows can stand in")
    drawn = config.get("fewshot_split") or config.get("training_split")
    if drawn == scored:
        raise HarnessError(f"task '{name}' draws its few-shot examples from the split that it scores, '{scored}'")
    return scored, drawn


def _overlaid(manager: TaskManager, name: str, function: str, options: dict[str, Any], scratch: Path) -> Task:
    """Return the stock task with a function of this module as the source of its rows."""
    overlay = {"include": str(manager.task_index[name].yaml_path), "task": name, "dataset_kwargs": options}
    text = "".join(
        f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in overlay.items()
    )  # JSON is YAML
    text += f"custom_dataset: !function {__name__}.{function}\n"
    path = scratch / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    task: Task = manager.load(str(path))["tasks"][name]
    return task


def _rows_file(rows_folder: Path, name: str, part: str, split: str) -> Path:
    """Return the file that stands in for a split of a task: one of our parts, or MMLU's own split of the same name."""
    subject = name.removeprefix(MMLU_PREFIX)
    file = Path("mmlu", subject, split) if subject != name else Path(ROWS_OF.get(name, name), part)
    path = rows_folder / f"{file}.jsonl"
    if not path.is_file():
        raise HarnessError(f"there are no packaged rows {path}; 'harness prepare' writes them")
    return path


def _from_hub(manager: TaskManager, name: str, offline: bool) -> Task:
    try:
        task: Task = manager.load(name)["tasks"][name]
    except (OSError, ValueError) as error:
        where = "are not in the cache, and --offline forbids the download" if offline else "could not be downloaded"
        what = "run once with a network" if offline else "check the network, and HF_TOKEN where the data are gated"
        raise HarnessError(
            f"the rows of task '{name}' {where} ({str(error).splitlines()[0]}); {what}, or take rows = 'packaged'"
        ) from error
    except RuntimeError as error:
        if SCRIPT not in str(error):
            raise
        raise HarnessError(
            f"the rows of task '{name}' are made by a script on the hub, which datasets {datasets.__version__} runs no "
            "more: name files with its rows in [tasks.rows], or leave the task out"
        ) from error
    return task


def _set_shots(task: Task, settings: EvaluationSettings) -> None:
    """Set the number of few-shot examples and their seed as ``lm_eval.simple_evaluate`` does.

    A task whose YAML says 0 stays at 0.
    """
    own = task.get_config("num_fewshot")
    if settings.num_fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=settings.num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=settings.fewshot_seed)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep the progress bars of ``datasets`` off the terminal: ``map`` runs whenever a task's rows are asked for."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's notes about overlays off the terminal."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _hub(cache: Path, offline: bool) -> Iterator[None]:
    """Point ``datasets`` at our cache, and shut it off the network where that is asked."""
    import huggingface_hub.constants as hub

    before = (datasets.config.HF_DATASETS_CACHE, datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE)
    datasets.config.HF_DATASETS_CACHE = cache
    datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = offline or hub.HF_HUB_OFFLINE
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE, datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE = before
