"""report.md: a document in GitHub's Markdown."""

from __future__ import annotations

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
    Text,
    pieces_of,
)
from harness.report.table import escape_markdown, markdown_table


def markdown(document: Document, out: Path) -> str:
    """Return the page.

    Args:
        document: What it holds.
        out: The folder of the page, to which links are relative.
    """
    return "\n".join(part for block in document for part in _parts(block, out))


def _parts(block: Block, out: Path) -> list[str]:
    if isinstance(block, Heading):
        return [f"{'#' * block.level} {escape_markdown(block.text)}\n"]
    if isinstance(block, Paragraph):
        return [f"{_text(block.text)}\n"]
    if isinstance(block, Bullets):
        return ["".join(f"- {_text(line)}\n" for line in block.lines)]
    if isinstance(block, Definitions):
        return ["".join(f"- {escape_markdown(term)}: {_text(text)}\n" for term, text in block.entries)]
    if isinstance(block, Links):
        return ["".join(f"- [{escape_markdown(text)}]({address})\n" for text, address in block.lines)]
    if isinstance(block, PlotBlock):
        return _plot(block, out)
    caption = [] if block.caption is None else [f"{escape_markdown(block.caption)}\n"]
    return [*caption, markdown_table(block.table)]


def _plot(block: PlotBlock, out: Path) -> list[str]:
    title = escape_markdown(block.title)
    links = {file.suffix: file.relative_to(out).as_posix() for file in block.files}
    shown = [f"![{title}]({links['.png']})\n"] if ".png" in links else []
    shown += [f"{escape_markdown(block.caption)}\n"] if block.caption else []
    others = [(ending, link) for ending, link in links.items() if ending != ".png"]
    return shown + [f"[{title}, as {ending.removeprefix('.').upper()}]({link})\n" for ending, link in others]


def _text(text: Text) -> str:
    return "".join(f"`{piece}`" if code else _kept_spaces(piece) for piece, code in pieces_of(text))


def _kept_spaces(piece: str) -> str:
    """Escape a piece of a line; the blank between it and code beside it stays."""
    before, after = piece[: len(piece) - len(piece.lstrip(" "))], piece[len(piece.rstrip(" ")) :]
    return f"{before}{escape_markdown(piece)}{after if piece.strip() else ''}"
