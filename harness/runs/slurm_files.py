"""What the parent and its jobs tell each other through the results folder, ``.slurm/`` in it. Imports no torch.

An order goes to the job as JSON. The job answers with a file when it has done what it could; what of the run is to be
kept it stores itself, as any ``harness run``. Which job a run has been submitted as stands in a file too, so that
another call follows it instead of submitting again, and ``harness status`` can tell.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.files import make_folder, said_as, write_file
from harness.record_environment import Environment
from harness.task import RunTask

M = TypeVar("M", bound=BaseModel)

FOLDER = ".slurm"


class Order(BaseModel):
    """What a job needs to know to do one run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: RunTask
    environment: Environment
    """What the probe said, for the record of a child that leaves none."""
    results: Path
    """Folder of the records, which the node sees under the same path."""
    threads: int
    """Of torch, in each rank."""
    timeout_seconds: float | None
    """Of the run, as the user says it."""
    limit_seconds: float
    """From the job's begin, after which its run is ended so that it is recorded before Slurm ends the job."""
    retry: tuple[str, ...]
    """Outcomes of runs that are done again."""


class Answer(BaseModel):
    """How a job ended that came to its end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uuid: str | None
    """Of the record that it stored; None: somebody else had done the run, or was doing it."""
    interrupted: bool = False
    """Whether it was told to end: Slurm alone knows whether it will begin anew."""


class Submission(BaseModel):
    """The job that a run was submitted as."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: str
    """Its id at Slurm, or of the process that stands for it."""
    cluster: str
    run_id: str
    uuid: str
    """Of the task."""
    submitted_at: datetime


class SlurmFiles:
    """The files below a results folder."""

    def __init__(self, results: Path) -> None:
        self.folder = results / FOLDER
        self.jobs = self.folder / f"jobs-{os.getuid()}"
        """Submitit's: what it pickles there is run, so it is the user's alone."""

    def make(self) -> None:
        """Make the folders.

        Raises:
            HarnessError: they cannot be made.
        """
        with said_as(f"{self.folder}: the jobs' folder cannot be made"):
            for folder in (self.folder / "answers", self.folder / "submissions", self.jobs):
                make_folder(folder)
            self.jobs.chmod(0o700)

    def answer_file(self, uuid: str) -> Path:
        """Return where the job of a task leaves its answer."""
        return self.folder / "answers" / f"{uuid}.json"

    def answer(self, uuid: str) -> Answer | None:
        """Return the answer of the job of a task; None where there is none yet."""
        return _read(Answer, self.answer_file(uuid))

    def note(self, name: str, submission: Submission) -> None:
        """Write down as which job a run was submitted; ``name`` is what is claimed for it.

        Raises:
            HarnessError: it cannot be written.
        """
        file = self._submission_file(name)
        with said_as(f"{file}: the job of a run cannot be noted"):
            write_file(file, submission.model_dump_json())

    def submission(self, name: str) -> Submission | None:
        """Return as which job a run was submitted; None where it was not."""
        return _read(Submission, self._submission_file(name))

    def submissions(self) -> dict[str, Submission]:
        """Return every job that was submitted and not seen to end, by what is claimed for its run."""
        files = sorted((self.folder / "submissions").glob("*.json"))
        found = {file.stem: _read(Submission, file) for file in files}
        return {name: submission for name, submission in found.items() if submission is not None}

    def forget(self, name: str, uuid: str) -> None:
        """Remove what was noted of a run's job."""
        self._submission_file(name).unlink(missing_ok=True)
        self.answer_file(uuid).unlink(missing_ok=True)

    def _submission_file(self, name: str) -> Path:
        return self.folder / "submissions" / f"{name}.json"


def _read(model: type[M], file: Path) -> M | None:
    try:
        return model.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
