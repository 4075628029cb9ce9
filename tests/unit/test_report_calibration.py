"""What a calibration's table says: differences, what was asked for and whether it is reached, failures as lines."""

from __future__ import annotations

from typing import Any

import pytest

from harness.calibration_log import SUITES, Log
from harness.device_profile import Rates
from harness.expansion import load_suite
from harness.record import Record
from harness.report.pages.calibration import (
    MOST_BYTES,
    Line,
    calibration_blocks,
    calibration_lines,
    calibration_tables,
    quantity,
)
from harness.report.units import NOTHING
from harness.suite import labels_of
from tests.comparing import make
from tests.unit.test_calibration_log import reading, result

PEAK = 10 * 10**9


def record(label: str = "full", *, measured: int = PEAK, predicted: int | None = PEAK, **changes: Any) -> Record:
    """Return a run on CUDA with this measured and this predicted peak."""
    environment = changes.pop("environment", make.CUDA)
    one = make.make_record(label, environment=environment, **changes)
    told = (
        None
        if predicted is None
        else make.make_prediction("full", "cuda").model_copy(
            update={"peak_bytes": predicted, "flops_per_step": 6 * 10**14, "recomputed_flops_per_step": 2 * 10**14}
        )
    )
    phases = tuple(phase.model_copy(update={"allocated_peak_bytes": measured}) for phase in one.phases)
    return one.model_copy(update={"phases": phases, "prediction": told})


def line(lines: tuple[Line, ...], what: str) -> Line:
    return next(line for line in lines if what in line.what)


@pytest.mark.parametrize(
    ("predicted", "difference", "reached"),
    [(PEAK, "+0.0", "yes"), (int(1.029 * PEAK), "+2.9", "yes"), (int(0.969 * PEAK), "-3.1", "no")],
)
def test_a_peak_is_asked_to_be_within_3_percent(predicted: int, difference: str, reached: str) -> None:
    found = line(calibration_lines((), [record(predicted=predicted)], Rates()), ": peak")
    assert (str(found.difference), found.asked, found.reached) == (difference, "within 3.0 %", reached)
    assert str(found.measured) == "10.0 GB"


@pytest.mark.parametrize(("measured", "reached"), [(15_400_000_000, "yes"), (15_600_000_000, "no")])
def test_the_missions_run_is_asked_to_need_no_more_than_15_gb_and_a_half(measured: int, reached: str) -> None:
    one = record("owlore-1x512", model="llama2-7b", measured=measured, predicted=measured)
    found = line(calibration_lines((), [one], Rates()), ": peak")
    assert found.asked == "within 3.0 %, at most 15.5 GB"
    assert found.reached == reached


def test_a_run_without_a_prediction_says_why_and_reaches_nothing() -> None:
    one = record(predicted=None, prediction_error="it cannot run on fake tensors")
    found = line(calibration_lines((), [one], Rates()), ": peak")
    assert (found.predicted, found.reached) == (NOTHING, "")
    assert found.notes == "no prediction: it cannot run on fake tensors"


@pytest.mark.parametrize(("seconds", "reached"), [(1.0, "yes"), (1.12, "no")])
def test_a_step_time_is_predicted_from_all_operations_at_the_measured_rate(seconds: float, reached: str) -> None:
    one = record()
    assert one.train is not None and one.spec.train is not None
    train = one.train.model_copy(update={"step_seconds_mean": seconds})
    rates = Rates.model_validate({f"{one.spec.train.dtype}_flops": 8e14})
    found = line(calibration_lines((), [one.model_copy(update={"train": train})], rates), "step less updates")
    assert (str(found.predicted), found.reached) == ("1.00 s", reached)
    assert line(calibration_lines((), [one], Rates()), "step less updates").predicted == NOTHING


def test_what_failed_and_what_was_not_asked_are_lines() -> None:
    answers = [
        result("a", outcome="failed", sentence="why a", group="checks"),
        result("b", outcome="skipped", sentence="why b"),
        result("c", reading(4.0, expected=3.0, expected_by="planner", at_most=3.5)),
    ]
    failed = make.make_record("lora", status="failed", reason="why lora", environment=make.CUDA)
    lines = calibration_lines(answers, [failed], Rates(), [("ladder", "llama2-7b full", "not run: too large")])
    assert [(one.what, one.reached, one.notes) for one in lines] == [
        ("a", "no", "failed: why a"),
        ("b", "", "skipped: why b"),
        ("c: n", "no", ""),
        ("tiny lora", "no", "failed: why lora"),
        ("llama2-7b full", "", "not run: too large"),
    ]
    assert tuple(map(str, lines[2].cells[1:5])) == ("3.00 B", "4.00 B", "-25.0", "at most 3.50 B")


def test_a_page_of_another_suite_has_no_calibration() -> None:
    from harness.report.reading.summary import summarize

    suite, contents = make.golden()
    assert calibration_blocks(summarize(suite, contents), Log((result("a"),))) == []


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (17_500_000_000.0, "bytes", "17.5 GB"),
        (3.2e12, "bytes/s", "3.20 TB/s"),
        (7.9e14, "FLOP/s", "790 TFLOP/s"),
        (0.0, "bytes", "0 B"),
        (1.5e-7, "relative", "1.5e-07"),
        (1.25, "ratio", "1.25"),
        (4.0, "B/head/token", "4.00 B/head/token"),
    ],
)
def test_quantities_are_decimal(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def lines_of(record: Record) -> dict[str, Line]:
    return {line.what.rpartition(": ")[2]: line for line in calibration_lines([], [record], Rates())}


def test_on_a_cpu_the_tracked_peak_is_compared_and_never_called_peak_memory() -> None:
    record = make.with_memory(make.make_record("lora"))
    found = lines_of(record)
    assert set(found) == {"tracked peak", "step less updates"}
    assert found["tracked peak"].reached == "yes"
    assert found["step less updates"].predicted == NOTHING


def test_a_prediction_for_another_kind_of_device_is_not_compared() -> None:
    record = make.with_memory(make.make_record("lora"))
    line = lines_of(record.model_copy(update={"prediction": make.make_prediction("lora", "cuda")}))["tracked peak"]
    assert (line.predicted, line.difference, line.reached) == (NOTHING, NOTHING, "")


def test_a_peak_of_other_steps_than_the_tracked_ones_is_not_compared() -> None:
    record = make.with_memory(make.make_record("lora"))
    later = record.prediction.model_copy(update={"peak_step": record.train.num_steps - 1})
    found = lines_of(record.model_copy(update={"prediction": later}))["tracked peak"]
    assert found.predicted != NOTHING != found.measured
    assert (found.difference, found.asked, found.reached) == (NOTHING, "", "")
    assert found.notes == "measured in other steps or rows than the predicted ones"


def test_what_is_asked_of_a_peak_is_asked_of_runs_of_the_suite() -> None:
    suite = load_suite(SUITES["full"])
    assert all(label in labels_of(suite, model) for model, label in MOST_BYTES)


def test_columns_in_which_nothing_stands_are_left_out() -> None:
    lines = calibration_lines(
        [result("copy", reading(3e12, unit="bytes/s"), group="checks")], [], Rates(), [("ladder", "x", "not run: why")]
    )
    tables = dict(calibration_tables(lines))
    assert [column.title for column in tables["Checks"].columns] == ["what", "measured"]
    assert tables["Runs on random weights"].rows == (("x", "not run: why"),)
