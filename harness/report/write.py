"""A report on disk: report.md with its plots, scores.csv and runs.csv, each written beside its place and renamed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from harness.errors import HarnessError, near_miss
from harness.report.comparisons import ReadItems
from harness.report.files import make_folder, replace_file
from harness.report.summary import summarize
from harness.report.terminal import terminal_table
from harness.store import Contents
from harness.suite import Suite
from harness.tuned import Tuned

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Format", "terminal_table", "write_report"]

Format = Literal["md", "csv"]


def write_report(
    suite: Suite,
    contents: Contents,
    out: Path,
    formats: Sequence[str],
    tuned: Tuned | None = None,
    *,
    read_items: ReadItems | None = None,
) -> list[Path]:
    """Write the report of a suite into a folder and return its files.

    Args:
        suite: As it is asked for now.
        contents: The records; those of other suites are passed over.
        out: A folder; it is made when it is missing, and other files in it stay.
        formats: ``md`` for report.md and the plots, ``csv`` for scores.csv and runs.csv.
        tuned: The learning rates that the suite takes from a file.
        read_items: Returns a file of items; None: labels are not compared item by item.

    Raises:
        HarnessError: there is no record of the suite, a format is unknown, or a file cannot be written.
    """
    known = get_args(Format)
    for name in formats:
        if name not in known:
            raise HarnessError(f"there is no report format '{name}'{near_miss(name, known)}")
    if not formats:
        raise HarnessError(f"a report needs a format: {', '.join(known)}")
    summary = summarize(suite, contents, tuned)
    make_folder(out)
    written: list[Path] = []
    if "csv" in formats:
        from harness.report.frames import run_frame, score_frame

        written.append(replace_file(out / "scores.csv", _csv(score_frame(summary))))
        written.append(replace_file(out / "runs.csv", _csv(run_frame(summary))))
    if "md" in formats:
        from harness.report.page import report_markdown
        from harness.report.plots import write_plots

        make_folder(out / "plots")
        plots = write_plots(summary, out / "plots")
        written += [file for files in plots.values() for file in files]
        written.insert(0, replace_file(out / "report.md", report_markdown(summary, plots, out, read_items)))
    return written


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, lineterminator="\n")
