"""The words of a report: how statuses, labels and estimates are called and marked, wherever they stand."""

from __future__ import annotations

from harness.readings import began_busy
from harness.report.reading.proofs import has_failing_proof
from harness.report.reading.remarks import remarks_of_row
from harness.report.reading.summary import Row
from harness.report.statistics.intervals import Estimate
from harness.report.table import Cell
from harness.report.units import percent

NO_CUDA = Cell("not measured", rest=("(no CUDA)",))
NO_TRAINING = "no training"
NOT_SCORED = "not scored"
BUSY = "†"
"""Marks a label of which a run began on a device that was not idle."""
TUNED = "‡"
"""Marks a label whose learning rate harness tune chose."""
UNPROVEN = "§"
"""Marks a label of which the proof of a run fails."""
REMARKED = "¶"
"""Marks a label of which something is to be known beside its figures."""
SHORT_RUN = "*"
"""Marks what was taken over less than one refresh cycle."""
STATUS_WORDS = {
    "absent": "not run",
    "out_of_memory": "out of memory",
    "timed_out": "timed out",
}


def status_words(status: str) -> str:
    """Return how a status is called in a table."""
    return STATUS_WORDS.get(status, status)


def row_status(row: Row) -> str:
    """Return the statuses of a row's runs without a result, in words."""
    return ", ".join(dict.fromkeys(status_words(run.status) for run in row.runs if run.status != "ok"))


def marks(row: Row) -> str:
    """Return the marks behind a label: of a tuned learning rate, of a proof that fails, of remarks."""
    told = ((TUNED, row.choice is not None), (UNPROVEN, has_failing_proof(row)), (REMARKED, bool(remarks_of_row(row))))
    return "".join(f" {mark}" for mark, holds in told if holds)


def label_text(row: Row) -> str:
    """Return the label, with the seeds counted where some have no result or there are several."""
    done, asked = len(row.finished), len(row.runs)
    label = row.label + marks(row)
    if done in (0, asked):
        return label
    return f"{label} ({done} of {asked} seeds; {row_status(row)})"


def is_busy(row: Row) -> bool:
    """Return whether others used the device when a run of this row began."""
    return any(began_busy(record) for record in row.records)


def n_text(num_items: tuple[int, int]) -> str:
    """Return how many items an estimate is over."""
    low, high = num_items
    return f"n={low}" if low == high else f"n={low} to {high}"


def estimate_cell(estimate: Estimate, unit: str, *, with_n: bool = True, with_seeds: bool = True) -> Cell:
    """Return mean, interval and n of an estimate; fractions in per cent.

    Args:
        estimate: What is shown.
        unit: Of it.
        with_n: Whether the cell says n, and not its heading.
        with_seeds: Whether the cell says over how many seeds it is, where it is over several.
    """
    write = percent if unit == "fraction" else "{:.2f}".format
    interval = () if estimate.interval is None else (f"[{write(estimate.interval[0])}, {write(estimate.interval[1])}]",)
    told = [n_text(estimate.num_items)] * with_n
    told += [f"{estimate.num_seeds} seeds"] * (with_seeds and estimate.num_seeds > 1)
    return Cell(write(estimate.mean), estimate.mean, (*interval, *([f"({', '.join(told)})"] if told else [])))
