"""A task of one's own as lm-eval builds it, from a checked YAML: its rows first, then what its templates make of them.

The config goes to lm-eval's own ``ConfigurableTask``; rows of files come through ``datasets``, as they do in lm-eval,
from a folder of its cache that is called by their content, since ``datasets`` tells files by name, size and time.
Templates are rendered in Jinja's sandbox: lm-eval's environment is a plain one, in which a template reaches Python. In
a process that scores a task of one's own that goes for every task; the sandbox renders what it does not refuse alike.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import lm_eval.utils
from jinja2.sandbox import SandboxedEnvironment
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.config.task import TaskConfig
from lm_eval.tasks._yaml_loader import load_yaml
from pyarrow import ArrowException

from harness.assets.cache import known_file_checksum
from harness.errors import HarnessError
from harness.evaluation.own_rules import SPLITS
from harness.evaluation.own_tasks import OwnTask
from harness.evaluation.yaml_files import codes_in

CHECKED_ROWS = 4
"""Whose templates are rendered before anything is scored."""
MISREAD = (OSError, ValueError, TypeError, LookupError, StopIteration)
"""What ``datasets`` raises beside its own of files that are not what they are called; an empty one stops it."""
STRUCTURAL = ("tag", "group", "task_list", "include")
"""Keys that are none of a task's own."""


def load_own(task: OwnTask, *, datasets_cache: Path, offline: bool) -> Task:
    """Return lm-eval's task object.

    Args:
        task: As checked.
        datasets_cache: Where ``datasets`` keeps what it reads.
        offline: Whether rows of the hub are taken from that cache only; of that the caller has told ``datasets``.

    Raises:
        HarnessError: the rows cannot be had or lack a split, or a template cannot be rendered; with file and key.
    """
    if not task.trusted:
        sandbox_templates()
    config = _config(task)
    rows = None if callable(config.get("custom_dataset")) else _rows(task, config, datasets_cache, offline=offline)
    if rows is not None:
        _check_splits(task, config, rows)
        config |= {"custom_dataset": lambda **_: rows, "dataset_kwargs": None}
    try:
        if rows is not None and config.get("process_docs") is None:
            _check_before(task, copy.deepcopy(config), rows)
        return ConfigurableTask(config=config)
    except HarnessError:
        raise
    except Exception as error:  # whatever lm-eval, or a trusted task's own functions, raise
        raise HarnessError(f"{task.table.file}: task '{task.name}' cannot be built: {_first(error)}") from error


def sandbox_templates() -> None:
    """Have lm-eval render templates in Jinja's sandbox, with the settings and filters of its own environment."""
    plain = lm_eval.utils.env
    if isinstance(plain, SandboxedEnvironment):
        return
    sandbox = SandboxedEnvironment(
        loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    sandbox.filters.update(plain.filters)
    lm_eval.utils.env = sandbox


def stand_in_rows(path: Path, cache: Path) -> datasets.Dataset:
    """Return the rows of a JSON, JSON Lines or Parquet file.

    Raises:
        HarnessError: it cannot be read, or holds no rows.
    """
    kind = "parquet" if path.suffix == ".parquet" else "json"
    found = _read(kind, {"rows": (path,)}, {}, cache, str(path))["rows"]
    if not len(found):
        raise HarnessError(f"{path}: holds no rows to score")
    return found


def _config(task: OwnTask) -> dict[str, Any]:
    """Return what lm-eval is given; of a trusted task with its functions, by lm-eval's own loader."""
    if any(True for value in task.table.values.values() for _ in codes_in(value)):
        assert task.trusted
        try:
            said = load_yaml(task.table.file)
        except Exception as error:  # whatever the code beside a task does when it is imported
            raise HarnessError(f"{task.table.file}: its code cannot be loaded: {_first(error)}") from error
    else:
        said = copy.deepcopy(task.table.values)
    config = {key: value for key, value in (said | task.overrides).items() if key not in STRUCTURAL}
    metadata = config.get("metadata")
    # As lm-eval's factory does, which a version that is no table would end otherwise.
    config["metadata"] = metadata if isinstance(metadata, dict) else {"_metadata": metadata}
    return config | {"task": task.name}


def _rows(task: OwnTask, config: Mapping[str, Any], cache: Path, *, offline: bool) -> Any:
    place, options = task.table.at("dataset_path"), dict(config.get("dataset_kwargs") or {})
    if task.files:
        options.pop("data_files")
        return _read(config["dataset_path"], task.files, options, cache, str(place))
    options.pop("trust_remote_code", None)
    try:
        return datasets.load_dataset(config.get("dataset_path"), config.get("dataset_name"), **options)
    except Exception as error:  # of the hub, of its libraries and of the rows themselves
        where = "are not in the cache, and --offline forbids the download" if offline else "cannot be had"
        raise HarnessError(f"{place}: the rows of task '{task.name}' {where}: {_first(error)}") from error


def _read(kind: str, files: Mapping[str, Sequence[Path]], options: dict[str, Any], cache: Path, place: str) -> Any:
    """Return the rows of files by split, from a cache that no other content shares."""
    content = [(split, known_file_checksum(file)) for split in sorted(files) for file in files[split]]
    folder = cache / "own" / hashlib.sha256(repr((kind, content, sorted(options.items()))).encode()).hexdigest()[:32]
    names = {split: [str(file) for file in of_split] for split, of_split in files.items()}
    try:
        return datasets.load_dataset(kind, data_files=names, cache_dir=str(folder), **options)
    except (datasets.exceptions.DatasetGenerationError, ArrowException, *MISREAD) as error:
        cause = error.__cause__ or error
        raise HarnessError(
            f"{place}: the rows of {', '.join(sorted(files))} cannot be read: {_first(cause)}"
        ) from error


def _check_splits(task: OwnTask, config: Mapping[str, Any], rows: Any) -> None:
    splits = list(rows) if isinstance(rows, dict) else []
    fewshot = config.get("fewshot_config")
    named = {key: config.get(key) for key in SPLITS}
    named |= {"fewshot_config": fewshot.get("split") if isinstance(fewshot, dict) else None}
    for key, split in named.items():
        if split is not None and split not in splits:
            raise HarnessError(
                f"{task.table.at(key)}: {key} = '{split}' is none of the splits of its rows ({', '.join(splits)})"
            )
    scored = config.get("test_split") or config.get("validation_split")
    if scored is not None and not len(rows[scored]):
        raise HarnessError(f"{task.table.at('dataset_kwargs')}: split '{scored}' holds no rows to score")


def _check_rows(task: OwnTask, built: ConfigurableTask, docs: Iterable[Any]) -> None:
    """Refuse texts that cannot be rendered, and choices and answers that cannot be scored.

    lm-eval ends in the middle of itself at some, and counts the items of others as wrong.
    """
    is_choice = built.get_config("output_type") == "multiple_choice"
    for number, doc in zip(range(CHECKED_ROWS), docs, strict=False):
        text = _rendered(task, "doc_to_text", number, built.doc_to_text, doc)
        target = _rendered(task, "doc_to_target", number, built.doc_to_target, doc)
        for key in ("description", "gen_prefix"):
            if isinstance(value := built.get_config(key), str) and value not in doc:
                _rendered(task, key, number, partial(lm_eval.utils.apply_template, value), doc)
        if built.get_config("doc_to_choice") is None:
            continue
        choices = _rendered(task, "doc_to_choice", number, built.doc_to_choice, doc)
        if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
            raise HarnessError(
                f"{task.table.at('doc_to_choice')}: doc_to_choice of row {number} gives {choices!r:.80}, expected a "
                "list of texts that are not empty"
            )
        # Of a task with several contexts the right one is what doc_to_text says.
        key, right = ("doc_to_text", text) if isinstance(text, int) else ("doc_to_target", target)
        for answer in (right if isinstance(right, list) else [right]) if is_choice else ():
            if not (0 <= answer < len(choices) if isinstance(answer, int) else answer in choices):
                raise HarnessError(
                    f"{task.table.at(key)}: {key} of row {number} is {answer!r:.80}, which is none of its "
                    f"{len(choices)} choices"
                )


def _rendered(task: OwnTask, key: str, number: int, render: Callable[[Any], Any], doc: Any) -> Any:
    try:
        return render(doc)
    except Exception as error:  # of Jinja, of what a template calls, or of a trusted task's functions
        said = f"{task.table.at(key)}: {key} cannot be rendered on row {number}: {_first(error)}"
        raise HarnessError(said) from error


def _check_before(task: OwnTask, config: Mapping[str, Any], rows: Any) -> None:
    """Check the first rows of a task that lm-eval has not built yet: it renders the first one as it is built."""
    scored = config.get("test_split") or config.get("validation_split")
    probe = ConfigurableTask.__new__(ConfigurableTask)
    probe._config = TaskConfig(**config)
    probe.prompt, probe.features = None, list(rows[scored].features)
    _check_rows(task, probe, rows[scored])


def _first(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}{line and f': {line}'}"[:300]
