"""Published tables beside our records, cell by cell: the difference, what it means, or why there is none.

A table is a CSV file: the packaged ones are in ``results/paper``, a user's own is given by its path. Every number has
its source; where it is to be found in our records stands beside it, or why it cannot be.
"""

from __future__ import annotations

import csv
import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import NonNegativeFloat, field_validator, model_validator

from harness.errors import HarnessError, near_miss
from harness.files import read_text
from harness.quantity import Quantity
from harness.readings import ran_on_cuda, values_of
from harness.record import Record
from harness.report.comparing.measures import quantities_by_metric
from harness.report.reading.summary import Row, Summary
from harness.report.reading.words import row_status
from harness.report.statistics.intervals import Interval, t_interval
from harness.settings import Name, Strict
from harness.toml_files import validate

ENDING = ".csv"
GIGA = 10**9
SCORE = "score:"
"""``score:TASK:METRIC``: a score of the records."""

Verdict = Literal[
    "within tolerance", "within our interval", "differs", "not measured", "not comparable", "not obtained"
]


class Published(Strict):
    """One published number: a row of a table's file."""

    paper: str
    version: str
    table: str
    model: str
    """As the paper calls it, like the next two."""
    method: str
    metric: str
    value: float | Literal["OOM", "absent"]
    """OOM: it ran out of memory, with which no number of ours compares; absent: numbers that could not be obtained."""
    unit: str
    source: str
    """Where the number was read."""
    suite: Name | None = None
    """Where ours is to be found; None: nowhere."""
    our_model: str | None = None
    our_label: str | None = None
    our_quantity: str | None = None
    """A quantity as ``--fail-on`` of compare calls it, or ``score:TASK:METRIC``."""
    tolerance_percent: NonNegativeFloat | None = None
    """How far ours may lie from it, for rounding and for units that the paper does not state."""
    not_comparable: str | None = None
    """Why the two do not compare, whatever ours is."""

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @model_validator(mode="after")
    def _says_where(self) -> Published:
        ours = (self.suite, self.our_model, self.our_label, self.our_quantity)
        if None in ours and any(ours):
            raise ValueError("suite, our_model, our_label and our_quantity go together")
        if not any(ours) and self.not_comparable is None:
            raise ValueError("names neither where ours is to be found nor why it cannot be (not_comparable)")
        if isinstance(self.value, str) and self.not_comparable is None:
            raise ValueError(f"value is {self.value}, so not_comparable must say why there is nothing to compare")
        if (
            self.our_quantity is not None
            and self.our_quantity not in quantities_by_metric()
            and not (self.our_quantity.startswith(SCORE) and self.our_quantity.count(":") == 2)
        ):
            known = ", ".join((*quantities_by_metric(), f"{SCORE}TASK:METRIC"))
            raise ValueError(f"our_quantity '{self.our_quantity}' is none of {known}")
        return self


@dataclass(frozen=True)
class Cell:
    """A published number beside ours."""

    published: Published
    ours: float | None
    """Mean over seeds, in the published unit."""
    interval: Interval | None
    """95% over seeds; None with fewer than two."""
    num_seeds: int
    verdict: Verdict
    reason: str
    """Why it was not measured or does not compare; else empty."""

    @property
    def difference(self) -> float | None:
        """Return ours less the published number."""
        value = self.published.value
        return None if self.ours is None or isinstance(value, str) else self.ours - value


def table_names() -> list[str]:
    """Return the names of the packaged tables."""
    files = importlib.resources.files("harness.published").iterdir()
    return sorted(file.name.removesuffix(ENDING) for file in files if file.name.endswith(ENDING))


def read_table(name: str) -> tuple[Published, ...]:
    """Return the rows of a packaged table by name, or of the file when ``name`` ends in ``.csv``.

    Raises:
        HarnessError: no such table, or a row of the file is not valid.
    """
    if name.endswith(ENDING):
        file = Path(name).expanduser()
        where = str(file)
    else:
        known = table_names()
        if name not in known:
            raise HarnessError(f"there is no published table '{name}'{near_miss(name, known)}")
        file = Path(str(importlib.resources.files("harness.published"))) / f"{name}{ENDING}"
        where = f"results/paper/{file.name}"
    rows = csv.DictReader(read_text(file, where).splitlines(), restkey="more", strict=True)
    try:
        found = tuple(validate(Published, row, f"{where} line {rows.line_num}:", at_once=False) for row in rows)
    except csv.Error as error:
        raise HarnessError(f"{where} line {rows.line_num}: is not CSV: {error}") from error
    if not found:
        raise HarnessError(f"{where}: holds no numbers")
    return found


def compare(table: Sequence[Published], summaries: Mapping[str, Summary]) -> tuple[Cell, ...]:
    """Return each published number beside ours.

    Args:
        table: As read.
        summaries: What the records of each suite that the table names say; a suite without records is left out.
    """
    return tuple(_cell(published, summaries) for published in table)


def _cell(published: Published, summaries: Mapping[str, Summary]) -> Cell:
    if published.suite is None:
        assert published.not_comparable is not None
        verdict: Verdict = "not obtained" if published.value == "absent" else "not comparable"
        return Cell(published, None, None, 0, verdict, published.not_comparable)
    summary = summaries.get(published.suite)
    rows = () if summary is None else summary.rows_of(published.our_model or "")
    row = next((row for row in rows if row.label == published.our_label), None)
    values, missing = _values(row, published.our_quantity or "")
    if not values:
        return Cell(published, None, None, 0, "not measured", published.not_comparable or missing)
    mean = fmean(values)
    interval = t_interval(values) if len(values) > 1 else None
    if published.not_comparable is not None or isinstance(published.value, str):
        return Cell(published, mean, interval, len(values), "not comparable", published.not_comparable or "")
    found = _verdict(published.value, published.tolerance_percent, mean, interval)
    return Cell(published, mean, interval, len(values), found, missing)


def _verdict(value: float, tolerance: float | None, mean: float, interval: Interval | None) -> Verdict:
    if tolerance is not None and abs(mean - value) <= tolerance / 100 * abs(value):
        return "within tolerance"
    if interval is not None and interval[0] <= value <= interval[1]:
        return "within our interval"
    return "differs"


def _values(row: Row | None, quantity: str) -> tuple[list[float], str]:
    """Return a quantity of each seed that has one, and what is missing of the others."""
    if row is None or all(run.record is None for run in row.runs):
        return [], "not run"
    if not row.finished:
        return [], row_status(row)
    known = quantities_by_metric().get(quantity)
    if known is not None:
        found = [_in_paper_units(known, record) for record in row.records]
    else:
        task, metric = quantity.removeprefix(SCORE).split(":")
        if any(len(values_of(run.judged_scores(), task, metric)) > 1 for run in row.finished):
            return [], "several judges scored it, and their scores do not compare"
        found = [[None, *values_of((*run.scores, *run.judged_scores()), task, metric)][-1] for run in row.finished]
    values = [value for value in found if value is not None]
    if not values:
        on_cpu = not any(ran_on_cuda(record) for record in row.records)
        needs_cuda = known is not None and known.shown.needs_cuda
        return [], "no CUDA device" if needs_cuda and on_cpu else "the records do not hold it"
    absent = len(row.runs) - len(values)
    return values, f"{absent} of {len(row.runs)} seeds have none" if absent else ""


def _in_paper_units(quantity: Quantity, record: Record) -> float | None:
    """Return a value as papers have it: bytes in GB, 10^9 of them."""
    value = quantity.read(record)
    return value / GIGA if value is not None and quantity.unit == "bytes" else value
