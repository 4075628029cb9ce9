"""``harness report``: tables and plots from records alone. Works where torch is absent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.calibration_log import SUITES, Log, read_log
from harness.catalogue.tuned import Tuned
from harness.commands._files_said import say_files
from harness.commands._output import console, warn
from harness.commands._selection import given_catalogue
from harness.commands.requests import NO_TASKS, TableRequest, TasksRequest
from harness.errors import HarnessError
from harness.expansion import load_suite, load_tuned
from harness.report.formats import FORMATS
from harness.report.reading.sides import items_beside
from harness.report.reading.summary import summarize
from harness.report.write import check_formats, summary_table, write_summary
from harness.store import Store, no_collection
from harness.suite import Suite


def report(
    name: str,
    *,
    results: Path,
    out: Path | None = None,
    formats: Sequence[str] = FORMATS,
    catalogue: Path | None = None,
    tasks: TasksRequest = NO_TASKS,
) -> int:
    """Write the report, print its table and name the files."""
    suite = load_suite(name, given_catalogue(catalogue, tasks))
    check_formats(formats)
    with no_collection(keep=True):
        contents = Store(results).read(suite.name)
    warn(contents.warnings)
    tuned = _tuned(name, suite)
    folder = Path(f"report-{suite.name}") if out is None else out
    items = items_beside(results)
    calibration = read_log(results) if suite.name in SUITES.values() else Log()
    with no_collection(keep=True):
        summary = summarize(suite, contents, tuned, items.items)
    files = write_summary(summary, folder, formats, items.items, calibration)
    warn((*items.warnings, *calibration.warnings))
    summary_table(summary, console())
    print()
    say_files(files)
    return 1 if contents.warnings or calibration.warnings else 0


def table(
    asked: TableRequest,
    *,
    results: Path,
    out: Path | None = None,
    formats: tuple[str, ...] = (),
    catalogue: Path | None = None,
    tasks: TasksRequest = NO_TASKS,
) -> int:
    """Write one table for a paper, or print it."""
    from harness.commands.table import report_table

    known = given_catalogue(catalogue, tasks)
    return report_table(asked, results=results, tuned=_tuned, out=out, formats=formats, catalogue=known)


def _tuned(name: str, suite: Suite) -> Tuned | None:
    """Return the tuned learning rates; records can be reported without them, but then nothing is marked as tuned."""
    try:
        return load_tuned(name, suite)
    except HarnessError as error:
        warn([f"{error}; no label is marked as tuned"])
        return None
