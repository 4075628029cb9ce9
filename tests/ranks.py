"""Several processes of one run, in tests: started from a process that has everything imported, ended in any case."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

ROOT = str(Path(__file__).parents[1])
TIMEOUT = 120.0
"""Seconds until processes that have not ended are killed."""
APART = 60.0
"""Seconds that the others have once the first has ended well."""
PRELOADED = [
    "torch",
    "torch.distributed.fsdp",
    "transformers",
    "peft",
    "harness.calibration.tiny",
    "harness.evaluation.mt_bench",
    "harness.evaluation.scoring",
    "harness.engine.runner",
]


def on_ranks(number: int, function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT) -> list[Any]:
    """Return what ``function(ranks, *args)`` returns in each of so many processes of a group, in their order.

    ``function`` and what it takes and returns can be pickled.

    Raises:
        AssertionError: one of them raised, with what it said, or they did not end in time.
    """
    context = _server()
    with TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_be, args=(rank, number, Path(folder), function, args), daemon=True)
            for rank in range(number)
        ]
        for process in processes:
            process.start()
        try:
            deadline = time.monotonic() + timeout
            while any(process.exitcode is None for process in processes) and time.monotonic() < deadline:
                if any(process.exitcode for process in processes):  # the others would wait for it
                    break
                if any(process.exitcode == 0 for process in processes):
                    deadline = min(deadline, time.monotonic() + APART)
                time.sleep(0.02)
            said = [Path(folder, f"error-{rank}") for rank in range(number)]
            told = "\n".join(f"rank {rank}: {file.read_text()}" for rank, file in enumerate(said) if file.exists())
            assert not told, told
            assert all(process.exitcode == 0 for process in processes), [process.exitcode for process in processes]
            return [pickle.loads(Path(folder, f"result-{rank}").read_bytes()) for rank in range(number)]
        finally:
            for process in processes:
                process.kill()


def _server() -> Any:
    """Return the context of processes forked from one that imported the package that this one has."""
    if ROOT not in sys.path:  # the processes take this path over, and find ``tests`` by it; pytest does without
        sys.path.append(ROOT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONSAFEPATH", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    return context


def _be(rank: int, number: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from harness.engine.ranks import joined

    torch.set_num_threads(1)
    try:
        with joined(number, rank, folder) as ranks:
            result = function(ranks, *args)
            folder.joinpath(f"result-{rank}").write_bytes(pickle.dumps(result))
    except BaseException:
        folder.joinpath(f"error-{rank}").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)
