"""The table of a calibration: predicted beside measured, asked for and reached, on CUDA and on a CPU."""

from __future__ import annotations

from typing import Any

import pytest

from harness.calibration_log import SUITES, Reading
from harness.device_profile import Rates
from harness.record import Record
from harness.report.calibration import MOST_BYTES, Line, calibration_lines, calibration_tables, quantity
from harness.report.units import NOTHING
from harness.suite import labels_of, load_suite
from tests.unit.fixtures_report import factory as make
from tests.unit.test_calibration_log import result

GB = 10**9
BF16 = Rates(bf16_flops=1e13)


def cuda_run(peak: float, predicted: float, label: str = "owlore-1x512", **changes: Any) -> Record:
    """Return a run on CUDA of peaks in GB, half a second a step, 512 tokens, 10^12 + 2 10^12 operations."""
    train = make.make_train(label, 1).model_copy(
        update={"step_seconds_mean": 0.5, "optimizer_seconds_mean": 0.1, "refresh_seconds": 2.5}
    )
    spec = {"train": {**make.TRAIN, "dtype": "bf16"}}
    record = make.make_record(label, model="llama2-7b", environment=make.CUDA, spec=spec)
    phases = tuple(
        phase.model_copy(
            update={"allocated_peak_bytes": int(peak * GB), "reserved_peak_bytes": int((peak + 1) * GB)}
            if phase.name == "train"
            else {}
        )
        for phase in record.phases
    )
    prediction = make.make_prediction("owlore", "cuda").model_copy(
        update={
            "peak_bytes": int(predicted * GB),
            "reserved_bytes": int((peak + 1) * GB),
            "recomputed_flops_per_step": 2 * 10**12,
        }
    )
    return record.model_copy(update={"train": train, "phases": phases, "prediction": prediction, **changes})


def lines_of(record: Record, rates: Rates = BF16) -> dict[str, Line]:
    return {line.what.rpartition(": ")[2]: line for line in calibration_lines([], [record], rates)}


@pytest.mark.parametrize(
    ("peak", "predicted", "label", "reached"),
    [
        (10.0, 10.2, "full-1x512", "yes"),
        (10.0, 10.4, "full-1x512", "no"),
        (10.0, 9.6, "full-1x512", "no"),
        (15.5, 15.5, "owlore-1x512", "yes"),
        (15.6, 15.6, "owlore-1x512", "no"),
        (17.4, 17.3, "owlore-offload-16x512", "yes"),
        (17.6, 17.6, "owlore-offload-16x512", "no"),
    ],
)
def test_a_peak_is_held_against_its_prediction_and_what_is_asked(
    peak: float, predicted: float, label: str, reached: str
) -> None:
    line = lines_of(cuda_run(peak, predicted, label))["peak"]
    assert line.measured == f"{peak:.1f} GB"
    assert line.reached == reached
    assert ("at most" in line.asked) is (("llama2-7b", label) in MOST_BYTES)


def test_a_step_time_is_held_against_its_operations_at_the_measured_rate() -> None:
    line = lines_of(cuda_run(10, 10))["step time"]
    assert (line.predicted, line.measured, line.difference, line.reached) == ("0.300 s", "0.500 s", "-40.0", "no")
    assert "updates 20.0 % of the step" in line.notes
    assert "1024 tokens/s" in line.notes
    assert "refreshes 2.50 s in 30 steps" in line.notes
    assert lines_of(cuda_run(10, 10), Rates(bf16_flops=6.2e12))["step time"].reached == "yes"
    unknown = lines_of(cuda_run(10, 10), Rates(fp32_flops=1e13))["step time"]
    assert (unknown.predicted, unknown.reached) == (NOTHING, "")


def test_what_the_allocator_kept_stands_beside_what_it_would_keep() -> None:
    line = lines_of(cuda_run(10, 10))["reserved"]
    assert (line.predicted, line.measured, line.difference) == ("11.0 GB", "11.0 GB", "+0.0")


def test_on_a_cpu_the_tracked_peak_is_compared_and_never_called_peak_memory() -> None:
    record = make.with_memory(make.make_record("lora"))
    found = lines_of(record)
    assert set(found) == {"tracked peak", "step time"}
    assert found["tracked peak"].reached == "yes"
    assert found["step time"].predicted == NOTHING


def test_a_prediction_for_another_kind_of_device_is_not_compared() -> None:
    record = make.with_memory(make.make_record("lora"))
    line = lines_of(record.model_copy(update={"prediction": make.make_prediction("lora", "cuda")}))["tracked peak"]
    assert (line.predicted, line.difference, line.reached) == (NOTHING, NOTHING, "")


def test_a_run_without_a_result_says_why() -> None:
    record = make.make_record("full", status="out_of_memory", reason="needs 9 GiB, has 8")
    (line,) = calibration_lines([], [record], BF16)
    assert (line.what, line.notes, line.reached) == ("tiny full", "out of memory: needs 9 GiB, has 8", "")
    (failed,) = calibration_lines([], [make.make_record("full", status="failed", reason="why")], BF16)
    assert failed.reached == "no"


def test_parts_and_what_was_not_run_stand_in_the_order_of_their_groups() -> None:
    parts = [
        result("context", outcome="failed", sentence="why"),
        result("copy", Reading(name="copy", value=3e12, unit="bytes/s"), group="checks"),
    ]
    lines = calibration_lines(parts, [], BF16, [("ladder", "llama2-7b full", "not run: 41.0 GB predicted")])
    assert [(line.what, line.reached) for line in lines] == [("copy", ""), ("context", "no"), ("llama2-7b full", "")]
    assert lines[1].notes == "failed: why"
    tables = dict(calibration_tables(lines))
    assert [column.title for column in tables["Checks"].columns] == ["what", "measured"]
    assert tables["Runs on random weights"].rows == (("llama2-7b full", "not run: 41.0 GB predicted"),)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (17.5e9, "bytes", "17.5 GB"),
        (999.0, "bytes", "999 B"),
        (6.7e14, "FLOP/s", "670 TFLOP/s"),
        (1e-5, "relative", "1.0e-05"),
        (0.0, "relative", "0"),
        (0.853, "ratio", "0.853"),
        (516.0, "B/head/token", "516 B/head/token"),
    ],
)
def test_quantities_are_decimal(value: float, unit: Any, text: str) -> None:
    assert quantity(value, unit) == text


def test_what_is_asked_of_a_peak_is_asked_of_runs_of_the_suite() -> None:
    suite = load_suite(SUITES["full"])
    assert all(label in labels_of(suite, model) for model, label in MOST_BYTES)
