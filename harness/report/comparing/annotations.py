"""A comparison as annotations of GitHub's workflows: lines on standard output that its runner takes for commands.

Source: actions/toolkit, packages/core/src/command.ts, for what is escaped and how. A runner shows few annotations of a
kind, so that of more the last that is shown counts the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from harness.report.comparing.cells import FAILING, Cell, Comparison
from harness.report.comparing.page import by_rank, cell_sentence, headline
from harness.report.table import one_line

SHOWN = 10
"""Annotations of one kind at most."""


def comparison_annotations(comparison: Comparison) -> str:
    """Return the lines: what fails the gate as errors, what was not compared as warnings, the whole as a notice."""
    cells = by_rank(comparison.cells)
    errors = [cell for cell in cells if cell.verdict in FAILING]
    warnings = [cell for cell in cells if cell.verdict in ("not comparable", "not measured again")]
    lines = [*_told("error", errors), *_told("warning", warnings)]
    if not comparison.fails and comparison.unusable is not None:
        lines.insert(0, _line("error", "harness compare", comparison.unusable))
    said = f"{comparison.baseline} -> {comparison.candidate}: {headline(comparison)}"
    return "\n".join([*lines, _line("notice", "harness compare", said)]) + "\n"


def _told(kind: Literal["error", "warning"], cells: Sequence[Cell]) -> list[str]:
    """Return the lines of some cells, the last of them a count where there are more than are shown."""
    shown = cells if len(cells) <= SHOWN else cells[: SHOWN - 1]
    lines = [_line(kind, f"{cell.verdict}: {cell.subject}", cell_sentence(cell)) for cell in shown]
    if left := len(cells) - len(shown):
        lines.append(_line(kind, "harness compare", f"and {left} more"))
    return lines


def _line(kind: str, title: str, message: str) -> str:
    return f"::{kind} title={_property(one_line(title))}::{_data(one_line(message))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
