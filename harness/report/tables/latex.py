r"""A table for a paper in LaTeX: one float by booktabs, each figure in a cell of its own, as a person would type it.

It is set as wide as it has to be: in one column of a two-column article if it fits there, by headings in two lines,
headings that stand upright or intervals below their figures, in this order, a narrow one if it can be; else over both
columns. A comment says how wide it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from typing import Literal

from harness.report.pages.latex_text import escape_latex
from harness.report.table import one_line
from harness.report.tables.cells import MISSING, SHORT_RUN, Figure
from harness.report.tables.columns import Heading
from harness.report.tables.layout import Group, Line, PaperTable
from harness.report.tables.widths import BOLD_WIDER, RAISED, RAISED_SPACE, SIZE, TINY, width_of

POINTS_AN_INCH = 72.27
NARROW, COLUMN, PAGE = 3.03 * POINTS_AN_INCH, 3.33 * POINTS_AN_INCH, 6.3 * POINTS_AN_INCH
"""Points of a narrow and of a wide column of a two-column article, and of both narrow ones.

Source: acl-org/acl-style-files, acl.sty, for the narrow ones: A4, margins of 2.5 cm, 0.6 cm between the columns.
"""
WIDEST_GAP, NARROWEST_GAP = 6.0, 1.5
r"""``\tabcolsep``: TeX's own, and the least by which two columns of figures still stand apart."""
BETWEEN_SUITES = 12.0
"""Points between the columns of two suites."""
UNSAFE = re.compile(r"[^A-Za-z0-9 .;:()/+=,'-]|[-,'](?=[-,'])")
"""What TeX does not set as it is: signs with a meaning, letters beyond ASCII, and what would be joined to one sign."""
Heads = Literal["line", "lines", "upright"]


@dataclass(frozen=True)
class Setting:
    """One way to set a table."""

    heads: Heads
    stacked: bool
    """Whether what stands beside a figure is set below it, in a row of its own."""
    room: float
    """Points that it must fit."""


SETTINGS = tuple(
    Setting(heads, stacked, room)
    for room in (NARROW, COLUMN, PAGE)
    for stacked in (False, True)
    for heads in ("line", "lines", "upright")
)


def paper_latex(table: PaperTable, command: str, reference: str = "") -> tuple[str, str | None]:
    r"""Return the table as a float, and a sentence where it is wider than a page of two columns.

    Args:
        table: Laid out.
        command: What made it; a comment says it.
        reference: What ``\ref`` calls it; empty: nothing does.
    """
    widths = {setting: _natural(table, setting) for setting in SETTINGS}
    chosen = next((s for s in SETTINGS if widths[s] + _gaps(table) * NARROWEST_GAP <= s.room), None)
    setting = chosen or min((s for s in SETTINGS if s.room == PAGE), key=lambda s: widths[s])
    gap = min(WIDEST_GAP, max(NARROWEST_GAP, int(10 * (setting.room - widths[setting]) / _gaps(table)) / 10))
    kind = "table*" if setting.room == PAGE else "table"
    body = list(_tabular(table, setting))
    points = widths[setting] + _gaps(table) * gap
    lines = [
        f"% {_ascii(command)}",
        f"% {_packages(body)}",
        f"% at most {ceil(points)} pt wide",
        *(f"% {_ascii(note)}" for note in table.notes),
    ]
    lines += [
        f"\\begin{{{kind}}}[t]",
        "\\centering",
        "\\setlength{\\belowcaptionskip}{4pt}",
        f"\\caption{{{tex(table.caption)}}}",
    ]
    lines += [f"\\label{{{reference}}}"] if reference else []
    lines += [f"\\fontsize{{{SIZE:g}}}{{{1.2 * SIZE:g}}}\\selectfont", f"\\setlength{{\\tabcolsep}}{{{gap:g}pt}}"]
    lines += [*body, f"\\end{{{kind}}}"]
    wide = None
    if chosen is None:
        wide = (
            f"the table is {points:.0f} pt wide and both columns of an article {PAGE:.0f} pt: leave columns or suites "
            "out, or choose --style mean"
        )
    return "\n".join(lines) + "\n", wide


def tex(text: str) -> str:
    """Return text that TeX sets as it is, as plain as a person would type it."""
    text = unicodedata.normalize("NFC", one_line(text)).strip()
    return UNSAFE.sub(lambda match: escape_latex(match.group()), text)


def _ascii(text: str) -> str:
    return one_line(text).encode("ascii", "backslashreplace").decode()


def _packages(body: Sequence[str]) -> str:
    r"""Return which packages the lines of a tabular need."""
    used = ["booktabs"]
    used += ["makecell"] if any("\\makecell" in line for line in body) else []
    used += ["graphicx"] if any("\\rotatebox" in line for line in body) else []
    return "".join(f"\\usepackage{{{name}}} " for name in used).strip() + " and T1 fonts"


def _gaps(table: PaperTable) -> int:
    """Return how often the space of a column's side stands in the table."""
    return 2 * (sum(len(block.headings) for block in table.blocks) - len(table.blocks) + 1)


def _natural(table: PaperTable, setting: Setting) -> float:
    """Return the width of all columns without the space between them."""
    lines = [line for group in table.groups for line in group.lines]
    label = max(map(width_of, (table.label_heading, *(line.label for line in lines))))
    whole = label + BETWEEN_SUITES * (len(table.blocks) - 1)
    for i, block in enumerate(table.blocks):
        columns = [
            max(_head_width(head, setting), *(_figure_width(line.figures[i][k], setting) for line in lines))
            for k, head in enumerate(block.headings)
        ]
        spans = [width_of(text) for line in lines for text in _spanned_texts(line.figures[i])]
        title = width_of(block.title) if len(table.blocks) > 1 else 0.0
        whole += max(sum(columns), title, *spans, 0.0)
    titles = [width_of(group.title) for group in table.groups] if len(table.groups) > 1 else []
    return max(whole, *titles, 0.0)


def _head_width(head: Heading, setting: Setting) -> float:
    if setting.heads == "upright":
        return 1.3 * SIZE
    return max(map(width_of, (head.line,) if setting.heads == "line" else head.lines))


def _figure_width(figure: Figure, setting: Setting) -> float:
    if figure.is_missing:
        return width_of(MISSING) / 2  # a dash of two hyphens
    own = width_of(figure.text) * (BOLD_WIDER if figure.bold else 1.0)
    own += RAISED * width_of(figure.above) + RAISED_SPACE if figure.above else 0.0
    if not figure.beside:
        return own
    if setting.stacked:
        return max(own, width_of(figure.beside, TINY))
    return own + width_of(f" {figure.beside}  " if figure.beside[0] == "±" else f" {figure.beside}")


def _spanned_texts(figures: Sequence[Figure]) -> list[str]:
    return [f"-- ({why})" for why, _ in _runs(figures) if why]


def _runs(figures: Sequence[Figure]) -> Iterator[tuple[str, int]]:
    """Yield the reason and the length of each run of neighbours that have no figure for one reason; '' of others."""
    for why, found in groupby(figures, key=lambda figure: figure.why if figure.is_missing else ""):
        count = len(list(found))
        yield from [(why, count)] if why else [("", 1)] * count


def _tabular(table: PaperTable, setting: Setting) -> Iterator[str]:
    count = 1 + sum(len(block.headings) for block in table.blocks)
    between = f"@{{\\hspace{{{BETWEEN_SUITES:g}pt}}}}"
    formats = between.join("r" * len(block.headings) for block in table.blocks)
    yield f"\\begin{{tabular}}{{@{{}}l{formats}@{{}}}}"
    yield "\\toprule"
    if len(table.blocks) > 1:
        yield from _block_titles(table)
    heads = [_head(head, setting) for block in table.blocks for head in block.headings]
    yield f"{tex(table.label_heading)} & {' & '.join(heads)} \\\\"
    for group in table.groups:
        yield "\\midrule"
        if len(table.groups) > 1:
            yield f"\\multicolumn{{{count}}}{{@{{}}l@{{}}}}{{\\textit{{{tex(group.title)}}}}} \\\\"
            yield "\\addlinespace[1pt]"
        yield from _lines(group, setting)
    yield "\\bottomrule"
    yield "\\end{tabular}"


def _block_titles(table: PaperTable) -> Iterator[str]:
    titles, rules, first = [], [], 2
    for i, block in enumerate(table.blocks):
        last = first + len(block.headings) - 1
        end = "@{}" if i == len(table.blocks) - 1 else ""
        titles.append(f"\\multicolumn{{{len(block.headings)}}}{{c{end}}}{{{tex(block.title)}}}")
        rules.append(f"\\cmidrule({'l' if end else 'lr'}){{{first}-{last}}}")
        first = last + 1
    yield f" & {' & '.join(titles)} \\\\"
    yield " ".join(rules)


def _head(head: Heading, setting: Setting) -> str:
    if setting.heads == "upright":
        return f"\\rotatebox{{90}}{{{tex(head.line)}}}"
    if setting.heads == "line" or len(head.lines) == 1:
        return tex(head.line)
    lines = "\\\\".join(map(tex, head.lines))
    return f"\\makecell[br]{{{lines}}}"


def _lines(group: Group, setting: Setting) -> Iterator[str]:
    for line in group.lines:
        yield f"{tex(line.label)} & {' & '.join(_cells(line, setting))} \\\\"
        below = [figure.beside for figures in line.figures for figure in figures]
        if setting.stacked and any(below):
            cells = [f"{{\\tiny {_beside(text, '')}}}" if text else "" for text in below]
            yield f" & {' & '.join(cells)} \\\\ \\addlinespace[2pt]"


def _cells(line: Line, setting: Setting) -> Iterator[str]:
    for number, figures in enumerate(line.figures, 1):
        place = 0
        for why, count in _runs(figures):
            if why:
                ends = number == len(line.figures) and place + count == len(figures)
                yield f"\\multicolumn{{{count}}}{{{'c@{}' if ends else 'c'}}}{{-- ({tex(why)})}}"
            else:
                yield _cell(figures[place], setting)
            place += count


def _cell(figure: Figure, setting: Setting) -> str:
    if figure.is_missing:
        return MISSING
    text = _number(figure.text)
    text = f"\\textbf{{{text}}}" if figure.bold else text
    if figure.above:
        above = figure.above if figure.above == SHORT_RUN else f"\\mathrm{{{figure.above}}}"
        text += f"$^{{{above}}}$"
    return text if setting.stacked or not figure.beside else f"{text} {_beside(figure.beside)}"


def _number(text: str) -> str:
    """Return a number with its sign set as one."""
    return f"${text[0]}${text[1:]}" if text[:1] in "+-" and text[1:] else text


def _beside(text: str, space: str = " ") -> str:
    if text.startswith("±"):
        return f"$\\pm${space}{text[1:]}"
    return "[" + ", ".join(map(_number, text[1:-1].split(", "))) + "]"
