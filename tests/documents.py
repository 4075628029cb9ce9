"""The blocks of code in the documents, and the commands in them."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "findings" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
WORDS = (
    *("harness", "python", "python3", "pip", "tox", "pytest", "bash", "source", "export", "pre-commit", "git", "cp"),
    *("srun", "sbatch", "ray", "cd", "rm", "mkdir"),
)
"""With which a line begins that is typed."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    line: int
    """Of its first fence."""
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Return the commands that it has a reader type, in words; none where it shows output or a file."""
        if self.language not in ("", "bash", "sh", "console"):
            return []
        joined = re.sub(r"\\\n\s*", " ", self.text)
        lines = [line.strip() for line in joined.splitlines()]
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        typed = prompted or [line for line in lines if _is_typed(line)]
        return [words for line in typed for words in _split(line)]


def blocks(file: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a document."""
    name, lines = file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8").splitlines()
    opened: int | None = None
    for number, line in enumerate(lines):
        if (fence := re.match(r"\s*```(.*)$", line)) is None:
            continue
        if opened is None:
            opened, language = number, fence[1].strip()
        else:
            yield Block(name, opened + 1, language, textwrap.dedent("\n".join(lines[opened + 1 : number])))
            opened = None
    assert opened is None, f"{name}: a block that begins at line {opened} has no end"


def all_blocks() -> list[Block]:
    """Return the blocks of every document."""
    return [block for file in DOCUMENTS for block in blocks(file)]


def _is_typed(line: str) -> bool:
    without = re.sub(r"^(\w+=\S+\s+)+", "", line)
    return re.match(r"\S+", without) is not None and without.split()[0] in WORDS


def _split(line: str) -> Iterator[list[str]]:
    """Yield the commands of a line, without what is assigned before them."""
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word in ("&&", "||", ";", "|"):
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words
            words = []
        else:
            words.append(word)
