"""The LaTeX of a report: what its tabulars hold, and that it compiles with its plots where a TeX is installed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.report.pages.document import Heading, TableBlock
from harness.report.pages.latex import LINES_A_PAGE, latex, tabular
from harness.report.table import Cell, Column, Table
from harness.report.write import write_report
from tests.pdflatex import compiled, in_tex

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "fixtures_report" / "factory.py")))


def test_a_tabular_has_rules_of_booktabs_and_a_line_a_row() -> None:
    table = Table((Column("label", "left"), Column("score")), (("a_b", "1.0"), ("c", "–")))
    assert tabular(table).splitlines() == [
        r"\begin{tabular}{@{}lr@{}}",
        r"\toprule",
        r"label & score \\",
        r"\midrule",
        r"a\_b & 1.0 \\ \addlinespace[2pt]",
        r"c & \textendash{} \\ \addlinespace[2pt]",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_a_long_number_stands_in_lines_broken_at_its_brackets() -> None:
    table = Table(
        (Column("label", "left"), Column("score")), (("a", Cell("31.2", 0.312, ("[0.0, 78.9]", "(n=40, 2 seeds)"))),)
    )
    assert tabular(table).splitlines()[4:7] == [
        r"a & 31.2 \\",
        r" & {[}0.0,{} 78.9{]} \\",
        r" & (n=40,{} 2 seeds) \\ \addlinespace[2pt]",
    ]


def test_a_long_heading_stands_in_rows_that_end_together_and_no_table_is_inside_another() -> None:
    table = Table((Column("label", "left"), Column("average of 8 tasks")), (("a", "1.0"),))
    text = tabular(table)
    assert text.splitlines()[2:4] == [r" & average of 8 \\", r"label & tasks \\"]
    assert text.count(r"\begin{tabular}") == 1


def test_a_minus_and_an_arrow_are_set_as_such_in_columns_of_numbers_alone() -> None:
    table = Table((Column("a->b", "left"), Column("x -> y")), (("c-1 -2", Cell("-0.8", -0.8, ("[-1.0, 2-3]",))),))
    assert tabular(table).splitlines()[2:6] == [
        r"a-{}\textgreater{}b & x $\rightarrow$ y \\",
        r"\midrule",
        r"c-{}1 -{}2 & $-$0.8 \\",
        r" & {[}$-$1.0,{} 2-{}3{]} \\ \addlinespace[2pt]",
    ]


def test_a_table_of_more_rows_than_a_page_becomes_several_files_that_hold_each_row_once() -> None:
    rows = tuple((f"row{i}", str(i)) for i in range(3 * LINES_A_PAGE))
    files = latex((TableBlock(Table((Column("label", "left"), Column("n")), rows), "All.", "m-scores"),), Path())
    names = ["tables/m-scores.tex", "tables/m-scores-part2.tex", "tables/m-scores-part3.tex"]
    assert sorted(files) == sorted(["report.tex", *names])
    assert re.findall(r"row\d+", "".join(files[name] for name in names)) == [label for label, _ in rows]
    assert re.findall(r"\\input\{(.*?)\}", files["report.tex"]) == names


def test_a_table_with_many_columns_is_split_with_its_labels_repeated() -> None:
    columns = (Column("task", "left"), *(Column(f"column{i}") for i in range(30)))
    text = latex((TableBlock(Table(columns, (("boolq", *["30.0"] * 30),))),), Path())["report.tex"]
    assert text.count("\\begin{longtable}") > 1
    assert text.count("boolq") == text.count("\\begin{longtable}")
    assert re.findall(r"column\d+", text) == [f"column{i}" for i in range(30)]


@pytest.mark.slow
@in_tex
def test_the_report_compiles_as_it_is_with_nothing_beyond_its_margins(tmp_path: Path) -> None:
    suite, contents = make.golden()
    write_report(suite, contents, tmp_path, ["latex"])
    log = compiled(tmp_path)
    assert (tmp_path / "report.pdf").stat().st_size > 10_000
    assert re.findall(r"Overfull \\hbox.*", log) == []


@pytest.mark.slow
@in_tex
@pytest.mark.parametrize("cell", ["1.0", "31.2 [0.0, 78.9] (n=40, 2 seeds)"])
def test_no_part_of_a_tall_table_is_taller_than_a_page(tmp_path: Path, cell: str) -> None:
    columns = (Column("label", "left"), *(Column(f"a long heading of column {i}") for i in range(14)))
    rows = tuple((f"row{i}", *[cell] * 14) for i in range(3 * LINES_A_PAGE))
    for name, text in latex((TableBlock(Table(columns, rows), "All.", "m-scores"),), tmp_path).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    log = compiled(tmp_path)
    assert "Float too large" not in log
    assert "Overfull" not in log


@pytest.mark.slow
@in_tex
def test_a_table_goes_into_a_paper_of_two_columns_as_the_docs_say(tmp_path: Path) -> None:
    suite, contents = make.golden()
    write_report(suite, contents, tmp_path, ["latex"])
    page = (Path(__file__).parents[2] / "docs" / "reports.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```latex\n(.*?)```", page, re.DOTALL)
    before, _, body = snippet.replace("smollm2-135m", "tiny").partition("...\n")
    paper = f"\\documentclass[twocolumn]{{article}}\n{before}\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "report.tex").write_text(paper, encoding="utf-8")
    log = compiled(tmp_path)
    assert "Output written" in log and "Overfull" not in log


def test_headings_are_sections() -> None:
    text = latex((Heading(1, "A & B"), Heading(2, "Notes"), Heading(3, "tiny")), Path())["report.tex"]
    assert r"{\LARGE A \& B\par}" in text
    assert r"\section*{Notes}" in text
    assert r"\subsection*{tiny}" in text
