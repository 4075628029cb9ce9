"""Records that were read: two frames, and reports of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api.reports import Report, report_of
from harness.commands.requests import RESULTS
from harness.errors import HarnessError, near_miss
from harness.readings import each_once
from harness.record import Record
from harness.store import Contents, Store, no_collection

if TYPE_CHECKING:
    import pandas as pd


class Results:
    """Records of runs, in the order of time, as frames of pandas and as reports.

    ``harness.read`` and ``harness.run`` return one.
    """

    def __init__(self, folder: Path, contents: Contents) -> None:
        """Take what a folder of records holds."""
        self._folder = folder
        self._contents = _each_once(contents)

    @property
    def records(self) -> tuple[Record, ...]:
        """Return the records themselves: every field that there is, typed; added scores are records of their own."""
        return self._contents.records

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return a sentence for each line of a file that is no record; empty where all were read."""
        return self._contents.warnings

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Return a row a recorded run, every attempt among them: the columns of ``runs.csv``, and ``newest``.

        A name says its unit (``_bytes``, ``_seconds``); what was not measured is NA, or NaN among ``float64``.
        """
        from harness.api.frames import runs_frame

        return runs_frame(self.records)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Return a row a score: the columns of ``scores.csv``, with ``run_uuid``, the ``uuid`` of its run."""
        from harness.api.frames import scores_frame

        return scores_frame(self.records)

    def report(self, suite: str | os.PathLike[str] | None = None) -> Report:
        """Return the report of a suite, as ``harness report`` makes it; a notebook shows its tables.

        Args:
            suite: A packaged suite's name, or the path of a ``.toml`` file; None: the one suite there are records of.

        Raises:
            HarnessError: the suite is unknown or has no record here, or none is named and there are several.
        """
        return report_of(self._suite() if suite is None else os.fspath(suite), self._contents, self._folder)

    def __repr__(self) -> str:
        """Return how many records there are, of which suites."""
        runs = sum(record.is_run for record in self.records)
        return f"<Results: {runs} runs of {', '.join(self._suites()) or 'no suite'} in {self._folder}>"

    def _suite(self) -> str:
        names = self._suites()
        if len(names) != 1:
            what = f"of several suites ({', '.join(names)})" if names else "of no suite"
            raise HarnessError(f"{self._folder} holds records {what}: name one, as report('quickstart')")
        return names[0]

    def _suites(self) -> Sequence[str]:
        return sorted({record.suite for record in self.records})


def read(path: str | os.PathLike[str] = RESULTS, *, suite: str | None = None) -> Results:
    """Return the records in a results folder.

    Args:
        path: The folder, as ``--results`` names it.
        suite: By its name: records of others are left out; None: all.

    Raises:
        HarnessError: there is no such folder, a file in it cannot be read, or it holds nothing of the suite.

    Example:
        >>> import harness
        >>> results = harness.read("results/records")
        >>> results.runs.query("newest and status == 'ok'").groupby("label")["step_seconds_mean"].mean()
    """
    try:
        folder = Path(path)
    except TypeError as error:
        raise HarnessError(f"harness.read takes the path of a results folder, not {type(path).__name__}") from error
    if not folder.is_dir():
        what = "is no folder; name the one with its records" if folder.exists() else "there is no such folder"
        raise HarnessError(f"{folder}: {what}")
    with no_collection(keep=True):
        contents = Store(folder).read()
    if suite is not None:
        kept = tuple(record for record in contents.records if record.suite == suite)
        if not kept:
            known = near_miss(suite, {record.suite for record in contents.records})
            raise HarnessError(f"{folder} holds no record of suite '{suite}'{known}")
        contents = Contents(kept, contents.warnings)
    return Results(folder, contents)


def _each_once(contents: Contents) -> Contents:
    """Return contents without records that stand there again, as where files were put together, and a sentence."""
    once = each_once(contents.records)
    if (again := len(contents.records) - len(once)) == 0:
        return contents
    said = f"{again} records stand there more than once, by their uuid; each counts once"
    return Contents(once, (*contents.warnings, said))
