"""Where runs take place: on this machine, or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from harness.commands._output import warn
from harness.commands.requests import WhereToRun
from harness.engine.executors import Device, Tally, Watcher, run_locally
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
    """The devices of this machine, of one kind."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices
        self.run = partial(run_locally, devices=devices)

    def environment(self) -> Environment:
        return self._devices[0].environment


@contextmanager
def executor(where: WhereToRun) -> Iterator[Executor]:
    """Give the executor that is asked for; a cluster that it starts is stopped at the end.

    Raises:
        HarnessError: an option of the other executor, a device that is not there, or no cluster can be had.
    """
    if where.executor == "local":
        for option, value in (("--ray-address", where.ray_address), ("--cpus-per-run", where.cpus_per_run)):
            if value is not None:
                raise HarnessError(f"{option} is of --executor ray")
        yield _Local(_devices(where.devices, where.busy))
        return
    if where.devices:
        raise HarnessError("--devices is of --executor local: Ray places runs on the devices it knows")
    from harness.engine.ray_executor import ray_cluster

    with ray_cluster(where.ray_address, where.cpus_per_run or _threads()) as cluster:
        yield cluster


def _threads() -> int:
    """Return the threads that the environment asks of OpenMP, one where it asks for none: one level's, as 4 of 4,2."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(asked) if asked.isdecimal() and int(asked) > 0 else 1


def _devices(names: Sequence[str], busy: str) -> list[Device]:
    """Return the devices to run on, of one kind, and say which of them others use.

    Raises:
        HarnessError: one is not there, they are of several kinds, or none is left.
    """
    devices: dict[str, Device] = {}
    for name in names or [""]:
        variables = {"CUDA_VISIBLE_DEVICES": name} if name else {}
        environment = probe_environment(variables)
        if name and environment.device_type != "cuda":
            raise HarnessError(f"--devices: there is no CUDA device '{name}' here")
        what = f"device {name}" if name else "the device"
        if environment.device_busy and busy == "skip":
            warn([f"{what} is not idle: {environment.device_busy}; it is left out"])
            continue
        if environment.device_busy:
            warn([f"{what} is not idle: {environment.device_busy}; peaks and times may be off, and reports mark them"])
        devices[name] = Device(environment, variables)
    if not devices:
        raise HarnessError("every device is in use by others: wait, or run on them with --busy use")
    if len({device.environment.environment_id for device in devices.values()}) > 1:
        kinds = ", ".join(f"{name}: {device.environment.device_name}" for name, device in devices.items())
        raise HarnessError(f"--devices: these are of several kinds ({kinds}): start one harness run for each kind")
    return list(devices.values())
