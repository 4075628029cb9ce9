"""Weights & Biases: a run there for each run here, in one project, grouped by suite; offline it lies in ``logs/wandb``.

``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_BASE_URL`` and ``WANDB_MODE`` hold as ever.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from harness.errors import HarnessError
from harness.loggers.contract import LoggedRun, Logger, Place, Session
from harness.record import Status

PROJECT = "finetune-harness"


class WeightsAndBiases(Logger):
    """Keeps runs with Weights & Biases."""

    extra = "wandb"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        import wandb

        self._wandb = wandb
        asked = os.environ.get("WANDB_MODE", "online")
        self._mode: Literal["online", "offline", "disabled", "shared"] | Any = asked
        if place.offline and asked == "online":
            self._mode = "offline"
        if self._mode == "online" and not _logged_in(wandb):
            raise HarnessError(
                "--log wandb: this machine is not logged in; run 'wandb login', or set WANDB_MODE=offline and send "
                "what is logged later by 'wandb sync'"
            )

    def begin(self, run: LoggedRun, *, resumed: bool) -> Session:
        """Begin the run, or go on with it."""
        self.place.folder.mkdir(parents=True, exist_ok=True)
        begun = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.key,
            name=run.name,
            group=run.group,
            dir=os.environ.get("WANDB_DIR", str(self.place.folder)),
            config={**run.settings, **run.tags},
            resume="allow",
            mode=self._mode,
            reinit="create_new",  # several runs go on at once
            settings=self._wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )
        return _Run(begun)


def _logged_in(wandb: Any) -> bool:
    """Return whether there is a key, without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # a wandb that knows no such argument
        return bool(wandb.api.api_key)


class _Run(Session):
    """A run there."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars of a step."""
        self._run.log(dict(scalars), step=step)

    def end(self, step: int, status: Status, reason: str | None, figures: Mapping[str, float]) -> None:
        """Put figures and status into the summary, and finish."""
        self._run.summary.update({**figures, "status": status, "reason": reason or ""})
        self._run.finish(exit_code=0 if status == "ok" else 1)

    def leave(self) -> None:
        """Finish as one that failed: a later attempt goes on with it."""
        self._run.finish(exit_code=1)
