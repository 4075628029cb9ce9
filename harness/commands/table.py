"""``harness report --table``: one table for a paper, of chosen columns and rows over models and suites."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.catalogue.resolved import Catalogue
from harness.commands._output import console, warn
from harness.commands.requests import TableRequest
from harness.errors import HarnessError
from harness.expansion import load_suite
from harness.report.files import replace_file
from harness.report.reading.items import ReadItems
from harness.report.reading.sides import items_beside
from harness.report.reading.summary import Summary, summarize
from harness.report.tables.choice import TableChoice, command_of, read_choice, save_choice, split_names, style_of
from harness.report.tables.latex import paper_latex
from harness.report.tables.layout import PaperTable, lay_out
from harness.report.tables.plain import paper_csv, paper_markdown, paper_text
from harness.store import Store, no_collection
from harness.suite import Suite

FORMATS = ("latex", "md", "csv", "text")
ENDINGS = {".tex": "latex", ".md": "md", ".csv": "csv", ".txt": "text"}


def report_table(
    asked: TableRequest,
    *,
    results: Path,
    tuned: Callable[[str, Suite], Any],
    out: Path | None = None,
    formats: tuple[str, ...] = (),
    catalogue: Catalogue | None = None,
) -> int:
    """Write one table, or print it.

    Args:
        asked: What it holds.
        results: Folder of the records.
        tuned: Returns the tuned learning rates of a suite by its name or path.
        out: A file; None: standard output.
        formats: One of ``FORMATS``; none: what the ending of ``out`` says, else LaTeX.
        catalogue: What names stand for; None: the packaged one.
    """
    choice = read_choice(asked.spec, _given(asked))
    form = _format(formats, out)
    suites = [(name, load_suite(name, catalogue)) for name in choice.suites]
    names = [suite.name for _, suite in suites]
    if (twice := next((name for i, name in enumerate(names) if name in names[:i]), None)) is not None:
        raise HarnessError(f"--suite: two suites of the table are called '{twice}'")
    summaries: list[Summary] = []
    warnings: list[str] = []
    items = items_beside(results)
    for name, suite in suites:
        with no_collection(keep=True):
            contents = Store(results).read(suite.name)
        warnings += contents.warnings
        summaries.append(summarize(suite, contents, tuned(name, suite), items.items))
    readers: list[ReadItems] = [items.items] * len(suites)
    table = lay_out(choice, summaries, readers)
    if asked.save_spec is not None:
        save_choice(choice, asked.save_spec)
    text, wide = _set(table, form, choice, asked)
    warn((*warnings, *items.warnings, *([wide] if wide else [])))
    if out is None:
        sys.stdout.write(text)
    else:
        print(replace_file(out, text))
    return 1 if warnings else 0


def _given(asked: TableRequest) -> dict[str, Any]:
    """Return what the request says, by the choice's own keys; what it does not say is left to the file."""
    said: dict[str, Any] = {"suites": asked.suites, "models": asked.models}
    if asked.columns is not None:
        said["columns"] = split_names(asked.columns)
    if asked.rows is not None:
        said["rows"] = split_names(asked.rows)
    if asked.style is not None:
        said["style"] = style_of(asked.style)
    if asked.marked is not None:
        said["marked"] = asked.marked
    if asked.spec is None:
        for option, key in (("--suite", "suites"), ("--table", "columns")):
            if not said.get(key):
                raise HarnessError(f"a table for a paper needs {option}, or --spec FILE with a choice that is kept")
    return {key: value for key, value in said.items() if value}


def _format(formats: tuple[str, ...], out: Path | None) -> str:
    if len(formats) > 1:
        raise HarnessError(f"--format: a table is written in one format; leave {formats[1]} out")
    form = formats[0] if formats else ENDINGS.get("" if out is None else out.suffix.lower(), "latex")
    if form not in FORMATS:
        raise HarnessError(f"--format {form}: a table for a paper is written as one of {', '.join(FORMATS)}")
    return form


def _set(table: PaperTable, form: str, choice: TableChoice, asked: TableRequest) -> tuple[str, str | None]:
    """Return the table in a format, and what is wrong with it in that format."""
    if form == "latex":
        as_kept = asked.spec is not None and not _given(asked)
        return paper_latex(table, command_of(choice, str(asked.spec) if as_kept else None), choice.reference)
    if form == "text":
        return paper_text(table, console().width), None
    return (paper_markdown(table) if form == "md" else paper_csv(table)), None
