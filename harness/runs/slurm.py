"""Runs a list of tasks as Slurm jobs, one a run, submitted and followed by submitit.

The job claims, does and stores its run on its node (:mod:`harness.runs.slurm_job`): the results folder is shared. The
parent submits, follows, and records what a job did not live to record. A run's job is noted in the results folder, so
that what a killed parent had submitted is followed by the next instead of being submitted again. Imports no torch, and
submitit when it is asked for.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.errors import HarnessError
from harness.record_environment import Environment
from harness.runs.claims import Claims
from harness.runs.executor import Runs, Tally, Watcher
from harness.runs.queue import RunQueue
from harness.runs.signals import sigterm_interrupts
from harness.runs.slurm_files import SlurmFiles, Submission
from harness.runs.slurm_job import describe
from harness.runs.slurm_jobs import Followed, ask
from harness.runs.slurm_session import POLL_SECONDS, STATES_SECONDS, SlurmSession
from harness.runs.slurm_settings import SlurmSettings
from harness.source import source_checksum

QUIET = {"SUBMITIT_LOG_LEVEL": "ERROR"}
"""Read by submitit when it is imported."""
LAG_SECONDS = {"slurm": 15.0, "local": 1.0}
"""How long what a job wrote last may take to be seen by the parent."""
PROGRAMS = ("sbatch", "srun", "scancel", "sacct")


def slurm_cluster(
    settings: SlurmSettings,
    results: Path,
    *,
    cpus: int,
    num_ranks: int,
    work: Callable[[str], None],
    told: Callable[[str], None],
) -> SlurmCluster:
    """Return the cluster whose jobs do runs.

    Args:
        settings: What each run's job asks for.
        results: Folder of the records, which every node sees under this path.
        cpus: Of a run, where the settings do not say; its ranks share them out as threads of their torch.
        num_ranks: Processes of a run.
        work: What a job does with an order; named by its module, as the node imports it.
        told: Takes sentences for the user.

    Raises:
        HarnessError: submitit is not installed, Slurm is not there, or it does not tell of jobs.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise HarnessError(
            "--executor slurm needs submitit: pip install submitit, in a checkout pip install '.[slurm]'"
        ) from error
    if settings.cluster == "slurm":
        _check_slurm()
    if "%" in str(results):
        raise HarnessError(f"{results}: submitit puts ids in the place of % in a path: name another with --results")
    return SlurmCluster(submitit, settings, results, cpus=cpus, num_ranks=num_ranks, work=work, told=told)


def _check_slurm() -> None:
    """Refuse a machine where jobs cannot be submitted, or would never be known to have ended."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        raise HarnessError(
            f"--executor slurm: {', '.join(missing)} not found: run it where jobs are submitted, or try it on this "
            "machine with --slurm cluster=local"
        )
    done = subprocess.run(["sacct", "-X", "-n", "-o", "JobID"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise HarnessError(f"--executor slurm: sacct, which tells how jobs end, says: {said}")


class SlurmCluster:
    """Slurm as it is reached from here; satisfies :class:`harness.runs.executor.Executor`."""

    def __init__(
        self,
        submitit: Any,
        settings: SlurmSettings,
        results: Path,
        *,
        cpus: int,
        num_ranks: int,
        work: Callable[[str], None],
        told: Callable[[str], None],
    ) -> None:
        """Take what :func:`slurm_cluster` has, with the module."""
        self.settings = settings
        self.files = SlurmFiles(results)
        self.files.make()
        self.work = work
        self.threads = max(1, settings.asked.get("cpus_per_task", cpus) // num_ranks)
        self.lag_seconds = LAG_SECONDS[settings.cluster]
        self._submitit = submitit
        self._cpus = cpus
        self._num_ranks = num_ranks
        self._told = told
        self._environment: Environment | None = None
        # -P: a job imports the harness that is installed, not a folder of that name where it was submitted.
        python = {f"{settings.cluster}_python": f"{shlex.quote(sys.executable)} -P"}
        self._executor = submitit.AutoExecutor(folder=self.files.jobs, cluster=settings.cluster, **python)

    def environment(self) -> Environment:
        """Return the environment of a run there, asked of a node once, by a job.

        Raises:
            HarnessError: no job could say, or its node has another version of the harness.
        """
        if self._environment is None:
            self._environment = self._asked_environment()
        return self._environment

    def run(self, runs: Runs, watcher: Watcher) -> Tally:
        """Do runs wherever Slurm places them; see :meth:`harness.runs.executor.Executor.run`."""
        self.environment()
        # Those of submissions: a run's own claim is its job's, on the node.
        with Claims(self.files.folder) as submitting, Claims(runs.store.folder) as claims, sigterm_interrupts():
            self._sweep(submitting)
            queue = RunQueue(runs, submitting, at_once=True)
            return SlurmSession(self, runs, watcher, queue=queue, claims=claims).do()

    def submit(self, name: str, function: Callable[..., None], *arguments: Any) -> Followed:
        """Submit a job.

        Raises:
            HarnessError: Slurm did not take it.
        """
        self._executor.update_parameters(**self.settings.parameters(name, self._cpus))
        try:
            with _outside_a_job():
                return Followed(self._executor.submit(function, *arguments))
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise HarnessError(f"Slurm did not take the job of {name}: {_last_line(error)}") from error

    def follow(self, submission: Submission) -> Followed | None:
        """Return a job that an earlier call submitted, if it may still do its run."""
        if submission.cluster != "slurm" or self.settings.cluster != "slurm":
            return None
        found = Followed(self._submitit.SlurmJob(folder=self.files.jobs, job_id=submission.job))
        ask([found])
        # Slurm forgets jobs after a time: what it does not tell of is no longer there.
        return None if found.state == "UNKNOWN" or found.is_over(0.0) else found

    def _sweep(self, submitting: Claims) -> None:
        """Remove what was noted of jobs that have answered and that no call follows any more."""
        for name, submission in self.files.submissions().items():
            said = self.files.answer(submission.uuid)
            if said is not None and not said.interrupted and submitting.take(name, submission.uuid):
                self.files.forget(name, submission.uuid)
                submitting.release(name)

    def _asked_environment(self) -> Environment:
        file = self.files.answer_file(f"probe-{uuid.uuid4().hex}")
        probe = self.submit("harness: what a node is", describe, file, self.threads)
        self._told(f"job {probe.job.job_id} asks a node what it is")
        try:
            described = self._described(probe, file).of_ranks(self._num_ranks)
        finally:
            file.unlink(missing_ok=True)
        if not described.has_source(source_checksum()):
            raise HarnessError(
                f"the node's harness has source checksum {described.source}, this one {source_checksum()[:12]}; "
                "install the same version on every node"
            )
        return described

    def _described(self, probe: Followed, file: Path) -> Environment:
        """Wait for what a node says of itself."""
        asked = time.monotonic()
        try:
            while not file.exists():
                if time.monotonic() - asked >= STATES_SECONDS:
                    ask([probe])
                    asked = time.monotonic()
                if probe.is_over(self.lag_seconds) and not file.exists():
                    said = (probe.log_tail or "").strip().splitlines()
                    why = said[-1] if said else probe.ending[1]
                    raise HarnessError(f"the environment of a node cannot be described: {why}")
                time.sleep(POLL_SECONDS / 4)
        except KeyboardInterrupt:
            probe.cancel()
            raise
        try:
            described = Environment.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            raise HarnessError(f"{file}: what a node said of itself cannot be read") from error
        probe.clear()
        return described


@contextlib.contextmanager
def _outside_a_job() -> Iterator[None]:
    """Hide from what is submitted that this process may be in a job itself; a site's SLURM_CONF stays."""
    hidden = {}
    if "SLURM_JOB_ID" in os.environ:
        names = [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_")) and name != "SLURM_CONF"]
        hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
