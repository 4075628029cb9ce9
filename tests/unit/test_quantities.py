"""The table of quantities: a row is all that a new quantity needs, and each is named once and documented."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from harness import cli, quantities
from harness.quantity import Judged, Quantity, Shown
from harness.readings import prediction_difference, tokens_per_second
from harness.record import Record
from harness.report.comparing.cells import Cell
from harness.report.comparing.history import history, history_rows
from harness.report.comparing.paper import Published
from harness.report.comparing.paper import compare as compare_paper
from harness.report.comparing.tolerances import usual_text
from harness.report.pages.costs import heading, shown_quantities
from harness.report.pages.html import html_page
from harness.report.pages.latex import latex
from harness.report.pages.markdown import markdown
from harness.report.pages.page import report_document
from harness.report.pages.tables import cost_table
from harness.report.reading.estimates import over_seeds
from harness.report.reading.summary import Summary, summarize
from harness.report.table import markdown_table
from harness.report.units import UNITS, bare, with_unit
from harness.report.write import terminal_table, write_report
from harness.store import Contents, Store
from tests.comparing import NEW, compare, make

ROOT = Path(__file__).parents[2]
PLANTED = Quantity(
    name="planted_bytes",
    title="planted size",
    unit="bytes",
    read=lambda record: (5 if record.environment == NEW else 3) * make.GIB if record.train else None,
    definition="what a test planted.",
)
RECORDS = [make.make_record("base"), make.make_record("lora", minute=1)]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Quantity:
    monkeypatch.setattr(quantities, "ALL", (*quantities.ALL, PLANTED))
    return PLANTED


def summary_of(*records: Record) -> Summary:
    return summarize(make.make_suite(labels=("base", "lora")), Contents(records))


@pytest.mark.usefixtures("planted")
def test_a_row_is_a_column_of_every_page_with_its_definition() -> None:
    document = report_document(summary_of(*RECORDS), {})
    tables = latex(document, Path())
    pages = {
        "Markdown": markdown(document, Path()),
        "LaTeX": tables["report.tex"] + "\n".join(headings_of(tables["tables/tiny-cost.tex"])),
        "HTML": html_page(document),
    }
    for page in pages.values():
        assert "planted size (GiB)" in page
        assert "planted size: what a test planted." in page.replace("</dt><dd>", ": ")
    assert f'data-key="{3 * make.GIB}.0">3.00' in pages["HTML"]
    row = next(line for line in pages["Markdown"].splitlines() if line.startswith("| lora") and "M (" in line)
    assert row.split("|")[-2].strip() == "3.00"
    base = next(line for line in pages["Markdown"].splitlines() if line.startswith("| base") and "no training" in line)
    assert base.split("|")[-2].strip() == "–"
    lora = next(line for line in tables["tables/tiny-cost.tex"].splitlines() if line.startswith("lora"))
    assert "& 3.00 " in lora


def headings_of(tabular: str) -> list[str]:
    """Return the headings of a tabular, whose lines are its first rows."""
    rows = tabular.partition("\\toprule\n")[2].partition("\\midrule")[0].replace(" \\\\", "").splitlines()
    return [
        " ".join(part.strip() for part in cells).strip() for cells in zip(*(r.split("&") for r in rows), strict=True)
    ]


@pytest.mark.usefixtures("planted")
def test_a_row_is_on_the_terminal() -> None:
    page = io.StringIO()
    terminal_table(make.make_suite(labels=("base", "lora")), Contents(tuple(RECORDS)), Console(file=page, width=118))
    lines = page.getvalue().splitlines()
    (place,) = [i for i, line in enumerate(lines) if line.rstrip().endswith("planted")]
    assert lines[place + 1].rstrip().endswith("|size (GiB)")
    assert [line.rstrip()[-6:].strip() for line in lines[place + 3 : place + 5]] == ["–", "3.00"]


@pytest.mark.usefixtures("planted")
def test_a_row_is_a_number_in_json_and_csv(tmp_path: Path) -> None:
    write_report(make.make_suite(labels=("base", "lora")), Contents(tuple(RECORDS)), tmp_path, ["csv", "json"])
    value = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [entry["cost"]["planted_bytes"] for entry in value["labels"]] == [None, 3 * make.GIB]
    with (tmp_path / "runs.csv").open(encoding="utf-8", newline="") as file:
        assert [row["planted_bytes"] for row in csv.DictReader(file)] == ["", str(3 * make.GIB)]


@pytest.mark.usefixtures("planted")
def test_a_row_is_judged_followed_and_held_against_papers() -> None:
    new = make.make_record("lora", minute=9, environment=NEW)
    (cell,) = [c for c in compare(RECORDS, [new], "planted_bytes:3%").cells if c.metric == "planted_bytes"]
    assert (cell.title, cell.verdict, cell.change) == ("planted size", "worse", pytest.approx(2 / 3))
    (row,) = history_rows(history([*RECORDS, new], "planted_bytes"), "planted_bytes")
    assert (row["n"], row["mean"]) == ("2", "4 GiB")
    known = {"paper": "P", "version": "v1", "table": "T", "model": "M", "method": "L", "metric": "x", "unit": "GB"}
    ours = {"suite": "quick", "our_model": "tiny", "our_label": "lora", "our_quantity": "planted_bytes"}
    number = Published.model_validate({**known, **ours, "value": 3.2, "source": "s", "tolerance_percent": 2.0})
    (found,) = compare_paper((number,), {"quick": summary_of(*RECORDS)})
    assert (found.ours, found.verdict) == (pytest.approx(3 * make.GIB / 1e9), "within tolerance")


@pytest.mark.usefixtures("planted")
def test_a_row_is_shown_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path).append(RECORDS[1])
    assert cli.main(["show", RECORDS[1].run_id, "--results", str(tmp_path)]) == 0
    assert "planted size 3 GiB" in " ".join(capsys.readouterr().out.split())


def test_nothing_is_called_by_two_names_or_two_things_by_one() -> None:
    for names in (
        [quantity.name for quantity in quantities.ALL],
        [quantity.title for quantity in quantities.ALL],
        [quantity.metric for quantity in quantities.ALL],
        [quantity.column_of_runs for quantity in quantities.ALL],
        [heading(quantity) for quantity in quantities.ALL],
    ):
        assert len(set(names)) == len(names)
    for quantity in quantities.ALL:
        assert quantity.definition.endswith(".")
        assert ("largest over the seeds" in quantity.definition) == (quantity.over_seeds == "largest")


def test_a_value_before_training_is_shown_with_the_one_after() -> None:
    firsts = {id(quantity.before) for quantity in quantities.ALL if quantity.before is not None}
    hidden = {id(quantity) for quantity in quantities.ALL if not quantity.shown.places & {"table", "terminal", "show"}}
    assert firsts <= hidden


@pytest.mark.parametrize(
    ("unit", "value", "below", "alone"),
    [
        ("bytes", 3 * 2**29, "1.50", "1.5 GiB"),
        ("seconds", 0.12345, "0.123", "0.1235 s"),
        ("nats", 2.16444, "2.164", "2.164 nats"),
        ("tokens/s", 951.23, "951", "951.2 tokens/s"),
        ("parameters", 5e6, "5.00", "5.000 M"),
        ("FLOP", 2e12, "2.00", "2.000 TFLOP"),
        ("fraction", 0.4567, "45.7", "45.67%"),
        ("difference", 0.0159, "+1.6", "+1.59%"),
    ],
)
def test_each_unit_is_written_under_a_heading_and_alone(unit: str, value: float, below: str, alone: str) -> None:
    assert unit in UNITS
    assert bare(value, unit) == below  # type: ignore[arg-type]
    assert with_unit(value, unit) == alone  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("over", "of_any_run", "expected"), [("largest", False, 4.0), ("mean", False, 3.0), ("farthest", True, -9.0)]
)
def test_runs_become_one_value_as_the_quantity_says(over: str, of_any_run: bool, expected: float) -> None:
    suite = make.make_suite(labels=("lora",), seeds=(1, 2, 3))
    records = [make.make_record("lora", suite=suite, seed=seed) for seed in (1, 2)]
    records.append(make.make_record("lora", suite=suite, seed=3, status="failed", reason="x"))
    values = {1: 2.0, 2: 4.0, 3: -9.0}
    quantity = Quantity(
        name="x",
        title="x",
        unit="seconds",
        read=lambda record: values[record.spec.seed],
        over_seeds=over,  # type: ignore[arg-type]
        of_any_run=of_any_run,
        definition="x.",
    )
    (row,) = summarize(suite, Contents(tuple(records))).rows
    assert over_seeds(row, quantity) == expected


def test_a_mean_of_which_a_seed_has_no_value_is_none() -> None:
    suite = make.make_suite(labels=("lora",), seeds=(1, 2))
    records = [make.make_record("lora", suite=suite, seed=seed) for seed in (1, 2)]
    values = {1: 2.0, 2: None}
    quantity = Quantity(
        name="x", title="x", unit="seconds", read=lambda record: values[record.spec.seed], definition="x."
    )
    (row,) = summarize(suite, Contents(tuple(records))).rows
    assert over_seeds(row, quantity) is None


def test_a_column_that_no_run_fills_is_left_out_where_it_is_optional() -> None:
    def titles(record: Record) -> list[str]:
        return [column.title for column in cost_table(summary_of(record), "tiny").columns]

    record = RECORDS[1]
    assert record.train is not None
    refreshed = record.model_copy(update={"train": record.train.model_copy(update={"refresh_seconds": 1.5})})
    assert "projector refreshes (s)" not in titles(record)
    assert "projector refreshes (s)" in titles(refreshed)


def with_reserved(record: Record) -> Record:
    """A run on CUDA with every optional figure."""
    record = make.with_memory(record)
    assert record.train is not None
    phases = tuple(
        phase.model_copy(update={"reserved_peak_bytes": 9 * make.GIB}) if phase.name == "train" else phase
        for phase in record.phases
    )
    updates = {"refresh_seconds": 1.5, "optimizer_seconds_mean": 0.1, "general_loss_before": 3.0}
    train = record.train.model_copy(update={**updates, "general_loss_after": 3.1})
    return record.model_copy(update={"train": train, "phases": phases})


def test_what_a_table_shows_is_defined_below_it_and_on_the_terminal_too() -> None:
    record = with_reserved(make.make_record("lora", environment=make.CUDA))
    summary = summary_of(record)
    page = markdown(report_document(summary, {}), Path())
    terminal = io.StringIO()
    terminal_table(make.make_suite(labels=("base", "lora")), Contents((record,)), Console(file=terminal, width=118))
    shown = shown_quantities(summary.rows, "table")
    others = {q.name for q in quantities.ALL if "table" in q.shown.places and q not in shown}
    assert others == {"model_flops_utilization"}  # the test device's peak is not known
    assert {quantities.RESERVED_MEMORY, quantities.UPDATE_TIME, quantities.REFRESH_TIME} <= set(shown)
    for quantity in shown:
        assert f"- {quantity.title}: " in page
        assert heading(quantity) in [column.title for column in cost_table(summary, "tiny").columns]
    assert max(map(len, terminal.getvalue().splitlines())) <= 118
    assert "cost, continued" in " ".join(terminal.getvalue().split())
    for words in ("refreshes,", "reserved,", "updates,", "TFLOP"):
        assert words in terminal.getvalue()


def documented() -> str:
    """The table of docs/reports.md."""
    rows = [
        (
            quantity.title,
            UNITS[quantity.unit][1],
            f"`{quantity.name}`" if "json" in quantity.shown.places else "",
            f"`{quantity.column_of_runs}`",
            f"`{quantity.metric}`",
            {"smaller": "more", "larger": "less", None: "not judged"}[quantity.judged.better],
        )
        for quantity in quantities.ALL
    ]
    heads = ("quantity", "shown in", "report.json", "runs.csv", "`--fail-on`, `--metric`", "worse when")
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines).replace("|  |", "| |")


def test_every_quantity_is_documented() -> None:
    assert documented() in (ROOT / "docs" / "reports.md").read_text(encoding="utf-8"), documented()


def test_the_tolerances_that_are_documented_are_the_usual_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        cli.main(["compare", "--help"])
    said = "".join(capsys.readouterr().out.split())
    page = (ROOT / "docs" / "regressions.md").read_text(encoding="utf-8")
    for device in ("cuda", "cpu"):
        assert usual_text(device) in said  # type: ignore[arg-type]
        assert f"`{usual_text(device)}`" in page  # type: ignore[arg-type]


def cells_of(old: Record, new: Record, fail_on: str | None = None) -> dict[str, Cell]:
    return {cell.metric: cell for cell in compare([old], [new], fail_on).cells}


def grown(record: Record, **changes: float) -> Record:
    """The same run on a later source, with other figures of training; ``tracked`` scales the tracked peak."""
    assert record.train is not None and record.train.tracked_peak is not None
    peak = record.train.tracked_peak
    more = int((changes.pop("tracked", 1.0) - 1.0) * peak.at_peak.total_bytes)
    at_peak = peak.at_peak.model_copy(update={"other_bytes": peak.at_peak.other_bytes + more})
    train = record.train.model_copy(update={"tracked_peak": peak.model_copy(update={"at_peak": at_peak}), **changes})
    where = record.environment.model_copy(update={"source_checksum": "f" * 64})
    update = {"train": train, "uuid": f"{record.uuid}-later", "environment": where}
    return record.model_copy(update={**update, "environment_id": where.environment_id})


def test_a_gate_on_a_cpu_guards_tracked_peak_state_and_loss_and_calls_none_of_it_peak_memory() -> None:
    old = make.with_memory(make.make_record("full"))
    assert old.train is not None and old.train.validation_loss_after is not None
    state, loss = old.train.peak_optimizer_state_bytes, old.train.validation_loss_after
    new = grown(old, tracked=1.05, peak_optimizer_state_bytes=int(1.05 * state), validation_loss_after=1.05 * loss)
    cells = cells_of(old, new)
    assert set(cells) == {"tracked_peak", "optimizer_state", "loss", "step_time", "score"}
    assert {name for name, cell in cells.items() if cell.verdict == "worse"} == {
        "tracked_peak",
        "optimizer_state",
        "loss",
    }
    assert cells["tracked_peak"].title == "tracked peak"


def test_on_cuda_peak_memory_is_judged_and_the_tracked_peak_only_when_asked() -> None:
    old = make.with_memory(make.make_record("full", environment=make.CUDA))
    new = grown(old, tracked=1.05)
    assert set(cells_of(old, new)) == {"peak_memory", "optimizer_state", "step_time", "score"}
    assert cells_of(old, new, "tracked_peak:3%")["tracked_peak"].verdict == "worse"


def test_peak_memory_of_a_cpu_has_no_value_and_says_so() -> None:
    old = make.with_memory(make.make_record("full"))
    found = compare([old], [grown(old, tracked=1.5)], "peak_memory:3%,step_time:2%")
    cell = next(cell for cell in found.cells if cell.metric == "peak_memory")
    assert (cell.verdict, cell.baseline) == ("not comparable", None)
    assert cell.basis == "measured on CUDA alone, which these runs had not; tracked_peak is known of a CPU too"
    assert not found.fails
    alone = compare([old], [grown(old, tracked=1.5)], "peak_memory:3%")
    assert alone.is_empty


def test_a_speed_is_worse_when_it_is_smaller() -> None:
    def runs(scale: float, minute: int) -> list[Record]:
        base = make.with_memory(make.make_record("full"))
        assert base.train is not None and base.train.step_seconds_mean is not None
        made = []
        for i, noise in enumerate((0.99, 1.01, 1.0, 0.995, 1.005)):
            one = grown(base, step_seconds_mean=base.train.step_seconds_mean * scale * noise)
            environment = make.CPU if minute == 0 else NEW
            where = {"environment": environment, "environment_id": environment.environment_id}
            made.append(one.model_copy(update={"uuid": f"u-{minute}-{i}", **where}))
        return made

    def judged(scale: float) -> Cell:
        (cell,) = [
            cell
            for cell in compare(runs(1.0, 0), runs(scale, 1), "tokens_per_second:2%").cells
            if cell.metric == "tokens_per_second"
        ]
        return cell

    slow, fast, same = judged(1.1), judged(0.9), judged(1.01)
    assert (slow.verdict, fast.verdict, same.verdict) == ("worse", "improved", "same")
    assert slow.change == pytest.approx(1 / 1.1 - 1) and fast.change == pytest.approx(1 / 0.9 - 1)
    assert slow.smallest is not None and 0.02 < slow.smallest < 0.06
    one, other = runs(1.0, 0)[:1], runs(1.1, 1)[:1]
    single = next(c for c in compare(one, other, "tokens_per_second:2%").cells if c.metric == "tokens_per_second")
    assert (single.verdict, single.change) == ("worse", pytest.approx(1 / 1.1 - 1))


def test_what_is_neither_better_nor_worse_is_not_judged_but_has_a_history(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    Store(tmp_path).append(RECORDS[1])
    arguments = ["compare", str(tmp_path), str(tmp_path), "--fail-on", "trainable_params_mean:1%"]
    assert cli.main(arguments) == 2
    assert "there is no metric 'trainable_params_mean'" in capsys.readouterr().err
    (points,) = history([RECORDS[1]], "trainable_params_mean").values()
    assert points[0].mean == 5_000_000


def test_the_csv_has_the_peak_of_a_resumed_run_that_the_tables_have(tmp_path: Path) -> None:
    record = make.with_memory(make.make_record("lora", environment=make.CUDA))
    peak = quantities.PEAK_MEMORY.read(record)
    phases = tuple(
        phase.model_copy(update={"allocated_peak_bytes": make.GIB // 8}) if phase.name == "train" else phase
        for phase in record.phases
    )
    resumed = record.model_copy(update={"phases": phases})
    write_report(make.make_suite(labels=("lora",)), Contents((resumed,)), tmp_path, ["csv", "json"])
    with (tmp_path / "runs.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    value = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert row["train_allocated_peak_bytes"] == str(peak)
    assert value["labels"][0]["cost"]["train_peak_bytes"] == peak


def test_a_step_that_took_no_time_has_no_speed() -> None:
    record = make.make_record("lora", prediction=make.make_prediction("lora"))
    assert record.train is not None
    timeless = record.model_copy(update={"train": record.train.model_copy(update={"step_seconds_mean": 0.0})})
    assert [quantity.read(timeless) for quantity in (quantities.SPEED, quantities.UTILIZATION)] == [None, None]
    assert not compare([timeless], [timeless.model_copy(update={"uuid": "later"})]).fails


def test_a_share_is_of_what_the_quantity_names() -> None:
    share = Quantity(
        name="half",
        title="half",
        unit="parameters",
        read=lambda record: 2e6,
        shown=Shown("half", whole=lambda record: 4e6),
        judged=Judged(better=None),
        definition="half.",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantities, "ALL", (share,))
        table = cost_table(summary_of(RECORDS[1]), "tiny")
    assert str(table.rows[-1][-1]) == "2.00 M (50.0%)"
    assert "half" in markdown_table(table)


def test_tokens_a_second_leaves_warm_up_steps_out_of_both_parts() -> None:
    """Three long steps of warm-up, then steps of 100 tokens in half a second."""
    record = make.make_record("lora")
    assert record.train is not None
    num_steps = record.train.num_steps
    tokens = (5000,) * 3 + (100,) * (num_steps - 3)
    train = record.train.model_copy(
        update={
            "curve": record.train.curve.model_copy(update={"tokens": tokens}),
            "step_seconds_mean": 0.5,
            "num_timed_steps": num_steps - 3,
        }
    )
    assert tokens_per_second(record.model_copy(update={"train": train})) == pytest.approx(200)
    assert (
        tokens_per_second(record.model_copy(update={"train": train.model_copy(update={"num_timed_steps": 0})})) is None
    )


@pytest.mark.parametrize(
    ("peak_step", "tokens", "cut", "compared"),
    [
        (1, 512, (), True),
        (9, 512, (), False),
        (1, 511, (), False),
        (1, 511, (0, 1, 0), True),
        (1, 511, (0, 0, 0), False),
    ],
    ids=["as predicted", "step not tracked", "padded rows", "padded, one fills the sequence", "padded, none fills it"],
)
def test_a_prediction_is_compared_with_what_it_predicts(
    peak_step: int, tokens: int, cut: tuple[int, ...], compared: bool
) -> None:
    record = make.with_memory(make.make_record("lora"))
    assert record.train is not None and record.prediction is not None and record.train_settings is not None
    planned = record.train_settings.batch_size * record.train_settings.gradient_accumulation_steps
    planned *= record.train_settings.sequence_length
    curve = record.train.curve.model_copy(
        update={
            "tokens": (planned - 512 + tokens,) * 3 + (planned,) * (record.train.num_steps - 3),
            "truncated_rows": cut,
        }
    )
    found = record.model_copy(
        update={
            "train": record.train.model_copy(update={"curve": curve}),
            "prediction": record.prediction.model_copy(update={"peak_step": peak_step}),
        }
    )
    assert (prediction_difference(found) is not None) == compared
