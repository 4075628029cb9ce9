"""The table for a paper: which columns there are, what stands in a cell, what is marked, and how wide it is set."""

from __future__ import annotations

import csv
import io
import re
import runpy
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import quantities
from harness.cli import main
from harness.errors import HarnessError
from harness.report.pages.pairs import group_table, pairs_of
from harness.report.reading.estimates import average_of_row, over_seeds, score_of_row
from harness.report.reading.items import ReadItems
from harness.report.reading.summary import Summary, summarize
from harness.report.tables.choice import TableChoice, choice_toml, command_of, read_choice, save_choice, split_names
from harness.report.tables.columns import SHORT_TASKS, choose_columns
from harness.report.tables.latex import COLUMN, paper_latex, tex
from harness.report.tables.layout import PaperTable, lay_out
from harness.report.tables.plain import paper_csv, paper_markdown, paper_text
from harness.report.tables.widths import width_of
from harness.store import Contents
from tests.pdflatex import compiled, in_tex

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))
ROOT = Path(__file__).parents[2]
TASKS = ("boolq", "piqa", "siqa", "hellaswag", "winogrande", "arc-e", "arc-c", "obqa")
PAPER = ("label", *TASKS, "avg")


def summary_of(
    name: str = "quick", *, models: tuple[str, ...] = ("tiny",), ranking: bool = True, **changes: Any
) -> tuple[Summary, ReadItems]:
    """Six labels on CUDA, over two seeds, with their items; ``full`` ran out of memory."""
    suite = make.make_suite(name=name, ranking=ranking, models=models, seeds=(1, 2), **changes)
    records = []
    for model in models:
        for label in suite.labels:
            for seed in (1,) if label == "base" else (1, 2):
                ends = {"status": "out_of_memory", "reason": "x"} if label == "full" else {}
                at: dict[str, Any] = {"model": model, "seed": seed, "suite": suite, "minute": len(records)}
                record = make.make_record(label, environment=make.CUDA, **at, **ends)
                record = record if label == "base" else make.with_memory(record)
                records.append(record.model_copy(update={"items": record.uuid}))
    contents = Contents(tuple(records))
    items = make.read_items(contents)
    return summarize(suite, contents, None, items), items


def right_answers(**shares: float) -> tuple[Summary, ReadItems]:
    """Labels with these shares of right answers of 200 items a task, nested: the better has all that the worse has."""
    suite = make.make_suite(ranking=True, labels=("base", *shares), evaluation=evaluation("boolq", "piqa"))
    records = []
    for label, share in {"base": 0.2, **shares}.items():
        scores = tuple(make._score(task, "acc", share, 200, headline=True) for task in ("boolq", "piqa"))
        record = make.make_record(label, suite=suite, minute=len(records), scores=scores)
        records.append(record.model_copy(update={"items": record.uuid}))
    contents = Contents(tuple(records))
    items = make.read_items(contents)
    return summarize(suite, contents, None, items), items


def evaluation(*tasks: str) -> Any:
    return make.EvaluationSettings(tasks=tasks, rows="packaged-scored", num_fewshot=0)


def table_of(*suites: tuple[Summary, ReadItems], **choice: Any) -> PaperTable:
    names = tuple(summary.suite.name for summary, _ in suites)
    chosen = TableChoice.model_validate({"suites": names, "columns": PAPER} | choice)
    return lay_out(chosen, [summary for summary, _ in suites], [items for _, items in suites])


def figures(table: PaperTable, label: str, group: int = 0) -> list[str]:
    (line,) = [line for line in table.groups[group].lines if line.label == label]
    return [figure.text for block in line.figures for figure in block]


# Columns


@pytest.mark.parametrize(
    ("name", "quantity"),
    [
        ("peak", "PEAK_MEMORY"),
        ("peak_memory", "PEAK_MEMORY"),
        ("train_peak_bytes", "PEAK_MEMORY"),
        ("peak memory", "PEAK_MEMORY"),
        ("reserved", "RESERVED_MEMORY"),
        ("tracked-peak", "TRACKED_PEAK"),
        ("predicted", "PREDICTED_PEAK"),
        ("step_time", "STEP_TIME"),
        ("tokens", "SPEED"),
        ("trainable", "STEP_PARAMETERS"),
        ("state", "OPTIMIZER_STATE"),
        ("loss", "HELD_OUT_LOSS"),
        ("mfu", "UTILIZATION"),
    ],
)
def test_a_quantity_is_named_as_a_report_or_in_short(name: str, quantity: str) -> None:
    ((column,),) = choose_columns(["label", name], [summary_of()[0]], {})
    assert column.quantity is getattr(quantities, quantity)


def test_each_short_name_is_of_one_quantity_and_each_quantity_has_a_heading() -> None:
    owners: dict[str, set[str]] = {}
    for q in quantities.ALL:
        for name in (q.shown.brief or q.metric, q.metric, q.name, q.title, q.column_of_runs):
            owners.setdefault(name.lower().replace(" ", "_").replace("-", "_"), set()).add(q.name)
    assert {name: found for name, found in owners.items() if len(found) > 1} == {}
    assert all(q.shown.printed for q in quantities.ALL)


@pytest.mark.parametrize(("short", "task"), [*zip(TASKS, make.TASKS, strict=True), ("ARC-e", "arc_easy")])
def test_a_task_is_named_as_lm_eval_does_or_as_papers_do(short: str, task: str) -> None:
    summary, _ = summary_of()
    for name in (short, task, SHORT_TASKS[task]):
        ((column,),) = choose_columns([name], [summary], {})
        assert column.score is not None
        assert (column.score.task, column.heading.line) == (task, SHORT_TASKS[task])


def test_another_metric_of_a_task_is_named_behind_it() -> None:
    summary, items = summary_of()
    table = table_of((summary, items), columns=("hellaswag", "hellaswag/acc_norm"))
    (row,) = [row for row in summary.rows if row.label == "lora"]
    asked = [replace(column, metric=metric) for metric in ("acc", "acc_norm") for column in summary.columns[3:4]]
    found = [score_of_row(row, column) for column in asked]
    assert figures(table, "lora") == [f"{100 * pair[0].mean:.1f}" for pair in found if pair is not None]
    assert len(set(figures(table, "lora"))) == 2
    with pytest.raises(HarnessError, match="task 'boolq' is not scored by 'f1'; known: acc"):
        table_of((summary, items), columns=("boolq/f1",))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (("label", "bolq"), "there is no column 'bolq'; did you mean 'boolq'?"),
        (("label", "peek"), "there is no column 'peek'; did you mean 'peak'?"),
        (("boolq", "label"), "'label' is the first column"),
        (("label",), "names no column beside the label"),
        (("boolq", "BoolQ"), "'BoolQ' is a column that is there already"),
        (("peak", "peak_memory"), "'peak_memory' is a column that is there already"),
    ],
)
def test_a_column_that_cannot_be_is_refused_by_its_name(columns: tuple[str, ...], said: str) -> None:
    with pytest.raises(HarnessError, match=re.escape(said)):
        choose_columns(columns, [summary_of()[0]], {})


def test_a_task_that_is_called_like_a_quantity_is_asked_for() -> None:
    suite = make.make_suite(labels=("base",), evaluation=evaluation("loss", "piqa"))
    summary = summarize(suite, Contents((make.make_record("base", suite=suite),)))
    with pytest.raises(HarnessError, match="'loss' is a task and a figure of every run; write task:loss"):
        choose_columns(["loss"], [summary], {})
    ((column,),) = choose_columns(["task:loss"], [summary], {})
    assert column.score is not None and column.score.task == "loss"


# Cells


def test_a_cell_holds_what_the_report_estimates() -> None:
    summary, items = summary_of()
    table = table_of((summary, items), columns=("peak", "boolq", "avg", "trainable"))
    for row in summary.rows:
        if row.finished:
            peak, boolq = over_seeds(row, quantities.PEAK_MEMORY), score_of_row(row, summary.columns[0])
            average = average_of_row(row, summary.columns)
            assert boolq is not None and average is not None
            expected = [f"{100 * boolq[0].mean:.1f}", f"{100 * average[0].mean:.1f}"]
            found = figures(table, row.label)
            assert found[1:3] == expected
            if row.trains:
                assert peak is not None
                assert float(found[0]) == pytest.approx(peak / make.GIB, rel=0.005)
            else:
                assert found[0] == found[3] == "--"


def test_half_a_width_and_an_interval_are_the_reports_own() -> None:
    summary, items = summary_of()
    (row,) = [row for row in summary.rows if row.label == "lora"]
    found = score_of_row(row, summary.columns[0])
    assert found is not None and found[0].interval is not None
    low, high = found[0].interval
    assert abs((low + high) / 2 - found[0].mean) > 0.005  # it is not even about the mean: a half-width needs the words
    (half,) = [line.figures[0][0] for line in half_widths(summary, items).groups[0].lines if line.label == "lora"]
    assert half.beside == f"±{50 * (high - low):.1f}"
    ends = table_of((summary, items), columns=("boolq",), style="interval")
    assert [line.figures[0][0].beside for line in ends.groups[0].lines if line.label == "lora"] == [
        f"[{100 * low:.1f}, {100 * high:.1f}]"
    ]
    assert "± is half the width of the 95% interval" in half_widths(summary, items).caption
    assert "In brackets the 95% interval, over items or items and seeds." in ends.caption


def half_widths(summary: Summary, items: ReadItems) -> PaperTable:
    return table_of((summary, items), columns=("boolq",), style="mean±half-width")


def test_a_score_whose_items_are_lost_has_no_interval_and_the_caption_says_so() -> None:
    suite = make.make_suite(labels=("lora",), seeds=(1, 2))
    records = tuple(make.make_record("lora", suite=suite, seed=seed, minute=seed) for seed in (1, 2))
    summary = summarize(suite, Contents(records))
    table = table_of((summary, lambda name: None), columns=("boolq",), style="mean±half-width")
    assert [line.figures[0][0].beside for line in table.groups[0].lines] == [""]
    assert "No interval is shown: the outcomes item by item are not at hand." in table.caption


def test_a_run_without_a_result_is_named_by_the_reports_word_and_keeps_its_prediction() -> None:
    table = table_of(summary_of(), columns=("peak", "predicted", "boolq", "avg"))
    (line,) = [line for line in table.groups[0].lines if line.label == "full"]
    assert [figure.text == "--" for figure in line.figures[0]] == [True, False, True, True]
    assert {figure.why for figure in line.figures[0] if figure.is_missing} == {"out of memory"}
    text, _ = paper_latex(table, "harness report")
    assert re.search(r"full & \\multicolumn\{1\}\{c\}\{-- \(out of memory\)\} & \d\.\d+ & \\multicolumn\{2\}", text)
    assert "-- (out of memory)" in paper_markdown(table) and "-- (out of memory)" in paper_text(table, 80)


def test_a_label_with_half_its_seeds_is_named_in_the_caption() -> None:
    suite, contents = make.mixed()
    table = table_of((summarize(suite, contents), lambda name: None), columns=("boolq",), rows=("lora", "galore"))
    assert "Seeds with a result: galore 1 of 2 (failed)." in table.caption
    assert "means over seeds 1, 2; galore: seed 1" in table.caption


# Rows, models and suites


def test_rows_stand_in_the_order_given_and_those_not_named_are_gone() -> None:
    table = table_of(summary_of(), rows=("owlore", "base", "lora"))
    assert [line.label for line in table.groups[0].lines] == ["owlore", "base", "lora"]
    with pytest.raises(HarnessError, match="--rows: there is no label 'lor'; did you mean 'lora'"):
        table_of(summary_of(), rows=("lor",))


def test_models_are_blocks_of_rows_and_suites_blocks_of_columns() -> None:
    first = summary_of(models=("tiny", "small"))
    second = summary_of("other", evaluation=evaluation("gsm8k", "piqa"))
    table = table_of(first, second, columns=("other:gsm8k", "boolq", "avg"), names={"tiny": "Tiny 1B", "quick": "QS"})
    assert [group.title for group in table.groups] == ["Tiny 1B", "small"]
    assert [[head.line for head in block.headings] for block in table.blocks] == [
        ["BoolQ", "Avg."],
        ["GSM8K", "Avg."],
    ]
    (line,) = [line for line in table.groups[1].lines if line.label == "lora"]
    assert [figure.why for figure in line.figures[1]] == ["not in the suite"] * 2
    text, _ = paper_latex(table, "harness report")
    assert r"\multicolumn{5}{@{}l@{}}{\textit{Tiny 1B}}" in text
    assert r"\multicolumn{2}{c}{QS} & \multicolumn{2}{c@{}}{other}" in text
    with pytest.raises(HarnessError, match="--model tiney: no suite of the table has it; did you mean 'tiny'"):
        table_of(first, models=("tiney",))
    chosen = table_of(first, models=("small",))
    assert [group.title for group in chosen.groups] == ["small"] and " on small." in chosen.caption


def test_the_caption_says_protocol_items_seeds_device_and_commit() -> None:
    caption = table_of(summary_of(), caption="Ours.").caption
    assert caption == (
        "Ours. quick, version 1, protocol packaged-v1 on tiny. Scores in %, n = 40 items a task, means over seeds 1, 2."
        " Measured on cuda: test device, harness at dddddddddddd."
    )


def test_the_notes_say_what_each_quantity_is_and_that_a_column_has_no_value() -> None:
    notes = table_of(summary_of(), columns=("loss", "mfu", "avg")).notes
    assert notes[0].startswith("loss: held-out loss: mean cross-entropy in nats")
    assert notes[0].endswith("The column holds what it was after training.")
    assert notes[1].startswith("mfu: MFU: those operations a second")
    assert notes[2] == "mfu has no value in any row of quick."


# Marks


def test_the_best_is_bold_where_it_differs_from_every_other() -> None:
    table = table_of(right_answers(lora=0.4, galore=0.8), columns=("boolq", "avg"), marked="best")
    bold = {line.label: [figure.bold for figure in line.figures[0]] for line in table.groups[0].lines}
    assert bold == {"base": [False, False], "lora": [False, False], "galore": [True, True]}
    assert "Bold: a best score that differs from every other" in table.caption
    assert r"\textbf{80.0}" in paper_latex(table, "x")[0]


def test_of_two_that_cannot_be_told_apart_neither_is_bold() -> None:
    table = table_of(right_answers(lora=0.79, galore=0.80), columns=("boolq", "avg"), marked="best")
    assert not any(figure.bold for line in table.groups[0].lines for figure in line.figures[0])
    assert "No score is marked as best: none differs from every other" in table.caption


def test_best_is_corrected_for_all_pairs_and_tasks_also_of_rows_that_are_not_shown() -> None:
    """Of 200 items 7 are won and none lost: p = 0.016 alone, and not below 0.05 over 6 pairs and two tasks."""
    suite = right_answers(lora=0.765, galore=0.80, lisa=0.8)
    rows = ("lora", "galore")
    table = table_of(suite, columns=("boolq", "piqa"), rows=rows, marked="best")
    assert not any(figure.bold for line in table.groups[0].lines for figure in line.figures[0])
    alone = table_of(right_answers(lora=0.72, galore=0.80, lisa=0.8), columns=("boolq",), rows=rows, marked="best")
    assert [line.figures[0][0].bold for line in alone.groups[0].lines] == [False, True]


def test_where_less_is_better_the_least_is_best() -> None:
    summary, items = right_answers(lora=0.4, galore=0.8)
    rows = []
    for row in summary.rows:
        runs = []
        for run in row.runs:
            scores = tuple(score.model_copy(update={"higher_is_better": False}) for score in run.scores)
            runs.append(replace(run, scores=scores))
        rows.append(replace(row, runs=tuple(runs)))
    falling = replace(summary, rows=tuple(rows))
    table = table_of((falling, items), columns=("boolq", "avg"), marked="best")
    assert [line.label for line in table.groups[0].lines if line.figures[0][0].bold] == ["base"]


def test_a_suite_that_is_no_ranking_refuses_best() -> None:
    with pytest.raises(HarnessError, match=r"--best: suite 'quick' is no ranking \(ranking = false\)"):
        table_of(summary_of(ranking=False), marked="best")
    assert table_of(summary_of(ranking=False), marked="groups").caption


def test_without_items_nothing_is_marked_and_the_caption_says_why() -> None:
    summary, _ = right_answers(lora=0.4, galore=0.8)
    best = table_of((summary, lambda name: None), columns=("boolq",), marked="best")
    assert "No score is marked as best" in best.caption
    assert "Without a test between some rows, and so not marked: boolq." in best.caption
    groups = table_of((summary, lambda name: None), columns=("boolq",), marked="groups")
    assert "No groups are marked: there is no test between these rows." in groups.caption


def test_the_letters_of_the_average_are_the_reports() -> None:
    summary, items = right_answers(lora=0.4, galore=0.41, lisa=0.8)
    pairs = pairs_of(summary, "tiny", items)
    averages = {row.label: found[0].mean for row in summary.rows if (found := average_of_row(row, summary.columns))}
    told = {str(row[0]): str(row[2]) for row in group_table(pairs, averages).rows}
    table = table_of((summary, items), columns=("avg",), marked="groups")
    assert {line.label: line.figures[0][0].above for line in table.groups[0].lines} == told
    assert told["lora"] == told["galore"] != told["lisa"]


# LaTeX


def test_widths_are_those_that_tex_measures() -> None:
    measured = {"HellaSw.": 32.331, "owlore": 23.848, "BoolQ": 23.719, "44.4": 15.107, "Method": 28.790}
    for text, width in measured.items():
        assert width_of(text) == pytest.approx(width, rel=0.03)
    assert width_of("±13.7", 5.0) == pytest.approx(17.636, rel=0.03)
    assert width_of("[12.3, 45.6]", 5.0) == pytest.approx(32.839, rel=0.05)


def test_a_table_is_as_plain_as_a_person_writes_it() -> None:
    text, wide = paper_latex(table_of(summary_of()), "harness report", "tab:quick")
    assert wide is None
    lines = text.splitlines()
    assert "base & 30.0 & 40.0 & 25.0 & 22.5 & 35.0 & 25.0 & 37.5 & 47.5 & 32.8 \\\\" in lines
    assert r"full & \multicolumn{9}{c@{}}{-- (out of memory)} \\" in lines
    assert lines[0] == "% harness report" and r"\label{tab:quick}" in lines
    assert text.count(r"\begin{tabular}") == 1
    assert [line for line in lines if line.startswith("\\begin")] == [
        r"\begin{table}[t]",
        r"\begin{tabular}{@{}lrrrrrrrrr@{}}",
    ]


def test_a_sign_is_set_as_one() -> None:
    suite = summary_of()
    table = table_of(suite, columns=("difference",), rows=("lora",))
    (figure,) = table.groups[0].lines[0].figures[0]
    block = ((replace(figure, text="-0.8", why=""),),)
    line = replace(table.groups[0].lines[0], figures=block)
    table = replace(table, groups=(replace(table.groups[0], lines=(line,)),))
    assert r"lora & $-$0.8 \\" in paper_latex(table, "x")[0]


def test_a_table_too_wide_for_a_page_says_so() -> None:
    suites = [summary_of(f"suite{i}") for i in range(5)]
    text, wide = paper_latex(table_of(*suites, style="interval"), "x")
    assert wide is not None and "leave columns or suites out" in wide
    assert r"\begin{table*}" in text


@pytest.mark.parametrize(
    ("text", "set_as"),
    [
        ("lora-fa", "lora-fa"),
        ("a--b", "a-{}-b"),
        ("50% of $x_1$", r"50\% of \$x\_1\$"),
        ("it's", "it's"),
        ("''", r"\textquotesingle{}'"),
        ("é", r"\'{e}"),
        ("{[a]}", r"\{{[}a{]}\}"),
        ("\\input{x}\n\x1b", r"\textbackslash{}input\{x\}"),
    ],
)
def test_text_is_plain_where_it_may_be_and_never_a_command(text: str, set_as: str) -> None:
    assert tex(text) == set_as


TWO_COLUMNS = r"""\documentclass[10pt,twocolumn]{article}
\usepackage[T1]{fontenc}
\usepackage{booktabs,makecell,graphicx}
\usepackage[textwidth=6.91in,columnsep=0.25in]{geometry}
\begin{document}
\typeout{COLUMN \the\columnwidth}
%s
x
\end{document}
"""


@pytest.mark.slow
@in_tex
def test_a_table_of_eight_tasks_fits_one_column_of_an_article(tmp_path: Path) -> None:
    suite = summary_of()
    told: list[dict[str, Any]] = [
        {},
        {"columns": ("label", "peak", *PAPER[1:])},
        {"marked": "groups"},
        {"marked": "best", "style": "mean±half-width"},
        {"columns": ("label", "peak", *PAPER[1:]), "style": "mean±half-width"},
        {"columns": ("boolq", "avg"), "style": "interval"},
    ]
    tables = [table_of(suite, **choice) for choice in told]
    tables.append(table_of(suite, columns=("avg",), caption=make.HOSTILE, names={"lora": make.HOSTILE[:30]}))
    for i, table in enumerate(tables):
        text, wide = paper_latex(table, f"harness report {make.HOSTILE}")
        assert wide is None
        assert "\\begin{table}[t]" in text, i
        (tmp_path / f"t{i}.tex").write_text(text, encoding="ascii")
    body = "\n".join(f"\\input{{t{i}}}\\clearpage" for i in range(len(tables)))
    (tmp_path / "report.tex").write_text(TWO_COLUMNS % body, encoding="utf-8")
    log = compiled(tmp_path)
    (column,) = re.findall(r"COLUMN ([\d.]+)pt", log)
    assert float(column) == pytest.approx(COLUMN)
    assert re.findall(r"Overfull \\hbox.*", log) == []


@pytest.mark.slow
@in_tex
def test_wider_tables_fit_both_columns(tmp_path: Path) -> None:
    first = summary_of(models=("tiny", "small"))
    second = summary_of("other", models=("tiny", "small"), evaluation=evaluation("gsm8k", "piqa"))
    told: list[dict[str, Any]] = [{"style": "interval"}, {"style": "mean±half-width"}, {"marked": "best"}]
    for i, choice in enumerate(told):
        columns = ("quick:" + name for name in TASKS)
        table = table_of(first, second, **choice, columns=("label", "state", *columns, "gsm8k", "avg"))
        text, wide = paper_latex(table, "harness report")
        assert wide is None or i == 0
        if wide is None:
            assert "\\begin{table*}[t]" in text
        (tmp_path / f"t{i}.tex").write_text(text, encoding="ascii")
    (tmp_path / "report.tex").write_text(TWO_COLUMNS % "\\input{t1}\\clearpage\\input{t2}", encoding="utf-8")
    assert re.findall(r"Overfull \\hbox.*", compiled(tmp_path)) == []


# Other formats


def test_markdown_csv_and_text_hold_the_same_figures() -> None:
    table = table_of(summary_of(), columns=("state", "boolq", "avg"), style="interval", marked="groups")
    rows = list(csv.reader(io.StringIO(paper_csv(table))))
    assert rows[0] == [
        *("model", "Method", "State (GiB)", "BoolQ", "BoolQ low", "BoolQ high", "BoolQ mark"),
        *("Avg.", "Avg. low", "Avg. high", "Avg. mark"),
    ]
    for line, row in zip(table.groups[0].lines, rows[1:], strict=True):
        state, boolq, average = line.figures[0]
        assert row[:2] == ["tiny", line.label]
        assert row[3] == (f"-- ({boolq.why})" if boolq.is_missing else boolq.text)
        for text in (paper_markdown(table), paper_text(table, 100)):
            (found,) = [part for part in text.splitlines() if re.match(rf"(\| )?{line.label} ", part)]
            assert all(figure.text in found and figure.beside in found for figure in (state, boolq, average))


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_no_label_and_no_digit_is_cut_on_a_terminal(width: int) -> None:
    table = table_of(summary_of(), columns=("label", "peak", *PAPER[1:]), style="interval")
    text = paper_text(table, width)
    lines = text.partition("\nquick,")[0].splitlines()
    assert max(map(len, lines)) <= width
    for line in table.groups[0].lines:
        own = [part for part in lines if part.split()[:1] == [line.label]]
        whole = " ".join(own)
        assert len(own) >= 2
        for figure in line.figures[0]:
            assert figure.text in whole and figure.beside in whole


# What is kept, and the command


def test_a_choice_is_kept_and_read_back(tmp_path: Path) -> None:
    choice = TableChoice(
        suites=("commonsense",),
        columns=("label", "avg"),
        rows=("lora[a,b]",),
        style="mean±half-width",
        names={"lora[a,b]": 'a "b" \\ \x7f\n é'},
        headings={"avg": "Mean\n(%)"},
    )
    save_choice(choice, tmp_path / "table.toml")
    assert read_choice(tmp_path / "table.toml", {}) == choice
    assert read_choice(tmp_path / "table.toml", {"style": "mean"}).style == "mean"
    with pytest.raises(HarnessError, match="is there already, and is not written over"):
        save_choice(choice, tmp_path / "table.toml")
    assert "marked" not in choice_toml(choice)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"suites = ['a']\ncolums = ['avg']", "has no setting 'colums'; did you mean 'columns'?"),
        (b"suites = ['a']", "lacks the setting 'columns'"),
        (b"suites = 'a'\ncolumns = ['avg']", "suites is 'a'"),
        (b"suites = ['a']\ncolumns = ['avg']\nstyle = 'bold'", "style is 'bold'"),
        (b"suites = ['a']\ncolumns = ['avg', 'avg']", "'avg' is named twice"),
        (b"suites = ['a']\ncolumns = ['']", "a name is empty"),
        (b"suites = ['a']\ncolumns = ['avg']\nreference = '}\\\\input{x}'", "reference is"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"columns = [", "is not valid TOML"),
    ],
)
def test_a_file_of_a_choice_that_is_wrong_is_one_sentence(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "table.toml"
    file.write_bytes(content)
    with pytest.raises(HarnessError, match=re.escape(said)) as error:
        read_choice(file, {})
    assert "\n" not in str(error.value)


def test_what_is_renamed_must_be_there() -> None:
    with pytest.raises(
        HarnessError, match=r"\[names\] lor: no model, label or suite of the table; did you mean 'lora'"
    ):
        table_of(summary_of(), names={"lor": "LoRA"})
    with pytest.raises(HarnessError, match=r"\[headings\] bolq: is no column of the table; did you mean 'boolq'"):
        table_of(summary_of(), headings={"bolq": "B"})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("label, peak,avg", ("label", "peak", "avg")),
        ("lora[rank=4, alpha=8], base", ("lora[rank=4, alpha=8]", "base")),
        ("a[, b", ("a[", "b")),
        ("a,,b", ("a", "", "b")),
    ],
)
def test_names_are_split_at_commas_outside_brackets(text: str, names: tuple[str, ...]) -> None:
    assert split_names(text) == names


def test_the_command_in_the_comment_makes_the_same_choice() -> None:
    choice = TableChoice(
        suites=("a", "b"),
        models=("m",),
        columns=("label", "avg"),
        rows=("x[p=1,q=2]", "y"),
        style="interval",
        marked="best",
    )
    words = shlex.split(command_of(choice))
    assert words[:2] == ["harness", "report"]
    assert words[words.index("--rows") + 1] == "x[p=1,q=2], y"
    assert split_names(words[words.index("--table") + 1]) == choice.columns
    assert "\n" not in command_of(TableChoice(suites=("a",), columns=("x\ny",)))


RESULTS = str(ROOT / "results" / "records")
CONFIGURATIONS = ["report", "--suite", "configurations", "--results", RESULTS]


def test_the_command_prints_a_table_and_writes_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["--table", "label, loss, winogrande, avg", "--rows", "base, full, lora"]
    assert main([*CONFIGURATIONS, *asked, "--save-spec", "kept.toml"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("% harness report --suite configurations --table 'label, loss, winogrande, avg'")
    assert re.search(r"^full & 0\.171 & ", text, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.toml"]
    assert main(["report", "--spec", "kept.toml", "--results", RESULTS, "--out", "t.tex"]) == 0
    kept = (tmp_path / "t.tex").read_text()
    assert kept.partition("\n")[2] == text.partition("\n")[2]
    assert kept.startswith("% harness report --spec kept.toml\n")
    assert main(["report", "--spec", "kept.toml", "--results", RESULTS, "--out", "t.csv", "--rows", "lora"]) == 0
    assert (tmp_path / "t.csv").read_text().splitlines()[0] == "model,Method,Loss,WinoG.,Avg."


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--table", "label, bolq"], "there is no column 'bolq'"),
        (["--table", "avg", "--style", "bold"], "--style bold: there is no such style"),
        (["--table", "avg", "--best"], "is no ranking"),
        (["--table", "avg", "--format", "html"], "is written as one of latex, md, csv, text"),
        (["--table", "avg", "--format", "md", "--format", "csv"], "leave csv out"),
        (["--table", "avg", "--suite", "quickstart"], "there is no record of suite 'quickstart'"),
        (["--table", "avg,,loss"], "a name is empty"),
        (["--table", ",".join(f"c{i}" for i in range(300))], "columns is"),
        (["--table", "x" * 300], "a name has over 200 characters"),
        (["--rows", "lora"], "name its columns by --table"),
        (["--format", "text"], "name its columns by --table"),
        (["--suite", "quickstart"], "a report is of one suite, and 2 are named"),
        (["--spec", "."], "cannot be read"),
        (["--spec", "none.toml"], "cannot be read"),
        (["--table", "avg", "--out", "."], "cannot be written"),
        (["--table", "avg", "--save-spec", "."], "is there already"),
        (["--table", "avg", "--best", "--groups"], "not allowed with"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main([*CONFIGURATIONS, *arguments])
    except SystemExit as error:
        code = int(str(error.code))
    found = capsys.readouterr()
    assert (code, found.out) == (2, "")
    assert said in found.err and found.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_report_without_a_suite_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 2
    assert "a report is of one suite, and none is named" in capsys.readouterr().err
    assert main(["report", "--table", "avg"]) == 2
    assert "needs --suite, or --spec FILE" in capsys.readouterr().err


def test_the_docs_say_what_is_taken(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8").partition("## A table for your paper")[2]
    (kept,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "table.toml").write_text(kept, encoding="utf-8")
    assert read_choice(tmp_path / "table.toml", {}).names == {"llama2-7b": "Llama 2 7B", "lora": "LoRA"}
    short = re.findall(r"`([a-z_]+)`", page.partition("short name (")[2].partition(")")[0])
    ((*columns,),) = choose_columns(short, [summary_of()[0]], {})
    assert [column.quantity is not None for column in columns] == [True] * len(short)
    named = {column.quantity.name for column in columns if column.quantity is not None}
    assert named >= {q.name for q in quantities.ALL if "terminal" in q.shown.places} - {
        *("predicted_against_measured", "optimizer_seconds_mean", "refresh_seconds")
    }


def test_the_table_of_the_docs_is_what_its_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8").partition("From the records of this")[2]
    (command,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))
    assert main([*words[1:], "--results", RESULTS]) == 0
    table = capsys.readouterr().out.partition("\n\n")[0]
    assert len(table.splitlines()) == 8
    assert table in page


def test_two_suites_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy.toml"
    copy.write_bytes((ROOT / "suites" / "configurations.toml").read_bytes())
    assert main([*CONFIGURATIONS, "--suite", str(copy), "--table", "avg"]) == 2
    assert "two suites of the table are called 'configurations'" in capsys.readouterr().err
