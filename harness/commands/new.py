"""``harness new``: a suite, a method or a task to begin with, commented, that runs as it is. Works without torch."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from harness.catalogue.resolved import packaged_catalogue
from harness.catalogue.tuned import ENDING
from harness.commands import _new_method, _new_suite, _new_task
from harness.commands._output import say
from harness.errors import HarnessError
from harness.evaluation.task_names import is_stock_name
from harness.files import said_as
from harness.method import METHODS
from harness.schema import schema_file, schema_text
from harness.settings import NAME_PATTERN
from harness.suite import NOT_SUITES, suite_names

Kind = Literal["suite", "method", "task"]
TASK_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
METHOD_PATTERN = r"^[a-z][a-z0-9-]{0,47}$"


def new(kind: Kind, name: str, *, out: Path) -> int:
    """Write files of a kind below a folder, and print what to do with them.

    Args:
        kind: Of what is written.
        name: It becomes file names, and what records call it.
        out: The folder; made where it is not there.

    Raises:
        HarnessError: the name is none, or is taken; a file is there already; or nothing can be written.
    """
    making = {"suite": _suite, "method": _method, "task": _task}[kind]
    files, commands = making(name, out)
    _write({out / place: text for place, text in files.items()}, folder=None if kind == "suite" else out / name)
    for place in files:
        say(f"wrote {out / place}")
    say("next:")
    for command in commands:
        say(f"  {command}")
    return 0


def _suite(name: str, out: Path) -> tuple[dict[str, str], list[str]]:
    _check_name("suite", name, NAME_PATTERN, "letters, digits, '.', '_' and '-', 64 at most, a letter or digit first")
    if name in suite_names() or f"{name}.toml" in NOT_SUITES:
        raise HarnessError(f"new suite {name}: that is a packaged file's name, and records tell suites by name")
    if f"{name}.toml".endswith(ENDING):
        raise HarnessError(f"new suite {name}: files that end in {ENDING} hold learning rates that harness tune chose")
    file = f"{name}.toml"
    files = {file: _new_suite.TEXT.replace("NAME", name)}
    if not (out / schema_file("suite")).exists():  # an older one does no harm beside a new suite
        files[schema_file("suite")] = schema_text("suite")
    return files, [f"harness check {_word(out / file)}", f"harness run --suite {_word(out / file)}"]


def _method(name: str, out: Path) -> tuple[dict[str, str], list[str]]:
    _check_name("method", name, METHOD_PATTERN, "small letters, digits and '-', 48 at most, a letter first")
    if name in (*METHODS.names(), *METHODS.broken(), *packaged_catalogue().labels):
        raise HarnessError(f"new method {name}: there is a method or label of that name already: choose another")
    module = f"{name.replace('-', '_')}_method"
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None:
        raise HarnessError(f"new method {name}: there is a Python module '{module}' already: choose another name")
    stem = "".join(part.capitalize() for part in name.split("-"))
    words = {"NAME": name, "MODULE": module, "METHOD": f"{stem}Method", "CONFIG": f"{stem}Config"}
    texts = {
        "pyproject.toml": _new_method.PROJECT,
        f"{module}.py": _new_method.MODULE,
        f"test_{module}.py": _new_method.TEST,
    }
    files = {f"{name}/{file}": _filled(text, words) for file, text in texts.items()}
    return files, [f"python -m pip install -e {_word(out / name)}", f"harness check {name}"]


def _task(name: str, out: Path) -> tuple[dict[str, str], list[str]]:
    _check_name("task", name, TASK_PATTERN, "letters, digits, '_' and '-', 64 at most, a letter or digit first")
    if is_stock_name(name):
        raise HarnessError(f"new task {name}: lm-eval has a task or group of that name, and names mean one thing")
    files = {f"{name}/{name}.yaml": _new_task.YAML.replace("NAME", name), f"{name}/{name}.jsonl": _new_task.rows()}
    check = f"harness check {_word(out / name / f'{name}.yaml')}"
    return files, [check, f"harness list benchmarks {name} --include-path {_word(out / name)}"]


def _check_name(kind: str, name: str, pattern: str, expected: str) -> None:
    if not re.fullmatch(pattern.removeprefix("^").removesuffix("$"), name):
        shown = name if len(name) <= 60 else f"{name[:57]}..."
        raise HarnessError(f"new {kind}: {shown!r} is no name for one: expected {expected}")


def _filled(text: str, words: Mapping[str, str]) -> str:
    return re.sub(rf"\b({'|'.join(words)})\b", lambda found: words[found[1]], text)


def _word(path: Path) -> str:
    return shlex.quote(str(path))


def _write(files: Mapping[Path, str], *, folder: Path | None) -> None:
    """Write files that are not there; what is there stays as it is."""
    for place in (*(() if folder is None else (folder,)), *files):
        if os.path.lexists(place):
            raise HarnessError(f"{place} is there already and stays as it is: choose another name, or --out DIR")
    for place, text in files.items():
        with said_as(f"{place}: cannot be written"):
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("x", encoding="utf-8") as stream:
                stream.write(text)
