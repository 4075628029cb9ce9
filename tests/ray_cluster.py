"""A Ray cluster of several nodes on 127.0.0.1, and what listens there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from harness.runs.ray import LOOPBACK, SETTINGS
from harness.store import Store


@contextmanager
def two_workers() -> Iterator[tuple[str, list[Any], Any]]:
    """Give the address, the two workers with one CPU each, and the cluster; the head does no runs."""
    # Not pytest's folder: the path of a Unix socket holds 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        os.environ.update(SETTINGS | {"RAY_TMPDIR": folder})
        (Path(folder) / "ray").mkdir()
        from ray.cluster_utils import Cluster

        own = {"node_ip_address": LOOPBACK, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **own})
        try:
            workers = [cluster.add_node(num_cpus=1, **own) for _ in range(2)]
            yield cluster.address, workers, cluster
        finally:
            cluster.shutdown()


def listening(parent: psutil.Process) -> set[tuple[str, int]]:
    """Return what a process and its descendants listen on."""
    found = set()
    for process in (parent, *parent.children(recursive=True)):
        try:
            connections = process.net_connections("inet")
        except psutil.Error:  # it has ended
            continue
        found |= {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}
    return found


def start(arguments: Sequence[str], folder: Path, cache: Path) -> subprocess.Popen[str]:
    """Start ``harness`` in a folder."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "harness.cli", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HARNESS_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def arguments(model: Path, *more: str) -> list[str]:
    """Return the command that runs ``tiny.toml`` on Ray."""
    return ["run", "--suite", "tiny.toml", "--model", f"smollm2-135m={model}", "--offline", "--executor", "ray", *more]


def outcomes(folder: Path) -> Counter[tuple[str, int, str]]:
    """Return how many records there are of each label, seed and status."""
    found = Store(folder / "results" / "records").read("tiny")
    assert found.warnings == ()
    return Counter((record.spec.label, record.spec.seed, record.status) for record in found.records)


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.2)
