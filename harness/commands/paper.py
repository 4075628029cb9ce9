"""``harness paper``: published tables, and how our records compare. Works where torch is absent."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from harness.commands._output import print_named, warn
from harness.errors import HarnessError
from harness.expansion import load_suite
from harness.printable import as_json, printable
from harness.report.comparing.paper import Cell, Published, compare, read_table, table_names
from harness.report.reading.summary import Summary, summarize
from harness.store import Store

NAMING = ("table", "model", "method", "metric")
"""What names a row of a published table."""


def paper(
    action: Literal["list", "show", "compare"],
    name: str | None = None,
    *,
    results: Path,
    style: Literal["text", "csv", "json"] = "text",
) -> int:
    """Print the tables there are, one of them, or one beside our records; 1 when a records file is damaged."""
    if action == "list":
        if name is not None:
            raise HarnessError(f"harness paper list takes no table, and '{name}' was given")
        tables = [_summary_of(known) for known in table_names()]
        _print([table for table in tables if table["numbers"]], style)
        if style == "text":
            absent = [number for known in table_names() for number in read_table(known) if number.value == "absent"]
            print("\nnot obtained, so absent from the tables:")
            for number in absent:
                print(f"- {number.paper} ({number.version}), {number.table}, {number.metric}: {number.not_comparable}")
        return 0
    if name is None:
        raise HarnessError(f"harness paper {action} needs the name of a table: {', '.join(table_names())}")
    table = read_table(name)
    if action == "show":
        _print([_published(number) for number in table], style)
        return 0
    store = Store(results)
    summaries: dict[str, Summary] = {}
    damaged = False
    for known in dict.fromkeys(number.suite for number in table if number.suite is not None):
        suite = load_suite(known)
        contents = store.read(suite.name)
        warn(contents.warnings)
        damaged |= bool(contents.warnings)
        if contents.records:
            summaries[known] = summarize(suite, contents)
    cells = compare(table, summaries)
    _print([_cell(cell) for cell in cells], style)
    if style == "text":
        counts = Counter(cell.verdict for cell in cells)
        print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if damaged else 0


def _summary_of(name: str) -> dict[str, Any]:
    table = read_table(name)
    return {
        "table": name,
        "paper": "; ".join(dict.fromkeys(number.paper for number in table)),
        "numbers": sum(number.value != "absent" for number in table),
        "with a place in our records": sum(number.suite is not None for number in table),
        "suites": ", ".join(dict.fromkeys(number.suite for number in table if number.suite is not None)),
    }


def _published(number: Published) -> dict[str, Any]:
    return {
        "table": number.table,
        "model": number.model,
        "method": number.method,
        "metric": number.metric,
        "published": number.value,
        "unit": number.unit,
        "version": number.version,
        "not comparable": number.not_comparable,
        "source": number.source,
    }


def _cell(cell: Cell) -> dict[str, Any]:
    number = cell.published
    return {
        "table": number.table,
        "model": number.model,
        "method": number.method,
        "metric": number.metric,
        "unit": number.unit,
        "published": number.value,
        "ours": cell.ours,
        "interval": cell.interval,
        "seeds": cell.num_seeds,
        "difference": cell.difference,
        "verdict": cell.verdict,
        "reason": cell.reason,
    }


def _print(rows: Sequence[dict[str, Any]], style: str) -> None:
    if style == "json":
        print(as_json(rows))
        return
    written = [{key: _text(value) for key, value in row.items()} for row in rows]
    if style == "csv":
        writer = csv.DictWriter(sys.stdout, list(written[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(written)
    else:
        _print_text([{key: text for key, text in row.items() if key != "source"} for row in written])


def _print_text(rows: Sequence[dict[str, str]]) -> None:
    """Print rows below what all of them share; what no number of ours will ever compare with stands last."""
    if "ours" in rows[0]:
        rows = sorted(rows, key=lambda row: (not row["ours"], row["verdict"] == "not comparable"))
    print_named(rows, NAMING)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return f"{value[0]:.4g} to {value[1]:.4g}"
    return "" if value is None else printable(str(value))
