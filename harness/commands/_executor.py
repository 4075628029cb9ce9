"""Where runs take place: on this machine, or on a Ray cluster."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from harness.engine.executors import Tally, Watcher, run_locally
from harness.engine.launch import probe_environment
from harness.engine.task import RunTask
from harness.errors import HarnessError
from harness.record import Environment
from harness.store import Store


class Executor(Protocol):
    """Does runs somewhere."""

    def environment(self) -> Environment:
        """Return the environment that runs will have there."""

    def run(
        self,
        tasks: Sequence[RunTask],
        *,
        store: Store,
        environment: Environment,
        watcher: Watcher,
        timeout_seconds: float | None = None,
        stop_at: float | None = None,
        wanted: Callable[[RunTask], bool] = lambda task: True,
    ) -> Tally:
        """Execute tasks; see :func:`harness.engine.executors.run_locally`."""


class _Local:
    environment = staticmethod(probe_environment)
    run = staticmethod(run_locally)


@contextmanager
def executor(args: argparse.Namespace) -> Iterator[Executor]:
    """Give what ``--executor`` names; a cluster that it starts is stopped at the end.

    Raises:
        HarnessError: an option of Ray's without it, or no cluster can be had.
    """
    if args.executor == "local":
        for option, value in (("--ray-address", args.ray_address), ("--cpus-per-run", args.cpus_per_run)):
            if value is not None:
                raise HarnessError(f"{option} is of --executor ray")
        yield _Local()
        return
    from harness.engine.ray_executor import ray_cluster

    asked = args.cpus_per_run or int(os.environ.get("OMP_NUM_THREADS") or 1)
    with ray_cluster(args.ray_address, asked) as cluster:
        yield cluster
