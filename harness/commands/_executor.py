"""Where runs take place: on this machine, or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from harness.commands._output import warn
from harness.commands.requests import WhereToRun
from harness.errors import HarnessError
from harness.runs.executor import Executor
from harness.runs.local import Device, LocalMachine
from harness.runs.process import probe_environment


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
        yield LocalMachine(_devices(where.devices, where.busy))
        return
    if where.devices:
        raise HarnessError("--devices is of --executor local: Ray places runs on the devices it knows")
    from harness.runs.ray import ray_cluster

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
        if name and not environment.on_cuda:
            raise HarnessError(f"--devices: there is no CUDA device '{name}' here")
        what = f"device {name}" if name else "the device"
        if (busily := environment.not_idle(what)) is not None:
            if busy == "skip":
                warn([f"{busily}; it is left out"])
                continue
            warn([f"{busily}; peaks and times may be off, and reports mark them"])
        devices[name] = Device(environment, variables)
    if not devices:
        raise HarnessError("every device is in use by others: wait, or run on them with --busy use")
    if len({device.environment.environment_id for device in devices.values()}) > 1:
        kinds = ", ".join(f"{name}: {device.environment.device}" for name, device in devices.items())
        raise HarnessError(f"--devices: these are of several kinds ({kinds}): start one harness run for each kind")
    return list(devices.values())
