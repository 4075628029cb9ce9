"""MLflow: an experiment a suite, a run there for each run here, through its client: ``logs/mlflow`` or a server.

``MLFLOW_TRACKING_URI`` holds as ever. Without it a folder is written, which MLflow keeps in maintenance and opens only
when asked to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlparse

from harness.errors import HarnessError
from harness.loggers.contract import LoggedRun, Logger, Place, Session, flat
from harness.record import Status

KEY, GROUP = "harness.key", "harness.suite"
LONGEST_VALUE = 500
"""Characters of a parameter that every MLflow server since 2.0 takes."""
MOST_PARAMETERS = 100
"""Of one request."""
HERE = {"127.0.0.1", "localhost", "::1"}
ENDS = {"ok": "FINISHED", "interrupted": "KILLED", "timed_out": "KILLED"}
"""What MLflow calls a status; FAILED is every other."""


class MLflow(Logger):
    """Keeps runs with an MLflow server, or in a folder of its kind."""

    extra = "mlflow"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        address = os.environ.get("MLFLOW_TRACKING_URI")
        if address is None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            address = (place.folder / "mlflow").absolute().as_uri()
        else:
            parts = urlparse(address)
            if place.offline and parts.scheme.startswith("http") and parts.hostname not in HERE:
                raise HarnessError(
                    f"--log mlflow: MLFLOW_TRACKING_URI is a server on the network ({parts.hostname}), which --offline "
                    "forbids: unset it, and a folder beside the records is written"
                )
        from mlflow import MlflowClient

        self._client: Any = MlflowClient(tracking_uri=address)

    def begin(self, run: LoggedRun, *, resumed: bool) -> Session:
        """Create the run in its experiment, or go on with the one of its key."""
        known = self._client.get_experiment_by_name(run.group)
        experiment = self._client.create_experiment(run.group) if known is None else known.experiment_id
        wanted = f"tags.`{KEY}` = '{run.key}'"
        found = self._client.search_runs([experiment], filter_string=wanted) if resumed else []
        if found:
            self._client.update_run(found[0].info.run_id, status="RUNNING")
            return _Run(self._client, found[0].info.run_id)
        tags = {**run.tags, KEY: run.key, GROUP: run.group}
        made = self._client.create_run(experiment, run_name=run.name, tags=tags)
        session = _Run(self._client, made.info.run_id)
        session.settings(run)
        return session


class _Run(Session):
    """A run there."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self._run_id = run_id

    def settings(self, run: LoggedRun) -> None:
        """Log the settings as parameters."""
        from mlflow.entities import Param

        found = [Param(name, str(value)[:LONGEST_VALUE]) for name, value in flat(run.settings).items()]
        for first in range(0, len(found), MOST_PARAMETERS):
            self._client.log_batch(self._run_id, params=found[first : first + MOST_PARAMETERS])

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars of a step in one request."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        metrics = [Metric(_allowed(name), value, now, step) for name, value in scalars.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def end(self, step: int, status: Status, reason: str | None, figures: Mapping[str, float]) -> None:
        """Log figures as metrics, status and sentence as tags, and end the run."""
        self.log(step, figures)
        self._client.set_tag(self._run_id, "status", status)
        if reason:
            self._client.set_tag(self._run_id, "reason", reason)
        self._client.set_terminated(self._run_id, ENDS.get(status, "FAILED"))

    def leave(self) -> None:
        """Mark it as killed: a later attempt goes on with it."""
        self._client.set_terminated(self._run_id, "KILLED")


def _allowed(name: str) -> str:
    """Return a name of a metric with what MLflow refuses made an underscore."""
    return "".join(letter if letter.isalnum() or letter in "_-./ :" else "_" for letter in name)
