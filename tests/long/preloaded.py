"""Runs pytest many times, each in a forked process that begins with torch, transformers and peft imported.

Importing them takes ten times as long as the tests that catch a planted fault. A request is one JSON line on standard
input: ``site`` (a folder that goes first on the path; ``import harness`` must find it there), ``folder`` (to run in),
``arguments`` (pytest's), ``output`` (a file), ``timeout_seconds``. The answer is one line, the exit status.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

WRONG_PACKAGE = 90
"""Exit status where ``import harness`` finds another package than the copy; pytest uses 0 to 5."""
TIMED_OUT = 91
PRELOADED = ("torch", "scipy.stats", "peft.optimizers", "pydantic", "safetensors.torch", "tokenizers")
CLASSES = ("LlamaForCausalLM", "LlamaConfig", "MistralForCausalLM", "MistralConfig", "get_scheduler")


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    transformers = importlib.import_module("transformers")
    for name in (*CLASSES, "AutoModelForCausalLM", "AutoTokenizer", "PreTrainedTokenizerFast"):
        getattr(transformers, name)
    assert "harness" not in sys.modules
    for line in sys.stdin:
        print(answer(json.loads(line)), flush=True)


def answer(request: dict[str, Any]) -> int:
    """Return the exit status of one forked pytest."""
    child = os.fork()
    if child == 0:
        status = WRONG_PACKAGE
        try:
            status = run(request)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return TIMED_OUT if status == -signal.SIGALRM else status


def run(request: dict[str, Any]) -> int:
    """Run pytest in this process, its output in a file."""
    signal.alarm(request["timeout_seconds"])
    with Path(request["output"]).open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.chdir(request["folder"])
    sys.path.insert(0, request["site"])
    os.environ["PYTHONPATH"] = request["site"]  # of what the tests start
    for name in ("harness", "harness.methods", "harness.suites", "harness.engine"):
        file = importlib.import_module(name).__file__
        if file is None or not Path(file).is_relative_to(request["site"]):
            print(f"{name} is {file}, not the copy in {request['site']}")
            return WRONG_PACKAGE
    import pytest

    return int(pytest.main(request["arguments"]))


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder
    main()
