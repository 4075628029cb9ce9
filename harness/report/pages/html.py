"""report.html: a document as one page that needs nothing else: style, script and plots stand in it.

The page's own policy lets nothing in but the style and the script below, by their checksums, and pictures in ``data:``
addresses. Every text goes through ``_escaped``, in contents and in attributes alike. Plots are pictures of their own,
so that no script in one could run and no id of one meets another's.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files
from math import isfinite
from pathlib import Path

from harness.report.pages.document import (
    Block,
    Bullets,
    Document,
    Heading,
    Links,
    Paragraph,
    PlotBlock,
    TableBlock,
    Text,
    file_stem,
    pieces_of,
)
from harness.report.pages.page import MISSING_TITLE
from harness.report.table import Cell, Column, Entry, one_line
from harness.report.units import NOTHING

ASSETS = ("page.css", "page.js")
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
    items = []
    for i, block in enumerate(document):
        if isinstance(block, Heading) and block.level > 1:
            kind = ' class="model"' if block.level > 2 else ""
            items.append(f'<li{kind}><a href="#{anchors[i]}">{_escaped(block.text)}</a></li>')
    return f'<nav aria-label="Contents"><ol>{"".join(items)}</ol></nav>'


def _block(block: Block, anchor: str) -> str:
    if isinstance(block, Heading):
        name = f' id="{anchor}"' if anchor else ""
        return f"<h{block.level}{name}>{_escaped(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{_text(block.text)}</p>"
    if isinstance(block, Bullets):
        return "<ul>\n" + "".join(f"<li>{_text(line)}</li>\n" for line in block.lines) + "</ul>"
    if isinstance(block, Links):
        lines = "".join(
            f'<li><a href="{_escaped(address)}">{_escaped(text)}</a></li>\n' for text, address in block.lines
        )
        return f"<ul>\n{lines}</ul>"
    return _figure(block) if isinstance(block, PlotBlock) else _table(block)


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
    return f'<figure><img src="{_data_address(file)}" alt="{title}"><figcaption>{caption}</figcaption></figure>'


def _data_address(file: Path) -> str:
    return f"data:{MIME[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _table(block: TableBlock) -> str:
    columns = block.table.columns
    heads = "".join(
        f'<th scope="col" class="{_kind(column)}"><button type="button">{_escaped(column.title)}</button></th>'
        for column in columns
    )
    reasons = block.reasons or (None,) * len(block.table.rows)
    rows = "".join(_row(row, columns, reason) for row, reason in zip(block.table.rows, reasons, strict=True))
    caption = "" if block.caption is None else f'<p class="caption">{_escaped(block.caption)}</p>'
    label = _escaped(block.caption or "Table")
    return (
        f'<div class="wide">{caption}<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table><thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table></div></div>"
    )


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
