"""Before a run reads anything: is what lies there still what was asked for?

A suite runs for hours. What its parent hashed when it laid the runs out may be edited or replaced before the last of
them begins, and its record would say the old checksum of other weights, rows, settings or code.
"""

from __future__ import annotations

from harness.assets.cache import known_file_checksum, weights_checksum
from harness.errors import HarnessError
from harness.evaluation.own_tasks import OwnTasks
from harness.outside import check_outside
from harness.task import RunTask

AGAIN = "run it again, and what is there now is another run"


def check_unchanged(task: RunTask) -> None:
    """Refuse to run on other weights, rows, files or code than the run was laid out with.

    Raises:
        HarnessError: something was changed since, or cannot be read any more.
    """
    check_outside(task.spec)
    check_scored(task)
    model = task.model
    given = model.folder if model.weights == "pretrained" and model.checksum is not None else None
    if given is not None and weights_checksum(given) != model.checksum:
        raise HarnessError(f"{given}: the weights have changed since the run was laid out: {AGAIN}")
    for name, data in task.datasets.items():
        file = data.file if data.checksum is not None else None
        if file is not None and file.is_file() and known_file_checksum(file) != data.checksum:
            raise HarnessError(f"data set '{name}': {file} has changed since the run was laid out: {AGAIN}")


def check_scored(task: RunTask) -> None:
    """Refuse to score other tasks or rows of the user's own than the run was laid out with.

    Raises:
        HarnessError: one was changed since, or cannot be read any more.
    """
    if not task.own_tasks.any:
        return
    here = OwnTasks(task.own_tasks).identities(task.spec.evaluation)
    for role, source in here.items():
        if task.spec.sources.get(role) != source:
            raise HarnessError(f"{role} has changed since the run was laid out: {AGAIN}")
