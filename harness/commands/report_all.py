"""``harness report --all``: a page over all suites and commits of a results folder, and a report of each suite."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.calibration_log import SUITES, read_log
from harness.commands._output import warn
from harness.commands._selection import given_catalogue
from harness.commands.requests import NO_TASKS, TasksRequest
from harness.errors import HarnessError
from harness.expansion import load_suite, load_tuned
from harness.proof import ending_of
from harness.record import Record
from harness.report.comparing.history import history, turns, write_history
from harness.report.comparing.measures import SCORE, quantities_by_metric
from harness.report.files import make_folder, replace_file
from harness.report.formats import Format
from harness.report.overview import MetricOver, SuitePart, overview
from harness.report.pages.document import file_stem
from harness.report.pages.html import html_page
from harness.report.pages.markdown import markdown
from harness.report.reading.sides import Side, items_beside
from harness.report.write import write_report
from harness.store import Contents, Store, no_collection
from harness.suite import Suite, suite_names

PAGES: tuple[Format, ...] = ("html", "md")
"""Formats of the suites' reports beside the page."""
METRICS = ("peak_memory", "tracked_peak", "step_time", "loss", SCORE)
"""What is drawn over the commits, where any series has two: on CUDA the allocator's peak, elsewhere the tracked one."""


def report_all(
    *,
    results: Path,
    out: Path | None = None,
    suites: Sequence[str] = (),
    catalogue: Path | None = None,
    tasks: TasksRequest = NO_TASKS,
) -> int:
    """Write the page and the reports, and name the page.

    Args:
        results: Folder of the records.
        out: Where the page goes; None: ``report-all``.
        suites: Files of suites of one's own; a packaged suite is found by the name in its records.
        catalogue: File with base models, data sets and labels of the user's.
        tasks: Where tasks of the user's own are.

    Raises:
        HarnessError: there is no record, a suite's file cannot be read, or a file cannot be written.
    """
    given = [(name, load_suite(name, given_catalogue(catalogue, tasks))) for name in suites]
    own = {suite.name: (name, suite) for name, suite in given}
    with no_collection(keep=True):
        contents = Store(results).read()
    warn(contents.warnings)
    by_suite: dict[str, list[Record]] = defaultdict(list)
    for record in contents.records:
        by_suite[record.suite].append(record)
    runs = {name: found for name, records in by_suite.items() if (found := [r for r in records if r.is_run])}
    if not runs:
        raise HarnessError(f"there is no record of a run in {results}")
    folder = Path("report-all") if out is None else out
    make_folder(folder / "plots")
    items = items_beside(results)
    parts, taken = [], ["plots"]
    for name in sorted(runs):
        stem = file_stem(name, taken)
        taken.append(stem)
        report, why_none = None, None
        try:
            suite = _suite(name, own)
            _write(suite, Contents(tuple(by_suite[name]), ()), folder / stem, items, results)
            report = f"{stem}/report.html"
        except HarnessError as error:
            why_none = f"{error}."
        parts.append(SuitePart(name, runs[name], report, why_none, _metrics(runs[name], folder, stem)))
    warn(items.warnings)
    document = overview(parts, str(results))
    page = replace_file(folder / "index.html", html_page(document))
    replace_file(folder / "index.md", markdown(document, folder))
    print(f"open {page}")
    return 1 if contents.warnings or items.warnings else 0


def _suite(name: str, own: Mapping[str, tuple[str, Suite]]) -> tuple[str, Suite]:
    """Return how a suite of the records is called, and it."""
    if name in own:
        return own[name]
    if name not in suite_names():
        raise HarnessError(f"'{name}' is no packaged suite; name its file with --suite FILE")
    return name, load_suite(name)


def _write(found: tuple[str, Suite], contents: Contents, folder: Path, items: Side, results: Path) -> None:
    called, suite = found
    try:
        tuned = load_tuned(called, suite)
    except HarnessError:
        tuned = None
    calibration = read_log(results) if suite.name in SUITES.values() else None
    write_report(suite, contents, folder, PAGES, tuned, read_items=items.items, calibration=calibration)


def _metrics(records: Sequence[Record], folder: Path, stem: str) -> list[MetricOver]:
    """Return what is drawn of a suite's runs, with the steps that were found."""
    ended = [record for record in records if ending_of(record)[0] == "ok"]
    found = []
    for metric in METRICS:
        try:
            series = {key: points for key, points in history(ended, metric).items() if len(points) > 1}
        except HarnessError:
            continue  # no run has it
        if not series:
            continue
        marks = turns(series, metric)
        names = (f"{stem}-{metric}{ending}" for ending in (".svg", ".png"))
        files = tuple(write_history(series, metric, folder / "plots" / name, marks) for name in names)
        quantity = quantities_by_metric().get(metric)
        title = "score" if quantity is None else quantity.title
        found.append(MetricOver(title, metric, series, marks, files))
    return found
