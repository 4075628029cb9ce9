"""What ``--log`` asks for: loggers made ready before anything starts, and told of runs as they go on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from harness.commands._output import warn
from harness.loggers.chosen import chosen_loggers
from harness.loggers.contract import Logger, Place
from harness.loggers.following import Followed
from harness.runs.executor import NOBODY, Observer

LOGS = "logs"
"""Folder of what loggers write, beside the records."""
OFFLINE = "HF_HUB_OFFLINE"
"""Of huggingface_hub: set to 1, ON, YES or TRUE nothing is to touch the network."""


def ready_loggers(names: Sequence[str], results: Path, offline: bool) -> dict[str, Logger]:
    """Return the loggers that are asked for, by name.

    Raises:
        HarnessError: one is not there or cannot be used.
    """
    stays = offline or os.environ.get(OFFLINE, "").upper() in {"1", "ON", "YES", "TRUE"}
    return chosen_loggers(names, Place(results / LOGS, stays)) if names else {}


@contextmanager
def observer(loggers: Mapping[str, Logger], results: Path) -> Iterator[Observer]:
    """Give what tells loggers of runs; at the end they have a while to finish."""
    if not loggers:
        yield NOBODY
        return
    with closing(Followed(loggers, results / LOGS, lambda sentence: warn([sentence]))) as followed:
        yield followed
