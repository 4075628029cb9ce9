"""The page over all suites: what was run of each, at which commits, how its main figures moved, where its report is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.proof import ending_of
from harness.record import Record
from harness.report.comparing.history import Point, Series, Turn, commit_of, turn_sentence
from harness.report.pages.document import Block, Bullets, Document, Heading, Links, Paragraph, PlotBlock, TableBlock
from harness.report.reading.summary import newest_records
from harness.report.reading.view import view_of
from harness.report.reading.words import status_words
from harness.report.table import Cell, Column, Entry, Table, counted, one_line
from harness.report.units import NOTHING

COMMITS = 30
"""Rows of a table of commits: the newest."""
NAMES = 6
"""Models or labels that a cell names."""


@dataclass(frozen=True)
class MetricOver:
    """One metric of a suite over its commits."""

    title: str
    metric: str
    series: dict[Series, list[Point]]
    turns: Sequence[Turn]
    files: tuple[Path, ...]
    """Of the plot; none where no series has two commits."""


@dataclass(frozen=True)
class SuitePart:
    """What the page says of one suite."""

    name: str
    records: Sequence[Record]
    """Its runs, in the order of time."""
    report: str | None
    """Address of its report's page, relative to this one; None: it has none."""
    why_none: str | None
    """Why it has none."""
    metrics: Sequence[MetricOver]


def overview(parts: Sequence[SuitePart], where: str) -> Document:
    """Return the page.

    Args:
        parts: One a suite, in order.
        where: The folder of the records, as it is to be called.
    """
    runs = sum(len(part.records) for part in parts)
    blocks: list[Block] = [
        Heading(1, "All suites"),
        Paragraph(f"{runs} records of {len(parts)} suites in {where}."),
        TableBlock(_suites_table(parts), "Runs count once for each environment; a repeat counts as one with its run."),
    ]
    for part in parts:
        blocks.append(Heading(2, part.name))
        if part.report is not None:
            blocks.append(Links(((f"Report of {part.name}", part.report),)))
        if part.why_none is not None:
            blocks.append(Paragraph(f"Without a report: {part.why_none}"))
        blocks.append(TableBlock(_commits_table(part.records), _commits_caption(part.records)))
        for over in part.metrics:
            if over.files:
                blocks.append(PlotBlock(f"{part.name}: {over.title} over the commits", over.files))
            lines = tuple(turn_sentence(turn, over.metric) for turn in over.turns)
            if lines:
                blocks.append(Bullets(lines))
    return tuple(blocks)


def _suites_table(parts: Sequence[SuitePart]) -> Table:
    columns = (
        Column("suite", "left"),
        Column("versions", "left"),
        Column("ok"),
        Column("other endings", "left"),
        Column("models", "left"),
        Column("labels", "left"),
        Column("devices", "left"),
        Column("commits"),
        Column("newest run", "left"),
    )
    return Table(columns, tuple(_suite_row(part) for part in parts))


def _suite_row(part: SuitePart) -> tuple[Entry, ...]:
    newest = newest_records(part.records)
    endings = Counter(ending_of(record)[0] for record in newest)
    others = ", ".join(f"{count} {status_words(status)}" for status, count in endings.items() if status != "ok")
    versions = dict.fromkeys(str(view_of(record).suite_version) for record in part.records)
    return (
        one_line(part.name),
        ", ".join(versions),
        counted(endings["ok"]),
        others or NOTHING,
        _named(record.model_name for record in part.records),
        _named(record.label for record in part.records),
        _named(view_of(record).environment.devices for record in part.records),
        counted(len({commit_of(view_of(record).environment) for record in part.records})),
        f"{max(record.started_at for record in part.records):%Y-%m-%d %H:%M}",
    )


def _named(names: Iterable[str]) -> str:
    found = list(dict.fromkeys(map(one_line, names)))
    more = f" and {len(found) - NAMES} more" if len(found) > NAMES else ""
    return ", ".join(found[:NAMES]) + more


def _by_commit(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records by commit, the newest commit first."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        found[commit_of(view_of(record).environment)].append(record)
    order = sorted(found, key=lambda commit: min(record.started_at for record in found[commit]), reverse=True)
    return {commit: found[commit] for commit in order}


def _commits_table(records: Sequence[Record]) -> Table:
    columns = (
        Column("commit", "left"),
        Column("first run", "left"),
        Column("records"),
        Column("ok"),
        Column("labels", "left"),
        Column("device", "left"),
    )
    rows: list[tuple[Entry, ...]] = []
    for commit, found in list(_by_commit(records).items())[:COMMITS]:
        ok = sum(ending_of(record)[0] == "ok" for record in found)
        rows.append(
            (
                commit,
                f"{min(record.started_at for record in found):%Y-%m-%d %H:%M}",
                counted(len(found)),
                Cell(str(ok), ok),
                _named(record.label for record in found),
                _named(view_of(record).environment.devices for record in found),
            )
        )
    return Table(columns, tuple(rows))


def _commits_caption(records: Sequence[Record]) -> str:
    total = len(_by_commit(records))
    return "Commits, the newest first." + (f" {COMMITS} of {total} are shown." if total > COMMITS else "")
