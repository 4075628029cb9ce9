"""What is asked of Slurm for each run: ``--slurm KEY=VALUE``, checked before anything is submitted.

Keys are submitit's, with its names and units; those that would change what a job is (its tasks, its nodes, what it
writes where) are the harness's own. Imports neither torch nor submitit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.errors import HarnessError, near_miss

KINDS: Mapping[str, str] = {
    "timeout_min": "count",
    "mem_gb": "number",
    "cpus_per_task": "count",
    "gpus_per_node": "number of GPUs",
    **dict.fromkeys(
        (
            *("partition", "account", "qos", "constraint", "gres", "nodelist", "exclude", "dependency", "comment"),
            *("mail_type", "mail_user", "mem_per_gpu", "mem_per_cpu", "wckey"),
        ),
        "text",
    ),
    "exclusive": "switch",
    "setup": "command",
}
"""What each of submitit's keys takes."""
OURS: Mapping[str, str] = {
    "nodes": "a run stays on one node",
    **dict.fromkeys(
        ("tasks_per_node", "ntasks_per_node", "gpus_per_task", "cpus_per_gpu"),
        "a run is one task, which starts its processes",
    ),
    **dict.fromkeys(("name", "job_name"), "a job is called after its run"),
    **dict.fromkeys(("array_parallelism", "map_count"), "say jobs=N for how many jobs there are at once"),
    **dict.fromkeys(("time",), "say timeout_min=N"),
    **dict.fromkeys(("mem",), "say mem_gb=N"),
    **dict.fromkeys(("num_gpus",), "say gpus_per_node=N"),
    **dict.fromkeys(
        ("stderr_to_stdout", "signal_delay_s", "srun_args", "use_srun", "teardown", "additional_parameters"),
        "the harness follows its jobs by it",
    ),
}
"""Keys of submitit's that the harness sets, or has another word for, each with why."""
SBATCH = "sbatch."
"""Before any other option of ``sbatch``, as ``sbatch.reservation=NAME``."""
CLUSTERS = ("slurm", "local")
END_SECONDS = 90.0
"""Before a job's time limit, in which its run is ended and recorded; submitit has Slurm send a signal as early."""
JOBS: Mapping[str, int] = {"slurm": 64, "local": 1}
"""How many jobs of one call are queued or running at once, where the user does not say."""


@dataclass(frozen=True)
class SlurmSettings:
    """What a run's job asks for."""

    cluster: str
    """``slurm``; ``local`` for processes of this machine in the place of jobs, to try it."""
    jobs: int
    """Jobs of one call that are queued or running at once."""
    timeout_min: int
    """Time limit of a job, in minutes."""
    gpus: int | None
    """GPUs of a job; None: ``gres`` says it."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What else the user says, by submitit's names."""
    sbatch: Mapping[str, str] = field(default_factory=dict)
    """Further options of ``sbatch``."""

    @property
    def seconds_of_a_run(self) -> float:
        """Return after which time a job ends its run, so that it is recorded before Slurm ends the job."""
        limit = self.timeout_min * 60.0
        return limit - min(END_SECONDS, limit / 10)

    def parameters(self, name: str, cpus: int) -> dict[str, Any]:
        """Return what submitit's ``AutoExecutor.update_parameters`` takes.

        Args:
            name: Of the job.
            cpus: Of it, where the user does not say.
        """
        generic = {"timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node"}
        values: dict[str, Any] = {"cpus_per_task": cpus, **self.asked}
        known = {key if key in generic else f"slurm_{key}": value for key, value in values.items()}
        known |= {"name": name, "timeout_min": self.timeout_min, "nodes": 1, "tasks_per_node": 1}
        if self.gpus is not None:
            known["gpus_per_node"] = self.gpus
        if self.sbatch:
            known["slurm_additional_parameters"] = dict(self.sbatch)
        return known


def slurm_settings(given: Sequence[str], num_ranks: int) -> SlurmSettings:
    """Return what ``KEY=VALUE`` entries ask for.

    Args:
        given: As the user says it; ``setup`` may be repeated.
        num_ranks: Processes of a run, on a GPU each.

    Raises:
        HarnessError: a key is unknown or the harness's own, a value is none of its kind, the time limit is missing, or
            the GPUs are others than a run takes.
    """
    asked: dict[str, Any] = {}
    sbatch: dict[str, str] = {}
    for entry in given:
        key, equals, text = entry.partition("=")
        if not equals or not key or not text:
            raise HarnessError(f"--slurm {entry}: expected KEY=VALUE, such as partition=gpu")
        if (key in asked and key != "setup") or key.removeprefix(SBATCH) in sbatch:
            raise HarnessError(f"--slurm {key} is given twice")
        if key.startswith(SBATCH):
            sbatch[_sbatch_option(key, text)] = text
        elif key == "setup":
            asked.setdefault(key, []).append(text)
        else:
            asked[key] = _value(key, text)
    cluster = asked.pop("cluster", CLUSTERS[0])
    jobs = asked.pop("jobs", JOBS[cluster])
    timeout_min = asked.pop("timeout_min", None)
    if timeout_min is None:
        raise HarnessError(
            "--executor slurm needs the time limit of a run's job: --slurm timeout_min=N (submitit's own would be "
            "5 minutes)"
        )
    gpus = asked.pop("gpus_per_node", None if "gres" in asked else 0 if cluster == "local" else num_ranks)
    if gpus not in (None, 0, num_ranks):
        raise HarnessError(f"--slurm gpus_per_node={gpus}: a run takes {num_ranks} (gpus_per_run), or 0 on a CPU")
    return SlurmSettings(cluster, jobs, timeout_min, gpus, asked, sbatch)


def _value(key: str, text: str) -> Any:
    """Return the value of a key."""
    if key in OURS:
        raise HarnessError(f"--slurm {key} cannot be set: {OURS[key]}")
    if key == "cluster":
        if text not in CLUSTERS:
            raise HarnessError(f"--slurm cluster={text}: expected slurm, or local to try it on this machine")
        return text
    kind = "count" if key == "jobs" else KINDS.get(key)
    if kind is None:
        known = (*KINDS, "cluster", "jobs")
        raise HarnessError(
            f"--slurm {key}: submitit has no such parameter{near_miss(key, known)}; another option of sbatch is "
            f"{SBATCH}{key.replace('_', '-')}={text}"
        )
    if kind == "text":
        return text
    if kind == "switch":
        if text not in ("true", "false"):
            raise HarnessError(f"--slurm {key}={text}: expected true or false")
        return text == "true"
    least, words = {"count": (1, "a whole number of at least 1"), "number of GPUs": (0, "a number of GPUs")}.get(
        kind, (None, "a number above 0")
    )
    try:
        number: float = float(text) if least is None else int(text)
    except ValueError:
        number = -1
    if not (0 < number < float("inf") if least is None else number >= least):
        raise HarnessError(f"--slurm {key}={text}: expected {words}")
    return number


def _sbatch_option(key: str, text: str) -> str:
    """Return the name of an option of ``sbatch`` that is passed on as it is."""
    name = key.removeprefix(SBATCH)
    plain = name.replace("-", "_")
    if not name or not name.replace("-", "").isalnum():
        raise HarnessError(f"--slurm {key}={text}: expected {SBATCH}OPTION=VALUE, such as {SBATCH}reservation=NAME")
    if plain in KINDS or plain in OURS or plain in ("output", "error", "array", "signal", "open_mode", "requeue"):
        why = OURS.get(plain, f"say {plain}={text}" if plain in KINDS else "the harness sets it")
        raise HarnessError(f"--slurm {key} cannot be set: {why}")
    return name
