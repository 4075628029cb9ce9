"""What a node of a cluster does before a run: it says what it is, and finds or prepares what the run needs.

It is another machine than the parent's: its harness has to be the same, and what the parent prepared is used where
it is seen. Imports no torch.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness.assets.cache import cache_root
from harness.errors import HarnessError
from harness.preparing.runs import prepare_runs
from harness.progress import Progress, silent
from harness.record_environment import Environment
from harness.runs.process import probe_environment
from harness.source import source_checksum
from harness.task import RunTask


def describe_node(threads: int) -> bytes:
    """Return the environment of a run on this worker, as JSON."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return probe_environment().model_dump_json().encode()


def devices_of_ranks(number: int, environment: Environment, giver: str) -> list[dict[str, str]]:
    """Return variables that show each rank of a run one of the GPUs that this process was given.

    Args:
        number: Of the ranks.
        environment: Of the node.
        giver: Who gave them, for the sentence.

    Raises:
        HarnessError: it gave fewer.
    """
    if number == 1 or not environment.on_cuda:
        return [{}] * number
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if len(given) < number:
        raise HarnessError(f"a run takes {number} GPUs, and {giver} gave its worker {len(given)}")
    return [{"CUDA_VISIBLE_DEVICES": name} for name in given[:number]]


def check_source(environment: Environment, node: str) -> None:
    """Refuse to run here what would be another program than the parent's.

    Args:
        environment: That the parent knows of.
        node: Name of this one.

    Raises:
        HarnessError: the harness here has another source.
    """
    if not environment.has_source(here := source_checksum()):
        raise HarnessError(
            f"its harness has source checksum {here[:12]}, the parent's {environment.source}; install "
            "the same version on every node"
        )


def localize(task: RunTask) -> RunTask:
    """Return the task with the places of this node: the parent's where they are seen here, else prepared here.

    Raises:
        HarnessError: something is missing here and cannot be had.
    """
    for name, spec in task.datasets.items():
        if spec.file is not None and not spec.file.exists():
            raise HarnessError(
                f"data set '{name}': {spec.file}: the file is not on this node; name one that every node sees"
            )
    for place in (*task.own_tasks.include_path, *(rows.scored for rows in task.own_tasks.rows.values())):
        if not place.exists():
            raise HarnessError(f"tasks of one's own: {place}: is not on this node; name one that every node sees")
    places = (task.cache_folder, task.model_folder, task.rows_folder, task.mt_bench_folder)
    if all(place is None or place.exists() for place in places):
        return task
    prepared = prepare_runs(
        [task.spec],
        [task.model],
        task.datasets,
        convert=_convert,
        offline=task.offline,
        wheels=(),
        progress=silent,
    )
    return task.model_copy(
        update={
            "cache_folder": cache_root(),
            "model_folder": prepared.model_folders.get(task.model.name),
            "rows_folder": prepared.rows_folder,
            "mt_bench_folder": prepared.mt_bench_folder,
        }
    )


def _convert(gguf_file: Path, folder: Path, architecture: str, progress: Progress) -> None:
    from harness.assets.gguf import convert_gguf  # torch comes with it

    convert_gguf(gguf_file, folder, architecture, progress)
