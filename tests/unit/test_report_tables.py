"""What the cells of the tables say, and that recorded text stays text."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.readings import model_flops_utilization, step_flops
from harness.record import Record
from harness.report.pages.markdown import markdown
from harness.report.pages.page import report_document, result_notes
from harness.report.pages.tables import common_settings, cost_table, label_table, missing_table, score_table
from harness.report.reading.summary import Summary, summarize
from harness.report.reading.words import NOT_SCORED
from harness.report.table import Column, Table, escape_markdown, markdown_table, one_line
from harness.report.units import GIB, gib, significant
from harness.settings import EvaluationSettings
from harness.store import Contents
from harness.suite import Suite

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))


def summary_of(suite: Suite, *records: Record) -> Summary:
    return summarize(suite, Contents(records))


def cells(table: Table, label: str) -> dict[str, str]:
    row = next(row for row in table.rows if str(row[0]).startswith(label))
    titles = (re.sub(r", n=\d+$", "", column.title) for column in table.columns)
    return dict(zip(titles, map(str, row), strict=True))


def test_a_score_cell_holds_mean_interval_and_n() -> None:
    run = make.make_record("lora")
    scores = (run.scores[0].model_copy(update={"value": 81 / 263, "n": 263}), *run.scores[1:])
    table = score_table(
        summary_of(make.make_suite(labels=("lora",)), run.model_copy(update={"scores": scores})), "tiny"
    )
    assert cells(table, "lora")["boolq"] == "30.8 [25.5, 36.6]"
    assert [column.title for column in table.columns[1:3]] == ["boolq, n=263", "piqa, n=40"]
    averages = ["average of 8 tasks", "average of 8 tasks, acc_norm where a task has it"]
    assert list(cells(table, "lora")) == ["label", *make.TASKS, *averages]


def test_the_second_average_takes_acc_norm_where_a_task_has_it() -> None:
    run = make.make_record("lora")
    plain = {score.task: score.value for score in run.scores if score.metric == "acc"}
    normalised = {score.task: score.value for score in run.scores if score.metric == "acc_norm"}
    assert set(normalised) == {"hellaswag"}
    row = cells(score_table(summary_of(make.make_suite(labels=("lora",)), run), "tiny"), "lora")
    for values, title in (
        (plain, "average of 8 tasks"),
        (plain | normalised, "average of 8 tasks, acc_norm where a task has it"),
    ):
        assert row[title].startswith(f"{100 * sum(values.values()) / len(values):.1f} ")
    without = run.model_copy(update={"scores": tuple(score for score in run.scores if score.metric == "acc")})
    table = score_table(summary_of(make.make_suite(labels=("lora",)), without), "tiny")
    assert "acc_norm" not in str(table)


def test_a_metric_through_another_filter_stands_beside_it_and_enters_no_average() -> None:
    run = make.make_record("lora")
    (first, *_) = run.scores
    strict = first.model_copy(update={"task": "gsm8k", "metric": "exact_match,strict-match", "value": 0.25})
    flexible = strict.model_copy(update={"metric": "exact_match,flexible-extract", "value": 0.5, "headline": False})
    suite = make.make_suite(labels=("lora",))
    suite = suite.model_copy(update={"evaluation": suite.evaluation.model_copy(update={"tasks": ("gsm8k",)})})
    spec = run.spec.model_copy(update={"evaluation": suite.evaluation})
    record = run.model_copy(update={"scores": (strict, flexible), "spec": spec})
    row = cells(score_table(summary_of(suite, record), "tiny"), "lora")
    assert row["gsm8k exact_match,strict-match"].startswith("25.0 ")
    assert row["gsm8k exact_match,flexible-extract"].startswith("50.0 ")
    assert row["average of 1 task"].startswith("25.0 ")


def test_seeds_are_counted_and_missing_ones_named() -> None:
    suite = make.make_suite(labels=("lora",), seeds=(1, 2, 3))
    records = [make.make_record("lora", suite=suite, seed=seed) for seed in (1, 2)]
    failed = make.make_record("lora", suite=suite, seed=3, status="out_of_memory", reason="x")
    row = score_table(summary_of(suite, *records, failed), "tiny").rows[0]
    assert row[0] == "lora (2 of 3 seeds; out of memory)"
    table = score_table(summary_of(suite, *records, failed), "tiny")
    assert [column.title for column in table.columns[1:3]] == ["seeds", "boolq, n=40"]
    assert str(row[1]) == "2"
    assert not str(row[2]).endswith(")")


@pytest.mark.parametrize(
    ("status", "words"), [("out_of_memory", "out of memory"), ("refused", "refused"), ("timed_out", "timed out")]
)
def test_a_row_without_a_result_has_its_status_in_every_cell(status: str, words: str) -> None:
    summary = summary_of(make.make_suite(labels=("lora",)), make.make_record("lora", status=status, reason="why"))
    for table in (score_table(summary, "tiny"), cost_table(summary, "tiny")):
        assert set(table.rows[0][1:]) == {words}
    missing = missing_table(summary)
    assert missing is not None
    assert missing.rows == (("tiny", "lora", "1", words, "why"),)


def test_an_average_without_all_its_tasks_is_none() -> None:
    run = make.make_record("lora")
    partial = run.model_copy(update={"scores": run.scores[1:]})
    row = cells(score_table(summary_of(make.make_suite(labels=("lora",)), partial), "tiny"), "lora")
    assert (row["boolq"], row["average of 8 tasks"]) == (NOT_SCORED, NOT_SCORED)
    assert re.fullmatch(r"\d+\.\d \[.*\]", row["piqa"])


def test_n_stands_in_each_cell_of_a_column_where_labels_differ_in_it() -> None:
    suite = make.make_suite(labels=("full", "lora"), seeds=(1, 2))
    full = [make.make_record("full", suite=suite, seed=seed, minute=seed) for seed in (1, 2)]
    lora = make.make_record("lora", suite=suite, minute=5)
    few = lora.model_copy(update={"scores": (lora.scores[0].model_copy(update={"n": 20}), *lora.scores[1:])})
    table = score_table(summary_of(suite, *full, few), "tiny")
    assert [column.title for column in table.columns[1:4]] == ["seeds", "boolq", "piqa, n=40"]
    assert [str(row[1]) for row in table.rows] == ["2", "1"]
    assert [str(row[2]).rpartition(" ")[2] for row in table.rows] == ["(n=40)", "(n=20)"]


def test_without_cuda_the_peak_is_not_measured_and_the_hosts_stands_apart() -> None:
    summary = summary_of(make.make_suite(labels=("base", "full")), make.make_record("base"), make.make_record("full"))
    row = cells(cost_table(summary, "tiny"), "full")
    assert "peak memory (GiB)" not in row
    assert float(row["host peak RSS (GiB)"]) == pytest.approx(1.9, abs=0.1)
    assert cost_table(summary, "tiny").rows[0][0] == "base (no training)"
    assert set(cost_table(summary, "tiny").rows[0][2:]) == {"–"}


def test_with_cuda_the_peak_is_the_largest_over_the_seeds_in_gib() -> None:
    suite = make.make_suite(labels=("full",), seeds=(1, 2))
    one, two = (make.make_record("full", suite=suite, seed=seed, environment=make.CUDA) for seed in (1, 2))
    phases = tuple(
        phase.model_copy(update={"allocated_peak_bytes": 21 * GIB}) if phase.name == "train" else phase
        for phase in two.phases
    )
    summary = summary_of(suite, one, two.model_copy(update={"phases": phases}))
    row = cells(cost_table(summary, "tiny"), "full")
    assert row["peak memory (GiB)"] == "21.0"
    assert row["optimizer state, peak (GiB)"] == "1.00"
    assert row["trainable parameters ever"] == "135 M (100%)"


def memory_cells(record: Record) -> tuple[str, ...]:
    row = cells(cost_table(summary_of(make.make_suite(labels=("full",)), record), "tiny"), "full")
    names = ("tracked peak (GiB)", "predicted peak (GiB)", "predicted against measured (%)")
    return tuple(row.get(name, "absent") for name in names)


def test_a_column_stays_for_all_rows_when_one_has_a_value_and_for_none_that_has() -> None:
    suite = make.make_suite(labels=("full", "lora"))
    lora = make.with_memory(make.make_record("lora", suite=suite, minute=1))
    both = summary_of(suite, make.make_record("full", suite=suite), lora)
    assert cells(cost_table(both, "tiny"), "full")["tracked peak (GiB)"] == "–"
    failed = make.make_record("full", suite=suite, status="failed", reason="why")
    none = cells(cost_table(summary_of(suite, failed), "tiny"), "full")
    assert none["tracked peak (GiB)"] == none["peak memory (GiB)"] == "failed"


def test_the_difference_of_prediction_and_measurement_needs_both() -> None:
    record = make.make_record("full")
    assert memory_cells(make.with_memory(record)) == ("2.42", "2.45", "+1.6")
    assert memory_cells(make.with_memory(record, predicted=False)) == ("2.42", "absent", "absent")
    assert memory_cells(make.with_memory(record, tracked=False)) == ("absent", "2.45", "absent")
    assert memory_cells(record) == ("absent", "absent", "absent")


def test_a_prediction_for_another_kind_of_device_is_not_compared() -> None:
    record = make.with_memory(make.make_record("full"))
    assert record.prediction is not None
    other = record.model_copy(update={"prediction": make.make_prediction("full", "cuda")})
    assert memory_cells(other) == ("2.42", "2.45", "absent")


def test_on_cuda_the_prediction_is_compared_with_the_allocated_peak_of_all_steps() -> None:
    record = make.with_memory(make.make_record("full", environment=make.CUDA), tracked=False)
    assert memory_cells(record) == ("absent", "2.45", "+1.6")
    resumed = tuple(  # the phase saw the last steps only; the curve knows the others
        phase.model_copy(update={"allocated_peak_bytes": GIB}) if phase.name == "train" else phase
        for phase in record.phases
    )
    assert memory_cells(record.model_copy(update={"phases": resumed})) == ("absent", "2.45", "+1.6")


def test_a_label_whose_run_began_on_a_busy_device_is_marked() -> None:
    busy = make.CUDA.model_copy(update={"device_busy": "3 of 80 bytes in use before the run"})
    records = [make.make_record("full", environment=make.CUDA), make.make_record("lora", environment=busy, minute=1)]
    summary = summary_of(make.make_suite(labels=("full", "lora")), *records)
    assert [row[0] for row in cost_table(summary, "tiny").rows] == ["full", "lora †"]
    assert any(
        note.startswith("† The device was not idle") and note.endswith(": lora.") for note in result_notes(summary)
    )


def test_a_step_time_over_less_than_a_refresh_cycle_is_marked() -> None:
    summary = summary_of(
        make.make_suite(labels=("galore", "lora")), make.make_record("galore"), make.make_record("lora")
    )
    assert cells(cost_table(summary, "tiny"), "galore")["step time, median (s)"] == "0.500*"
    assert cells(cost_table(summary, "tiny"), "lora")["step time, median (s)"] == "0.500"


def test_labels_are_explained_by_their_settings() -> None:
    train = {**make.TRAIN, "learning_rate": 3e-4}
    config = {"rank": 16, "update_in_backward": False, "own": True}
    changed = {"train": train, "config": config}
    records = [make.make_record("lora"), make.make_record("full", minute=1, spec=changed)]
    summary = summary_of(make.make_suite(labels=("full", "lora")), *records)
    assert cells(label_table(summary), "full")["training, where labels differ"] == "learning_rate = 0.0003"
    assert cells(label_table(summary), "lora")["settings, where labels differ"] == "rank = 8"
    assert cells(label_table(summary), "full")["settings, where labels differ"] == "rank = 16, own = true"
    assert common_settings(summary) == {"update_in_backward": False}
    page = markdown(report_document(summary, {}), Path())
    assert page.count("update_in_backward") == 1


def test_a_model_without_records_is_one_row_of_the_missing() -> None:
    suite = make.make_suite(models=("tiny", "big"), labels=("lora",))
    missing = missing_table(summary_of(suite, make.make_record("lora", suite=suite)))
    assert missing is not None
    assert missing.rows == (("big", "all", "all", "not run", "no record yet"),)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.00999999, "0.0100"), (0, "0"), (1234567.0, "1234567"), (99.96, "100"), (-0.5, "-0.500"), (float("nan"), "nan")],
)
def test_numbers_keep_three_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


def test_missing_bytes_are_no_number() -> None:
    assert gib(None) == "–"
    assert gib(3 * GIB // 2) == "1.50"


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("a|b", "a\\|b"),
        ("`rm`", "\\`rm\\`"),
        ("two\nlines\r\n\tthree", "two lines three"),
        ("<script>", "&lt;script>"),
        ("**bold** _it_ snake_case", "\\*\\*bold\\*\\* \\_it\\_ snake_case"),
        ("[x](http://h.invalid)", "\\[x\\](http://h.invalid)"),
        ("owlore[rank=64]", "owlore[rank=64]"),
        ("> quote", "\\> quote"),
        ("$x$ # @someone &amp;", "\\$x\\$ \\# &#64;someone &amp;amp;"),
        ("\x1b[31m\u202ered\x00", "\\[31mred"),
    ],
)
def test_recorded_text_stays_text_in_markdown(text: str, markdown: str) -> None:
    assert escape_markdown(text) == markdown


def test_text_is_cut_with_an_ellipsis() -> None:
    assert one_line("abcdef", 4) == "abc…"
    assert one_line("abcd", 4) == "abcd"


def test_a_markdown_table_keeps_its_columns_whatever_the_text() -> None:
    table = Table((Column("a", "left"), Column("b|c")), ((make.HOSTILE, "1"), ("x", "2")))
    lines = markdown_table(table).splitlines()
    assert len(lines) == 4
    assert {line.replace("\\|", "").count("|") for line in lines} == {3}
    assert len({len(line) for line in lines}) == 1


def test_a_suite_without_tasks_has_cost_alone() -> None:
    suite = make.make_suite(labels=("full",), evaluation=EvaluationSettings(tasks=()))
    run = make.make_record("full")
    spec = run.spec.model_copy(update={"evaluation": suite.evaluation})
    summary = summary_of(suite, run.model_copy(update={"spec": spec, "scores": ()}))
    assert summary.columns == ()
    row = cells(cost_table(summary, "tiny"), "full")
    assert "average" not in row
    assert run.train.step_seconds_mean is not None
    tokens = sum(run.train.curve.tokens) / len(run.train.curve.tokens)
    assert row["tokens a second"] == significant(tokens / run.train.step_seconds_mean)
    page = markdown(report_document(summary, {}), Path())
    for absent in ("Scores:", "average", "tasks ="):
        assert absent not in page
    assert "evaluation: none." in page


def test_mfu_is_the_operations_needed_over_time_and_the_stated_peak() -> None:
    record = make.make_record("lora", prediction=make.make_prediction("lora"))
    assert record.train is not None
    assert record.spec.train is not None
    settings = record.spec.train
    planned = settings.batch_size * settings.gradient_accumulation_steps * settings.sequence_length
    curve = record.train.curve.model_copy(update={"tokens": (planned // 2,) * len(record.train.curve.tokens)})
    gpu = record.environment.model_copy(update={"device_type": "cuda", "device_name": "NVIDIA H100 80GB HBM3"})
    train = record.train.model_copy(update={"curve": curve, "step_seconds_mean": 0.5})
    timed = record.model_copy(
        update={
            "train": train,
            "environment": gpu,
            "spec": record.spec.model_copy(update={"train": settings.model_copy(update={"dtype": "bf16"})}),
        }
    )
    assert timed.prediction is not None
    assert step_flops(timed) == pytest.approx(timed.prediction.flops_per_step / 2, rel=0.05)
    expected = step_flops(timed) / 0.5 / 989.5e12  # type: ignore[operator]
    assert model_flops_utilization(timed) == pytest.approx(expected)
    unknown = gpu.model_copy(update={"device_name": "a device of tomorrow"})
    assert model_flops_utilization(timed.model_copy(update={"environment": unknown})) is None
    assert model_flops_utilization(timed.model_copy(update={"prediction": None})) is None
