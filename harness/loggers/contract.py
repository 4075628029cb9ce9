"""What a logger is: a place for the scalars of runs. A subclass of :class:`Logger` is all that one of one's own takes.

A logger lives in the parent and hears of runs through one thread, so that it may take its time and needs no lock. What
it raises ends the log of that run with one warning, and never the run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness.record import Status


@dataclass(frozen=True)
class Place:
    """Where a logger may keep what it is given."""

    folder: Path
    """``logs`` beside the records; it may not be there yet."""
    offline: bool
    """The network is not to be touched."""


@dataclass(frozen=True)
class LoggedRun:
    """One run, as loggers know it."""

    key: str
    """32 hex digits, of this run alone: those of its first attempt where it goes on from a checkpoint."""
    name: str
    """``MODEL/LABEL/SEED``."""
    group: str
    """Its suite."""
    folder: str
    """``SUITE/MODEL-LABEL-SEED-DIGITS``, as every file system takes it."""
    settings: Mapping[str, Any]
    """The spec, plain JSON: the hyperparameters."""
    tags: Mapping[str, str]
    """``run_id`` and ``uuid`` of the attempt, as records have them."""


class Session(ABC):
    """The log of one run, from its start or from where it goes on."""

    @abstractmethod
    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Keep scalars after so many optimizer steps; the number never falls, and no name comes twice with one."""

    @abstractmethod
    def end(self, step: int, status: Status, reason: str | None, figures: Mapping[str, float]) -> None:
        """Keep how the run ended.

        Args:
            step: Optimizer steps that were done.
            status: Of the record.
            reason: Its sentence, if it has one.
            figures: What the record holds in single numbers.
        """

    def leave(self) -> None:
        """Let go of a run that has not ended: another process, or a later one, may go on with it."""
        return None


class Logger(ABC):
    """Keeps logs of runs, of several at once too."""

    extra: ClassVar[str | None] = None
    """What brings the package that it needs; None: it needs none."""

    def __init__(self, place: Place) -> None:
        """Get ready; nothing of a run is known yet.

        Raises:
            HarnessError: it cannot be used as things are, such as without an account.
            ModuleNotFoundError: its package is missing.
        """
        self.place = place

    @abstractmethod
    def begin(self, run: LoggedRun, *, resumed: bool) -> Session:
        """Begin the log of a run, or with ``resumed`` go on with the one of that key."""


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str | int | float | bool]:
    """Return nested settings by dotted names; lists as text, without what is None."""
    found: dict[str, str | int | float | bool] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{name}.")
        elif value is not None:
            found[f"{before}{name}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return found
