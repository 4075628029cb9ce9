r"""report.tex: a document in LaTeX that pdflatex compiles as it is, its tables by booktabs on landscape A4.

A table that belongs in a paper is a tabular in a file of its own, ``\input`` by the page. It is set in its natural
width and shrunk only where the page is too narrow. The other tables run over pages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from harness.report.pages.document import (
    Block,
    Bullets,
    Definitions,
    Document,
    Heading,
    Links,
    Paragraph,
    PlotBlock,
    TableBlock,
    Text,
    pieces_of,
)
from harness.report.pages.latex_text import escape_latex
from harness.report.table import Cell, Column, Entry, Table, one_line

PAGE_EM = 180
r"""Characters of the size of table text that stand side by side on the page: 26.1 cm in \scriptsize."""
GAP = 2
STACK_OVER = 12
"""A heading or cell of numbers longer than this stands in several lines."""
LINES_A_PAGE = 42
"""Lines of a tabular that fit one page with its caption."""
NARROWEST = 8
ROW_END = "\\\\ \\addlinespace[2pt]"
ARROW = escape_latex("->")
MINUS = re.compile(r"(?<![A-Za-z0-9.])-\{\}(?=[0-9])")
"""A hyphen in front of a number, as it is escaped."""
SECTIONS = {2: "section*", 3: "subsection*"}
PREAMBLE = r"""% Each file in tables/ is one tabular: \input it into a paper that loads booktabs and has T1 fonts.
\documentclass[10pt]{article}
\usepackage[a4paper,landscape,margin=1.8cm]{geometry}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{textcomp}
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\usepackage{booktabs}
\usepackage{longtable}
\usepackage{array}
\usepackage{graphicx}
\setlength{\parindent}{0pt}
\setlength{\parskip}{4pt}
\setlength{\tabcolsep}{3.5pt}
\setlength{\LTleft}{0pt}
\setlength{\LTpre}{6pt}
\setlength{\emergencystretch}{4em}
% A table as wide as it is, or as the page where that is narrower.
\newsavebox{\tablebox}
\newcommand{\fitted}[1]{\sbox{\tablebox}{#1}%
  \ifdim\wd\tablebox>\linewidth\resizebox{\linewidth}{!}{\usebox{\tablebox}}\else\usebox{\tablebox}\fi}
\begin{document}
"""


def latex(document: Document, out: Path) -> dict[str, str]:
    """Return the files of the page by their path: report.tex and the tabulars that it takes in.

    Args:
        document: What it holds.
        out: The folder of the page, to which the plots' paths are relative.
    """
    files: dict[str, str] = {}
    parts = [PREAMBLE]
    for block, after in zip(document, (*document[1:], None), strict=True):
        if isinstance(block, TableBlock) and block.name is not None:
            named = _tabulars(block)
            files |= named
            parts += [_float(block, name) for name in named]
        else:
            parts.append(_part(block, out))
        if isinstance(block, PlotBlock) and not isinstance(after, PlotBlock):
            parts.append("\\clearpage\n")
    parts.append("\\end{document}\n")
    return {"report.tex": "\n".join(parts), **files}


def tabular(table: Table) -> str:
    """Return a table as one tabular: headings and cells of numbers in lines of their own where they are long."""
    columns = "".join("l" if column.align == "left" else "r" for column in table.columns)
    rows = [
        _in_lines(
            [
                [_set(line, column) for line in _cell_lines(cell, column)]
                for cell, column in zip(row, table.columns, strict=True)
            ],
            ROW_END,
        )
        for row in table.rows
    ]
    lines = ["\\toprule", _heads(table.columns), "\\midrule", *rows, "\\bottomrule"]
    return f"\\begin{{tabular}}{{@{{}}{columns}@{{}}}}\n" + "\n".join(lines) + "\n\\end{tabular}\n"


def _in_lines(cells: Sequence[Sequence[str]], end: str, *, from_below: bool = False) -> str:
    """Return cells of several lines as so many rows of a tabular, the lines beginning on top or ending below.

    What stands in LaTeX already is taken as it is.
    """
    height = max(map(len, cells))
    padded = []
    for cell in cells:
        space = [""] * (height - len(cell))
        padded.append([*space, *cell] if from_below else [*cell, *space])
    rows = [" & ".join(row) for row in zip(*padded, strict=True)]
    return " \\\\\n".join(rows) + f" {end}"


def _tabulars(block: TableBlock) -> dict[str, str]:
    """Return the tabulars of a named table, more than one where its rows do not fit a page."""
    table = block.table
    heights = [max(len(_cell_lines(c, col)) for c, col in zip(row, table.columns, strict=True)) for row in table.rows]
    chunks: list[list[tuple[Entry, ...]]] = [[]]
    height = 0
    for row, lines in zip(table.rows, heights, strict=True):
        if chunks[-1] and height + lines > LINES_A_PAGE:
            chunks.append([])
            height = 0
        chunks[-1].append(row)
        height += lines
    return {
        f"tables/{block.name}{f'-part{i}' if i > 1 else ''}.tex": tabular(Table(table.columns, tuple(chunk)))
        for i, chunk in enumerate(chunks, start=1)
    }


def _float(block: TableBlock, name: str) -> str:
    caption = "" if block.caption is None else f"\\caption{{{escape_latex(block.caption)}}}\n"
    inside = f"\\fitted{{\\scriptsize\\input{{{name}}}}}"
    return f"\\begin{{table}}[!htbp]\n\\raggedright\n{caption}{inside}\n\\end{{table}}\n"


def _part(block: Block, out: Path) -> str:
    if isinstance(block, Heading):
        title = escape_latex(block.text, breakable=True)
        return f"\\{SECTIONS[block.level]}{{{title}}}\n" if block.level in SECTIONS else f"{{\\LARGE {title}\\par}}\n"
    if isinstance(block, Paragraph):
        return f"{_text(block.text)}\\par\n"
    if isinstance(block, Bullets):
        items = "".join(f"\\item {{}}{_text(line)}\n" for line in block.lines)
        return f"\\begin{{itemize}}\n{items}\\end{{itemize}}\n" if block.lines else ""
    if isinstance(block, Definitions):
        items = "".join(f"\\item {{}}{escape_latex(term)}: {_text(text)}\n" for term, text in block.entries)
        return f"\\begin{{itemize}}\n{items}\\end{{itemize}}\n" if block.entries else ""
    if isinstance(block, Links):
        return "".join(f"{_text(text)}\\par\n" for text, _ in block.lines)
    if isinstance(block, PlotBlock):
        return _figure(block, out)
    return _long_tables(block)


def _figure(block: PlotBlock, out: Path) -> str:
    file = block.file(".pdf", ".png")
    if file is None:
        return ""
    size = "width=0.92\\linewidth,height=0.72\\textheight,keepaspectratio"
    drawn = f"\\includegraphics[{size}]{{{file.relative_to(out).as_posix()}}}"
    caption = escape_latex(f"{block.title}. {block.caption}" if block.caption else block.title)
    return f"\\begin{{figure}}[!htbp]\n\\centering\n{drawn}\n\\caption{{{caption}}}\n\\end{{figure}}\n"


def _text(text: Text) -> str:
    out = []
    for piece, code in pieces_of(text):
        escaped = escape_latex(piece, breakable=True)
        before, after = piece[: len(piece) - len(piece.lstrip())] and " ", piece[len(piece.rstrip()) :] and " "
        out.append(f"\\texttt{{{escaped}}}" if code else f"{before}{escaped}{after if piece.strip() else ''}")
    return "".join(out)


def _cell_lines(cell: Entry, column: Column) -> list[str]:
    """Return a cell in lines: numbers break before what stands in brackets, other long text between words."""
    text = one_line(str(cell))
    if column.align == "left":
        return _wrapped(text, 3 * STACK_OVER)
    if len(text) <= STACK_OVER:
        return [text]
    first, rest = (cell.text, cell.rest) if isinstance(cell, Cell) else (cell, ())
    return [*_wrapped(first, STACK_OVER), *(line for part in rest for line in _wrapped(part, STACK_OVER + 3))]


def _wrapped(text: str, width: int) -> list[str]:
    """Return text in lines of about ``width`` characters; a longer word stays whole up to twice that."""
    lines: list[str] = []
    for word in one_line(text).split(" "):
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines += [word[i : i + 2 * width] for i in range(0, len(word), 2 * width)] or [""]
    return lines or [""]


def _stacked(lines: list[str], column: Column) -> str:
    """Return lines as one cell beside texts that break by themselves, aligned at the first line."""
    escaped = [_set(line, column) for line in lines]
    if len(escaped) == 1:
        return escaped[0]
    return f"\\begin{{tabular}}[t]{{@{{}}{column.align[0]}@{{}}}}" + "\\\\".join(escaped) + "\\end{tabular}"


def _heads(columns: Sequence[Column]) -> str:
    lines = [[_set(line, column) for line in _wrapped(column.title, STACK_OVER)] for column in columns]
    return _in_lines(lines, "\\\\", from_below=True)


def _set(text: str, column: Column) -> str:
    """Return a line of a cell; in a column of numbers a minus and an arrow are set as such."""
    escaped = escape_latex(text)
    if column.align == "left":
        return escaped
    return MINUS.sub("$-$", escaped.replace(ARROW, r"$\rightarrow$"))


def _long_tables(block: TableBlock) -> str:
    """Return a table that runs over pages, its columns in several tables where the page is too narrow for all."""
    table = block.table
    caption = "" if block.caption is None else f"{_text(block.caption)}\\par\n"
    parts = [_long_table(table, group) for group in _groups(table)]
    return f"{caption}{{\\scriptsize\n" + "\n".join(parts) + "}\n"


def _groups(table: Table) -> list[list[int]]:
    """Return which columns stand side by side; the leading text columns are repeated."""
    leading = 0
    while leading < len(table.columns) and table.columns[leading].align == "left":
        leading += 1
    numbers = [i for i in range(len(table.columns)) if i >= leading]
    if leading == 0 or not numbers or any(table.columns[i].align == "left" for i in numbers):
        return [list(range(len(table.columns)))]
    keys = list(range(leading))
    left = PAGE_EM - sum(min(_width(table, i), 24) + GAP for i in keys)
    groups: list[list[int]] = [[]]
    used = 0
    for i in numbers:
        need = _width(table, i) + GAP
        if groups[-1] and used + need > left:
            groups.append([])
            used = 0
        groups[-1].append(i)
        used += need
    return [keys + group for group in groups]


def _width(table: Table, i: int) -> int:
    """Return the width of a column in characters: of its longest cell, and of its heading in lines."""
    cells = [max(map(len, _cell_lines(row[i], table.columns[i]))) for row in table.rows]
    return max([*cells, *map(len, _wrapped(table.columns[i].title, STACK_OVER)), 1])


def _long_table(table: Table, group: list[int]) -> str:
    columns = [table.columns[i] for i in group]
    lines = [
        " & ".join(
            escape_latex(str(row[i]), breakable=True)
            if column.align == "left"
            else _stacked(_cell_lines(row[i], column), column)
            for i, column in zip(group, columns, strict=True)
        )
        for row in table.rows
    ]
    head = f"\\toprule\n{_heads(columns)}\n\\midrule\n\\endhead\n\\bottomrule\n\\endlastfoot\n"
    body = "".join(f"{line} {ROW_END}\n" for line in lines)
    return f"\\begin{{longtable}}{{@{{}}{_formats(table, group)}@{{}}}}\n{head}{body}\\end{{longtable}}\n"


def _formats(table: Table, group: list[int]) -> str:
    """Return the columns' formats: numbers as wide as they are, texts share what is left by what they would take."""
    texts = {i: max((len(one_line(str(row[i]))) for row in table.rows), default=1) for i in group}
    texts = {i: max(width, _head_width(table, i)) for i, width in texts.items() if table.columns[i].align == "left"}
    left = PAGE_EM - GAP * len(group) - sum(_width(table, i) for i in group if i not in texts)
    while sum(texts.values()) > left and max(texts.values()) > NARROWEST:
        widest = max(texts, key=lambda i: texts[i])
        others = left - sum(width for i, width in texts.items() if i != widest)
        second = sorted(texts.values())[-2] if len(texts) > 1 else NARROWEST
        texts[widest] = max(NARROWEST, others, min(second, texts[widest]) - 1)
    return "".join(
        f">{{\\raggedright\\arraybackslash}}p{{{texts[i] / PAGE_EM:.3f}\\linewidth}}" if i in texts else "r"
        for i in group
    )


def _head_width(table: Table, i: int) -> int:
    """Return the width of a heading in characters, one more than it has: a short word may be of wide letters alone."""
    return max(map(len, _wrapped(table.columns[i].title, STACK_OVER))) + 1
