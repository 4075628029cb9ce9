"""A report on disk: its pages with their plots, and its numbers; each file written beside its place and renamed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.calibration_log import Log
from harness.catalogue.tuned import Tuned
from harness.errors import HarnessError, near_miss
from harness.report.files import make_folder, replace_file, replace_lines, replace_table
from harness.report.formats import FORMATS, Format
from harness.report.pages.terminal import summary_table, terminal_table
from harness.report.reading.items import ReadItems
from harness.report.reading.summary import Summary, summarize
from harness.store import Contents
from harness.suite import Suite

__all__ = ["Format", "check_formats", "summary_table", "terminal_table", "write_report", "write_summary"]

PAGES = {"md", "latex", "html"}


def write_report(
    suite: Suite,
    contents: Contents,
    out: Path,
    formats: Sequence[str],
    tuned: Tuned | None = None,
    *,
    read_items: ReadItems | None = None,
    calibration: Log | None = None,
) -> list[Path]:
    """Write the report of a suite into a folder and return its files.

    Args:
        suite: As it is asked for now.
        contents: The records; those of other suites are passed over.
        out: A folder; it is made when it is missing, and other files in it stay.
        formats: ``md`` for report.md, ``latex`` for report.tex with the files in tables/, ``html`` for report.html,
            each with the plots; ``csv`` for scores.csv and runs.csv, ``json`` for report.json.
        tuned: The learning rates that the suite takes from a file.
        read_items: Returns a file of items; None: labels are not compared item by item, and several seeds have no
            interval.
        calibration: What was asked of devices beside runs.

    Raises:
        HarnessError: there is no record of the suite, a format is unknown, or a file cannot be written.
    """
    check_formats(formats)
    return write_summary(summarize(suite, contents, tuned, read_items), out, formats, read_items, calibration)


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that there are not, or none.

    Raises:
        HarnessError: a format is unknown, or there is none.
    """
    for name in formats:
        if name not in FORMATS:
            raise HarnessError(f"there is no report format '{name}'{near_miss(name, FORMATS)}")
    if not formats:
        raise HarnessError(f"a report needs a format: {', '.join(FORMATS)}")


def write_summary(
    summary: Summary,
    out: Path,
    formats: Sequence[str],
    read_items: ReadItems | None = None,
    calibration: Log | None = None,
) -> list[Path]:
    """Write the report of what was summarized, and return its files; see :func:`write_report`.

    Raises:
        HarnessError: a file cannot be written.
    """
    make_folder(out)
    written: list[Path] = []
    if "csv" in formats:
        from harness.report.numbers.frames import csv_rows, run_columns, run_rows, score_csv_lines

        written.append(replace_lines(out / "scores.csv", score_csv_lines(summary)))
        written.append(replace_table(out / "runs.csv", csv_rows(run_columns(), run_rows(summary))))
    if "json" in formats:
        from harness.report.numbers.report_json import report_json
        from harness.report.pages.page import all_notes

        written.append(replace_file(out / "report.json", report_json(summary, all_notes(summary))))
    pages, plots = _write_pages(summary, out, formats, read_items, calibration) if PAGES & set(formats) else ([], [])
    return pages + written + plots


def _write_pages(
    summary: Summary, out: Path, formats: Sequence[str], read_items: ReadItems | None, calibration: Log | None
) -> tuple[list[Path], list[Path]]:
    """Write the plots and the pages that show them, from one document, and return the files of both."""
    from harness.report.pages.page import report_document
    from harness.report.plots.shown import write_plots

    make_folder(out / "plots")
    plots = write_plots(summary, out / "plots")
    document = report_document(summary, plots, read_items, calibration)
    pages: dict[str, str] = {}
    if "md" in formats:
        from harness.report.pages.markdown import markdown

        pages["report.md"] = markdown(document, out)
    if "latex" in formats:
        from harness.report.pages.latex import latex

        make_folder(out / "tables")
        pages |= latex(document, out)
    if "html" in formats:
        from harness.report.pages.html import html_page

        pages["report.html"] = html_page(document)
    written = [replace_file(out / name, text) for name, text in pages.items()]
    return written, [file for files in plots.values() for file in files]
