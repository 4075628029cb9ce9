"""What a calibration says, as lines of one table: predicted or stated, measured, difference, asked for and reached."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.calibration_log import SUITES, Group, Log, PartResult, Reading
from harness.calibration_profile import profile_of
from harness.device_profile import Rates
from harness.quantities import PEAK_MEMORY, REFRESH_TIME, RESERVED_MEMORY, SPEED, TRACKED_PEAK, UPDATE_TIME, UTILIZATION
from harness.readings import (
    began_busy,
    own_prediction,
    predictable_peak_bytes,
    predicted_peak_bytes,
    prediction_difference,
    ran_on_cuda,
    step_seconds,
    steps_done,
)
from harness.record import Record
from harness.report.pages.document import Block, Heading, Paragraph, Prose, TableBlock
from harness.report.reading.summary import Summary
from harness.report.reading.words import status_words
from harness.report.table import Cell, Column, Entry, Table
from harness.report.units import NOTHING, percent, signed_percent, significant

PREDICTED_WITHIN = 0.03
"""How far a predicted peak may be from the measured one."""
TIME_WITHIN = 0.10
"""How far a step time may be from what its operations take at the measured rate of matrix products."""
MOST_BYTES = {("llama2-7b", "owlore-offload-16x512"): 17.5e9, ("llama2-7b", "owlore-1x512"): 15.5e9}
"""Largest peak that is asked of a run, by model and label."""
OTHER_STEPS = "measured in other steps or rows than the predicted ones"
GROUP_TITLES: dict[Group, str] = {
    "checks": "Checks",
    "sharded": "Training that devices share",
    "constants": "Constants that planning assumes",
    "ladder": "Runs on random weights",
    "evaluation": "Evaluation",
}
COLUMNS = ("what", "predicted", "measured", "diff. %", "asked for", "reached", "notes")
NUMBERS = (1, 2, 3)
"""Of the columns those that hold numbers."""
DEFINITIONS = (
    "Predicted is what planning says, or what a data sheet states where it says so. The difference (diff.) is "
    "predicted less measured, in % of the measured value. GB = 10^9 bytes.",
    "A step less its updates, and projector refreshes with them, is predicted from the operations of the step, those "
    "that checkpointing makes again among them, at the measured rate of matrix products. What the updates take of the "
    "whole step is told beside it.",
)
SCALES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
SCALED = {"bytes": "B", "bytes/s": "B/s", "FLOP/s": "FLOP/s"}


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    group: Group
    what: str
    predicted: Entry = NOTHING
    measured: Entry = NOTHING
    difference: Entry = NOTHING
    asked: str = ""
    reached: str = ""
    notes: str = ""

    @property
    def cells(self) -> tuple[Entry, ...]:
        """Return the cells under ``COLUMNS``."""
        return self.what, self.predicted, self.measured, self.difference, self.asked, self.reached, self.notes


def calibration_lines(
    results: Iterable[PartResult],
    records: Iterable[Record],
    rates: Rates,
    not_run: Iterable[tuple[Group, str, str]] = (),
) -> tuple[Line, ...]:
    """Return a line for every reading, three for a run, one for whatever has no number.

    Args:
        results: The newest answer of each part.
        records: The newest record of each run of the ladder, in its order.
        rates: Measured ones, from which step times are predicted.
        not_run: What was not asked: its group, its name and why.
    """
    lines = [line for result in results for line in _part_lines(result)]
    lines += [line for record in records for line in _run_lines(record, rates)]
    lines += [Line(group, what, notes=why) for group, what, why in not_run]
    order = list(GROUP_TITLES)
    return tuple(sorted(lines, key=lambda line: order.index(line.group)))


def calibration_tables(lines: Sequence[Line]) -> tuple[tuple[str, Table], ...]:
    """Return the lines as a table a group, each with its title; columns in which nothing stands are left out."""
    tables = []
    for group, title in GROUP_TITLES.items():
        rows = [line.cells for line in lines if line.group == group]
        used = [i for i in range(len(COLUMNS)) if any(row[i] not in ("", NOTHING) for row in rows)]
        columns = tuple(Column(COLUMNS[i], "right" if i in NUMBERS else "left") for i in used)
        if rows:
            tables.append((title, Table(columns, tuple(tuple(row[i] for i in used) for row in rows))))
    return tuple(tables)


def calibration_blocks(summary: Summary, log: Log) -> list[Block]:
    """Return what a page says of a calibration: of the environment and the runs that its tables show."""
    sizes = next((sizes for sizes, suite in SUITES.items() if suite == summary.suite.name), None)
    results = log.latest(sizes, summary.view.environment_id) if sizes is not None else ()
    if not results:
        return []
    profile = profile_of(results)
    records = [run.record for row in summary.rows for run in row.runs if run.record is not None]
    lines = calibration_lines(results, records, Rates() if profile is None else profile.rates)
    blocks: list[Block] = [Heading(2, "Calibration"), *(Paragraph(Prose(text)) for text in DEFINITIONS)]
    for title, table in calibration_tables(lines):
        blocks += [Heading(3, title), TableBlock(table)]
    return blocks


def quantity(value: float, unit: str) -> str:
    """Return a number with its unit; bytes are decimal here, as what is asked for is: GB = 10^9 bytes."""
    if unit in SCALED:
        for prefix, scale in SCALES:
            if abs(value) >= scale:
                return f"{significant(value / scale)} {prefix}{SCALED[unit]}"
        return f"{significant(value)} {SCALED[unit]}"
    if unit == "relative":
        return f"{value:.1e}" if value else "0"
    return significant(value) if unit == "ratio" else f"{significant(value)} {unit}"


def _cell(value: float | None, unit: str, *rest: str) -> Entry:
    return NOTHING if value is None else Cell(quantity(value, unit), value, rest)


def _difference(value: float | None) -> Entry:
    return NOTHING if value is None else Cell(signed_percent(value), value)


def _part_lines(result: PartResult) -> Iterator[Line]:
    outcome = "" if result.outcome == "ok" else status_words(result.outcome)
    notes = ": ".join(text for text in (outcome, result.sentence) if text)
    if not result.readings:
        yield Line(
            result.group, result.part, reached=_word(None if not outcome else result.outcome), notes=notes or "ok"
        )
        return
    for number, reading in enumerate(result.readings):
        what = result.part if reading.name == result.part else f"{result.part}: {reading.name}"
        yield _reading_line(result.group, what, reading, notes if number == 0 else "")


def _word(outcome: str | None) -> str:
    return "no" if outcome in ("failed", "out_of_memory") else ""


def _reading_line(group: Group, what: str, reading: Reading, notes: str) -> Line:
    asked = [
        f"{word} {quantity(bound, reading.unit)}"
        for word, bound in (("at least", reading.at_least), ("at most", reading.at_most))
        if bound is not None
    ]
    by = () if reading.expected_by in (None, "planner") else (f"({reading.expected_by})",)
    predicted, measured = _cell(reading.expected, reading.unit, *by), _cell(reading.value, reading.unit)
    reached = {None: "", True: "yes", False: "no"}[reading.reached]
    return Line(group, what, predicted, measured, _difference(reading.difference), " and ".join(asked), reached, notes)


def _run_lines(record: Record, rates: Rates) -> Iterator[Line]:
    what = f"{record.model_name} {record.label}"
    if not record.is_ok:
        status, reason = record.ending
        why = ": ".join(text for text in (status_words(status), reason) if text)
        yield Line("ladder", what, reached="no" if status in ("failed", "unproven") else "", notes=why)
        return
    prediction = own_prediction(record)
    peak = PEAK_MEMORY if ran_on_cuda(record) else TRACKED_PEAK
    name = "peak" if peak is PEAK_MEMORY else peak.title
    predicted = None if prediction is None else predicted_peak_bytes(record)
    yield _peak_line(f"{what}: {name}", predicted, predictable_peak_bytes(record), record)
    if (reserved := RESERVED_MEMORY.read(record)) is not None:
        told = None if prediction is None else prediction.reserved_bytes
        yield _bytes_line(f"{what}: reserved", told, reserved, compared=prediction_difference(record) is not None)
    if step_seconds(record) is not None:
        yield _time_line(what, record, rates)


def _peak_line(what: str, predicted: float | None, measured: float | None, record: Record) -> Line:
    alike = prediction_difference(record) is not None
    line = _bytes_line(what, predicted, measured, compared=alike)
    asked, reached = [], []
    if predicted is not None and measured and alike:
        asked.append(f"within {percent(PREDICTED_WITHIN)} %")
        reached.append(abs(predicted / measured - 1.0) <= PREDICTED_WITHIN)
    most = MOST_BYTES.get((record.model_name, record.label))
    if most is not None and measured is not None:
        asked.append(f"at most {quantity(most, 'bytes')}")
        reached.append(measured <= most)
    word = "" if not reached else "yes" if all(reached) else "no"
    busy = "the device was not idle" if began_busy(record) else ""
    error = "" if record.prediction_error is None else f"no prediction: {record.prediction_error}"
    apart = OTHER_STEPS if predicted is not None and measured and not alike else ""
    notes = "; ".join(text for text in (busy, error, apart) if text)
    return Line(line.group, line.what, line.predicted, line.measured, line.difference, ", ".join(asked), word, notes)


def _bytes_line(what: str, predicted: float | None, measured: float | None, *, compared: bool = True) -> Line:
    difference = predicted / measured - 1.0 if compared and predicted is not None and measured else None
    return Line("ladder", what, _cell(predicted, "bytes"), _cell(measured, "bytes"), _difference(difference))


def _time_line(what: str, record: Record, rates: Rates) -> Line:
    settings, prediction = record.train_settings, own_prediction(record)
    whole, updates = step_seconds(record), UPDATE_TIME.read(record)
    assert settings is not None and whole is not None
    seconds, rate = whole - (updates or 0.0), rates.flops(settings.dtype)
    predicted = None
    if prediction is not None and rate is not None and ran_on_cuda(record):
        predicted = (prediction.flops_per_step + prediction.recomputed_flops_per_step) / rate
    facts = [] if (tokens := SPEED.read(record)) is None else [f"{significant(tokens)} tokens/s"]
    if (mfu := UTILIZATION.read(record)) is not None:
        facts.append(f"MFU {percent(mfu)} %")
    if updates is not None:
        facts.append(f"whole step {significant(whole)} s, updates {percent(updates / whole)} % of it")
    if refreshes := REFRESH_TIME.read(record):
        facts.append(f"refreshes {significant(refreshes)} s in {steps_done(record)} steps")
    difference = None if predicted is None else predicted / seconds - 1.0
    return Line(
        "ladder",
        f"{what}: step less updates",
        _cell(predicted, "s"),
        _cell(seconds, "s"),
        _difference(difference),
        "" if difference is None else f"within {percent(TIME_WITHIN)} %",
        "" if difference is None else "yes" if abs(difference) <= TIME_WITHIN else "no",
        "; ".join(facts),
    )
