"""Where runs take place: on this machine, on a Ray cluster, or as Slurm jobs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from harness.commands._output import say, warn
from harness.commands.requests import RESULTS, WhereToRun
from harness.errors import HarnessError
from harness.record_environment import Environment
from harness.runs.executor import Executor
from harness.runs.local import Device, LocalMachine
from harness.runs.process import probe_environment


@contextmanager
def executor(where: WhereToRun, gpus_per_run: int = 1, results: Path = Path(RESULTS)) -> Iterator[Executor]:
    """Give the executor that is asked for; a cluster that it starts is stopped at the end.

    Args:
        where: As the user says it.
        gpus_per_run: Devices of a run where the user does not say: the suite's.
        results: Folder of the records, which jobs of Slurm share with this process.

    Raises:
        HarnessError: an option of the other executor, a device that is not there, or no cluster can be had.
    """
    num_ranks = where.gpus_per_run or gpus_per_run
    _check_options(where)
    if where.executor == "local":
        machine = LocalMachine(devices_for(num_ranks, where.devices, where.busy))
        with closing(machine):
            yield machine
        return
    cpus = where.cpus_per_run or _threads() * num_ranks
    if where.executor == "slurm":
        from harness.commands._slurm_job import work
        from harness.runs.slurm import slurm_cluster
        from harness.runs.slurm_settings import slurm_settings

        settings = slurm_settings(where.slurm, num_ranks)
        yield slurm_cluster(settings, results.resolve(), cpus=cpus, num_ranks=num_ranks, work=work, told=say)
        return
    from harness.runs.ray import ray_cluster

    with ray_cluster(where.ray_address, cpus, num_ranks) as cluster:
        yield cluster


def _check_options(where: WhereToRun) -> None:
    """Refuse an option of another executor."""
    if where.executor != "local" and where.devices:
        name = where.executor.capitalize()
        raise HarnessError(f"--devices is of --executor local: {name} places runs on the devices it knows")
    if where.executor != "ray" and where.ray_address is not None:
        raise HarnessError("--ray-address is of --executor ray")
    if where.executor == "local" and where.cpus_per_run is not None:
        raise HarnessError("--cpus-per-run is of --executor ray and slurm")
    if where.executor != "slurm" and where.slurm:
        raise HarnessError("--slurm is of --executor slurm")


def _threads() -> int:
    """Return the threads that the environment asks of OpenMP, one where it asks for none: one level's, as 4 of 4,2."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(asked) if asked.isdecimal() and int(asked) > 0 else 1


def environment_for(num_ranks: int) -> Environment:
    """Return the environment of a run on so many devices of this machine, where nobody says which.

    Raises:
        ModuleNotFoundError: torch is not installed.
        HarnessError: it cannot be told.
    """
    return _here(num_ranks)[0]


def devices_for(num_ranks: int, names: Sequence[str] = (), busy: str = "use") -> list[Device]:
    """Return what runs take in turn, so many devices of one kind for each, and say which of them others use.

    Args:
        num_ranks: Devices of one run.
        names: CUDA devices; they are taken together in this order. None: the first there are, for one run at a time.
        busy: ``skip`` leaves out those that others use.

    Raises:
        HarnessError: they are no multiple of what a run takes, one is not there, they are of several kinds, or none is
            left.
    """
    if len(names) % num_ranks:
        raise HarnessError(
            f"--devices names {len(names)}, and a run takes {num_ranks} (gpus_per_run): name {num_ranks} or a multiple "
            "of it"
        )
    if not names:
        here, variables = _here(num_ranks)
        if num_ranks == 1 or not here.on_cuda:
            return _idle({"the device": Device(here, (variables,) * num_ranks)}, busy, 1)
        alone = _shown(_visible(num_ranks), f"a run takes {num_ranks} devices (gpus_per_run)")
    else:
        alone = _shown(names, "--devices")
    return _idle(alone, busy, num_ranks)


def _here(num_ranks: int) -> tuple[Environment, Mapping[str, str]]:
    """Return the environment of a run where nobody names devices, and the variables that its ranks need for it.

    The ranks of a run on a CPU share its threads out, unless the user says how many each has.
    """
    here, variables = probe_environment({}), {}
    if num_ranks > 1 and not here.on_cuda and not os.environ.get("OMP_NUM_THREADS"):
        variables = {"OMP_NUM_THREADS": str(max(1, here.num_threads // num_ranks))}
        here = probe_environment(variables)
    return here.of_ranks(num_ranks), variables


def _visible(number: int) -> list[str]:
    """Return the first CUDA devices that this process sees."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(map(str, range(number))) if told is None else [name.strip() for name in told.split(",")]
    if len(names) < number:
        raise HarnessError(
            f"a run takes {number} devices (gpus_per_run), and CUDA_VISIBLE_DEVICES={told} shows {len(names)}"
        )
    return names[:number]


def _shown(names: Sequence[str], asked: str) -> dict[str, Device]:
    """Return CUDA devices, each by itself, by what sentences call it.

    Raises:
        HarnessError: one is not there; the sentence begins with what was ``asked``.
    """
    found = {}
    for name in names:
        variables = {"CUDA_VISIBLE_DEVICES": name}
        environment = probe_environment(variables)
        if not environment.on_cuda:
            raise HarnessError(f"{asked}: there is no CUDA device '{name}' here")
        found[f"device {name}"] = Device(environment, (variables,))
    return found


def _idle(found: Mapping[str, Device], busy: str, num_ranks: int) -> list[Device]:
    """Return devices, without those that others use if so asked, so many together.

    Args:
        found: Each by itself, by how a message calls it.
        busy: ``skip`` leaves out those that others use.
        num_ranks: How many make one.

    Raises:
        HarnessError: none is left, or they are of several kinds.
    """
    devices: dict[str, Device] = {}
    for name, device in found.items():
        if (busily := device.environment.not_idle(name)) is not None:
            if busy == "skip":
                warn([f"{busily}; it is left out"])
                continue
            warn([f"{busily}; peaks and times may be off, and reports mark them"])
        devices[name] = device
    if len(devices) < num_ranks:
        what = "every device is" if not devices else f"all but {len(devices)} of {len(found)} devices are"
        raise HarnessError(f"{what} in use by others: wait, or run on them with --busy use")
    if len({device.environment.environment_id for device in devices.values()}) > 1:
        kinds = ", ".join(f"{name}: {device.environment.device}" for name, device in devices.items())
        raise HarnessError(f"--devices: these are of several kinds ({kinds}): start one harness run for each kind")
    return _together(list(devices.values()), num_ranks)


def _together(devices: Sequence[Device], num_ranks: int) -> list[Device]:
    """Return devices so many at a time, in their order; what is left over is said to be idle."""
    if num_ranks == 1:
        return list(devices)
    whole = len(devices) - len(devices) % num_ranks
    if left := len(devices) - whole:
        warn([f"{left} of the devices stay idle, as a run takes {num_ranks}"])
    return [
        Device(
            devices[first].environment.of_ranks(num_ranks),
            tuple(variables for device in devices[first : first + num_ranks] for variables in device.variables),
        )
        for first in range(0, whole, num_ranks)
    ]
