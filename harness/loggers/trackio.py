"""Trackio: a project a suite, a run there for each run here, in Trackio's own folder on this machine (``TRACKIO_DIR``).

``trackio show`` shows it, and ``trackio sync`` sends it to a Space; nothing is sent from here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.loggers.contract import LoggedRun, Logger, Place, Session
from harness.record import Status


class Trackio(Logger):
    """Keeps runs with Trackio."""

    extra = "trackio"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        import trackio

        class Run(trackio.Run):  # type: ignore[misc]
            """A run here: ``trackio.init`` would end the one before it, and ask the hub whose it is."""

            def _get_username(self) -> None:
                return None

        self._run: Any = Run

    def begin(self, run: LoggedRun, *, resumed: bool) -> Session:
        """Begin the run, or go on with it."""
        settings = {name.lstrip("_"): value for name, value in {**run.settings, **run.tags}.items()}
        project = re.sub(r"[^A-Za-z0-9_-]+", "_", run.group)
        return _Run(
            self._run(
                url=None,
                project=project,
                client=None,
                name=run.name,
                run_id=run.key,
                group=run.group,
                config=settings,
            )
        )


class _Run(Session):
    """A run there."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars of a step."""
        self._run.log(dict(scalars), step=step)

    def end(self, step: int, status: Status, reason: str | None, figures: Mapping[str, float]) -> None:
        """Log figures and how the run ended with the last step, and finish."""
        self._run.log({**figures, "status": status, "reason": reason or ""}, step=step)
        self._run.finish()

    def leave(self) -> None:
        """Write what waits: a later attempt goes on with it."""
        self._run.finish()
