"""report.html: a document as one page that needs nothing else: style, script and plots stand in it.

The page's own policy lets nothing in but the style and the script below, by their checksums, and pictures in ``data:``
addresses. Every text goes through ``_escaped``, in contents and in attributes alike. Plots are pictures of their own,
so that no script in one could run and no id of one meets another's.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from math import isfinite

from harness.report.pages.document import (
    Block,
    Bullets,
    Definitions,
    Document,
    Heading,
    Links,
    Paragraph,
    PlotBlock,
    Prose,
    TableBlock,
    Text,
    file_stem,
    pieces_of,
)
from harness.report.pages.page import MISSING_TITLE
from harness.report.plots.style import DPI
from harness.report.table import Cell, Column, Entry, one_line
from harness.report.units import NOTHING

ASSETS = ("page.css", "page.js")
ENLARGED = 1.4
"""How much larger than in print every plot is on a screen: letters of 7.5 points are as those of its captions."""
SVG_WIDTH = re.compile(rb'<svg[^>]*?\swidth="([0-9.]+)pt"')
LARGEST_SVG_BYTES = 3_000_000
"""A plot with more in it stands as PNG: a browser takes long for so many lines."""
MIME = {".svg": "image/svg+xml", ".png": "image/png"}


def html_page(document: Document) -> str:
    """Return the page; the plots' files are read."""
    style, script = (files("harness.report.pages").joinpath(name).read_text(encoding="utf-8") for name in ASSETS)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_checksum(style)}'; script-src '{_checksum(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    anchors = _anchors(document)
    title = next((block.text for block in document if isinstance(block, Heading)), "Report")
    body = []
    for i, block in enumerate(document):
        body.append(_block(block, anchors.get(i, "")))
        if isinstance(block, Paragraph) and i == 1:
            body.append(_contents(document, anchors))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_escaped(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{_escaped(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def html_part(document: Document) -> str:
    """Return a document as it may stand within another page, in a notebook: without style, script and files."""
    anchors = _anchors(document)
    body = [_block(block, anchors.get(i, "")) for i, block in enumerate(document) if not isinstance(block, PlotBlock)]
    return f'<div class="harness-report">\n{chr(10).join(body)}\n</div>'


def _checksum(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _escaped(text: str) -> str:
    """Return text on one line for the content of an element or a quoted attribute."""
    return escape(one_line(text), quote=True)


def _anchors(document: Document) -> dict[int, str]:
    """Return an anchor for each heading by its place; text from records becomes letters, digits and hyphens."""
    anchors: dict[int, str] = {}
    for i, block in enumerate(document):
        if isinstance(block, Heading) and block.level > 1:
            anchors[i] = file_stem(block.text, tuple(anchors.values()))
    return anchors


def _contents(document: Document, anchors: dict[int, str]) -> str:
    """Return links to the headings; one below a section whose name stands below another too is named with its own."""
    names = Counter(block.text for block in document if isinstance(block, Heading) and block.level > 2)
    items, section = [], ""
    for i, block in enumerate(document):
        if isinstance(block, Heading) and block.level > 1:
            below = block.level > 2
            section = section if below else block.text
            text = f"{section}: {block.text}" if below and names[block.text] > 1 else block.text
            kind = ' class="model"' if below else ""
            items.append(f'<li{kind}><a href="#{anchors[i]}">{_escaped(text)}</a></li>')
    return f'<nav aria-label="Contents"><ol>{"".join(items)}</ol></nav>'


def _block(block: Block, anchor: str) -> str:
    if isinstance(block, Heading):
        name = f' id="{anchor}"' if anchor else ""
        return f"<h{block.level}{name}>{_escaped(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{_text(block.text)}</p>"
    if isinstance(block, Bullets):
        return "<ul>\n" + "".join(f"<li>{_text(line)}</li>\n" for line in block.lines) + "</ul>"
    if isinstance(block, Definitions):
        return _definitions(block.entries)
    if isinstance(block, Links):
        lines = "".join(
            f'<li><a href="{_escaped(address)}">{_escaped(text)}</a></li>\n' for text, address in block.lines
        )
        return f"<ul>\n{lines}</ul>"
    return _figure(block) if isinstance(block, PlotBlock) else _table(block)


def _definitions(entries: Iterable[tuple[str, Text]]) -> str:
    """Return a list of terms."""
    told = "".join(f"<dt>{_escaped(term)}</dt><dd>{_text(text)}</dd>\n" for term, text in entries)
    return f"<dl>\n{told}</dl>"


def _text(text: Text) -> str:
    return "".join(
        f"<code>{_escaped(piece)}</code>" if code else _escaped(f"|{piece}|")[1:-1]  # the bars keep blanks at the edges
        for piece, code in pieces_of(text)
    )


def _figure(block: PlotBlock) -> str:
    file = block.file(".svg", ".png")
    if file is None:
        return ""
    if file.suffix == ".svg" and file.stat().st_size > LARGEST_SVG_BYTES:
        file = block.file(".png") or file
    title = _escaped(block.title)
    caption = f"<b>{title}.</b> {_escaped(block.caption)}" if block.caption else title
    data = file.read_bytes()
    width = "" if (natural := _natural_width(file.suffix, data)) is None else f' width="{natural}"'
    source = f"data:{MIME[file.suffix]};base64,{base64.b64encode(data).decode()}"
    return f'<figure><img src="{source}"{width} alt="{title}"><figcaption>{caption}</figcaption></figure>'


def _natural_width(suffix: str, data: bytes) -> int | None:
    """Return a plot's width on a screen in pixels: its own, all enlarged alike so that letters are of one size."""
    if suffix == ".png" and data[12:16] == b"IHDR":
        return round(int.from_bytes(data[16:20], "big") / DPI * 96 * ENLARGED)
    found = SVG_WIDTH.search(data[:2000])
    return None if found is None else round(float(found[1]) / 72 * 96 * ENLARGED)


def _table(block: TableBlock) -> str:
    columns = block.table.columns
    heads = "".join(
        f'<th scope="col" class="{_kind(column)}"{_tip(_without_code(column.definition))}>'
        f'<button type="button">{_escaped(column.title)}</button></th>'
        for column in columns
    )
    reasons = block.reasons or (None,) * len(block.table.rows)
    rows = "".join(_row(row, columns, reason) for row, reason in zip(block.table.rows, reasons, strict=True))
    caption = "" if block.caption is None else f'<p class="caption">{_escaped(block.caption)}</p>'
    label = _escaped(block.caption or "Table")
    return (
        f'<div class="wide">{caption}<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table><thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>{_meanings(columns)}</div>"
    )


def _meanings(columns: tuple[Column, ...]) -> str:
    """Return what the headings mean, to be opened below the table: by touch and from the keyboard too."""
    told = [(column.title, Prose(column.definition)) for column in columns if column.definition]
    if not told:
        return ""
    return f"<details><summary>What the headings mean</summary>\n{_definitions(told)}</details>"


def _without_code(text: str) -> str | None:
    return text.replace("`", "") or None


def _row(row: tuple[Entry, ...], columns: tuple[Column, ...], reason: str | None) -> str:
    first, *others = row
    why = "" if reason is None else f' <a class="why" href="#{file_stem(MISSING_TITLE)}">why</a>'
    cells = [f'<th scope="row" class="{_kind(columns[0])}"{_tip(reason)}>{_escaped(str(first))}{why}</th>']
    pairs = list(zip(others, columns[1:], strict=True))
    if any(column.align == "right" and sort_key(cell) is not None for cell, column in pairs):
        reason = None  # some seed has a result: what is missing here has another reason
    cells += [_cell(cell, column, reason) for cell, column in pairs]
    return f"<tr>{''.join(cells)}</tr>\n"


def _cell(cell: Entry, column: Column, reason: str | None) -> str:
    """Return a cell; one of a number has the number as its key, one without is missing and tells why where it can."""
    if column.align == "left":
        return f'<td class="text{" missing" * (str(cell) == NOTHING)}">{_escaped(str(cell))}</td>'
    key = sort_key(cell)
    if key is None or not isinstance(cell, Cell):
        fault = " fault" if reason is not None else ""
        return f'<td class="number missing{fault}"{_tip(reason)}>{_escaped(str(cell))}</td>'
    tail = "".join(f'<span class="rest">{_escaped(part)}</span>' for part in cell.rest)
    return f'<td class="number" data-key="{key}">{_escaped(cell.text)}{tail}</td>'


def sort_key(cell: Entry) -> str | None:
    """Return the number that a cell is sorted by, unrounded; None of one that holds no finite number."""
    value = cell.value if isinstance(cell, Cell) else None
    return None if value is None or not isfinite(value) else repr(value)


def _kind(column: Column) -> str:
    return "number" if column.align == "right" else "text"


def _tip(reason: str | None) -> str:
    if reason is None:
        return ""
    lines = "&#10;".join(_escaped(line) for line in reason.split("\n"))
    return f' title="{lines}"'
