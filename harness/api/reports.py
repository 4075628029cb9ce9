"""A report as an object: shown by a notebook, printed on a terminal, written into a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from io import StringIO
from pathlib import Path

from harness.calibration_log import SUITES, Log, read_log
from harness.errors import HarnessError
from harness.expansion import load_suite, load_tuned
from harness.report.formats import FORMATS, Format
from harness.report.reading.sides import Side, items_beside
from harness.report.reading.summary import Summary, summarize
from harness.report.write import check_formats, summary_table, write_summary
from harness.store import Contents, no_collection

WIDTH = 120
"""Columns of the tables as text."""


class Report:
    """The report of a suite's records. A notebook shows its tables; ``save`` writes it with its plots."""

    def __init__(self, summary: Summary, items: Side, calibration: Log) -> None:
        """Take what was summarized."""
        self._summary = summary
        self._items = items
        self._calibration = calibration

    @property
    def suite(self) -> str:
        """Return the suite's name."""
        return self._summary.suite.name

    @cached_property
    def html(self) -> str:
        """Return what it says as HTML that may stand in any page: text and tables, without style, script or plot."""
        from harness.report.pages.html import html_part
        from harness.report.pages.page import report_document

        return html_part(report_document(self._summary, {}, self._items.items, self._calibration))

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return self.html

    def __str__(self) -> str:
        """Return the tables as ``harness report`` prints them."""
        from rich.console import Console

        text = StringIO()
        # In a notebook rich shows what it is given there, and writes nothing into a file of its own.
        plain = Console(file=text, width=WIDTH, height=25, highlight=False, force_jupyter=False)
        summary_table(self._summary, plain)
        return text.getvalue()

    def __repr__(self) -> str:
        """Return what it is of."""
        return f"<Report of suite {self.suite}>"

    def save(self, folder: str | os.PathLike[str], formats: Sequence[Format] = FORMATS) -> list[Path]:
        """Write the report into a folder, as ``harness report --out`` does, and return its files.

        Args:
            folder: It is made when it is missing, and other files in it stay.
            formats: Of md, latex, html, csv and json.

        Raises:
            HarnessError: a format is unknown, or a file cannot be written.
        """
        chosen = (formats,) if isinstance(formats, str) else tuple(formats)
        check_formats(chosen)
        return write_summary(self._summary, Path(folder), chosen, self._items.items, self._calibration)


def report_of(suite: str, contents: Contents, folder: Path) -> Report:
    """Return the report of a suite.

    Args:
        suite: A packaged suite's name, or the path of a ``.toml`` file.
        contents: Records.
        folder: Of the records, beside which their items lie.

    Raises:
        HarnessError: the suite is unknown, or has no record among them.
    """
    asked = load_suite(suite)
    try:
        tuned = load_tuned(suite, asked)
    except HarnessError:  # then no label is marked as tuned, as with ``harness report``
        tuned = None
    items = items_beside(folder)
    calibration = read_log(folder) if asked.name in SUITES.values() else Log()
    with no_collection(keep=True):
        return Report(summarize(asked, contents, tuned, items.items), items, calibration)
